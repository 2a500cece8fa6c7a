"""What a cell's job asks for, and where it goes."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.core.failure import Cause
from orchestrator.costs import Estimate
from orchestrator.errors import UserError
from orchestrator.jobs.records import Resources
from orchestrator.launchers.base import stepped
from orchestrator.launchers.slurm.launcher import SlurmLauncher
from orchestrator.launchers.slurm.settings import (
    Partition,
    ResourceOverride,
    cluster_profile,
    describe,
    resources_of,
    slurm_settings,
)

BIG = Estimate(num_gpus=4, wall_hours=10.0, host_memory_gib=50.0)
PARTITIONS = {
    "short": Partition(gpus_per_node=4, cpus_per_node=64, memory_gib=256, max_hours=4),
    "long": Partition(gpus_per_node=8, cpus_per_node=128, memory_gib=1024, max_hours=72),
    "cpu": Partition(gpus_per_node=0, cpus_per_node=32, memory_gib=128, max_hours=24),
}


def resources(
    estimate=None, *, asked=None, launcher=None, cluster=None, partitions=None, num_oom=0, num_late=0
) -> Resources:
    return resources_of(
        estimate,
        ResourceOverride(**(asked or {})),
        slurm_settings({"name": "slurm", **(launcher or {})}),
        cluster_profile(cluster or {}),
        partitions or {},
        num_oom=num_oom,
        num_late=num_late,
        cell="c",
    )


def test_the_plan_says_gpus_memory_and_hours_with_a_margin():
    found = resources(BIG)
    assert (found.num_nodes, found.gpus_per_node, found.cpus) == (1, 4, 32)
    assert found.memory_gib == 64.0
    assert found.hours == 16.0  # 0.25 + 1.5 * 10 = 15.25, on a step
    assert found.partition == ""


def test_without_a_plan_the_profile_says_what_a_job_gets():
    found = resources(cluster={"hours": 3.0, "cpus": 2, "memory_gib": 7.0})
    assert msgspec.structs.replace(found, rungs=()) == Resources(cpus=2, memory_gib=7.0, hours=3.0)


def test_a_job_is_signalled_as_early_as_its_last_checkpoint_needs_and_no_later_than_the_profile_says():
    """A step of 29 s and a checkpoint of 99 s: 160 s with the margin."""
    large = Estimate(num_gpus=4, wall_hours=10.0, stop_s=128.0)
    assert resources(large).signal_s == stepped(160.0) == 192.0
    assert resources(large, partitions=PARTITIONS).signal_s == 192.0
    assert resources(large, cluster={"signal_s": 300}).signal_s == 0.0
    assert resources(BIG).signal_s == 0.0


def test_a_clusters_cpus_need_no_gpus():
    assert resources(BIG, cluster={"device": "cpu"}).gpus_per_node == 0


def test_a_cell_larger_than_a_node_gets_several():
    found = resources(BIG, cluster={"gpus_per_node": 2, "max_nodes": 2})
    assert (found.num_nodes, found.gpus_per_node, found.memory_gib) == (2, 2, 32.0)


def test_cells_that_share_a_job_add_up_hours_or_devices():
    one = resources(BIG)
    after = resources(BIG, launcher={"cells_per_job": 4})
    beside = resources(BIG, launcher={"cells_per_job": 4, "workers_per_job": 2})
    assert (after.hours, after.gpus_per_node) == (4 * one.hours, one.gpus_per_node)
    assert (beside.hours, beside.gpus_per_node, beside.cpus) == (2 * one.hours, 2 * one.gpus_per_node, 64)


def test_a_job_out_of_host_memory_asks_for_twice_as_much():
    assert resources(BIG, num_oom=2).memory_gib == 4 * 64


def test_after_a_lack_of_memory_or_time_a_job_asks_for_twice_as_much_once_as_a_remedy():
    first, late, later = (resources(BIG, num_late=number) for number in (0, 1, 2))
    assert [each.hours / first.hours for each in (first, late, later)] == [1, 2, 4]
    assert first.rung_of(Cause.TIMEOUT) == (0, 1)
    assert late.rung_of(Cause.TIMEOUT) == later.rung_of(Cause.TIMEOUT) == (1, 1)
    assert resources(BIG, num_oom=1).rung_of(Cause.OOM_HOST) == (1, 1)
    assert resources(BIG).rung_of(Cause.NODE_LOST) == (0, 0)


def test_a_job_with_all_hours_that_there_are_has_no_remedy_for_more():
    most = resources(BIG).hours
    assert resources(BIG, cluster={"max_hours": most}).rung_of(Cause.TIMEOUT) == (0, 0)
    assert resources(BIG, num_late=1, cluster={"max_hours": most}).hours == most
    assert resources(BIG, asked={"hours": 2.0}, num_late=1).hours == 2.0
    assert resources(BIG, asked={"hours": 2.0}).rung_of(Cause.TIMEOUT) == (0, 0)


def test_what_is_asked_for_cells_outranks_the_plan():
    found = resources(BIG, asked={"gpus": 8, "hours": 2.0, "memory_gib": 9.0, "cpus": 3})
    assert msgspec.structs.replace(found, rungs=()) == Resources(
        gpus_per_node=8, cpus=3, memory_gib=9.0, hours=2.0
    )


@pytest.mark.parametrize(
    ("estimate", "partition", "hours"),
    [
        (Estimate(num_gpus=0, wall_hours=1.0), "cpu", 2.0),
        (Estimate(num_gpus=1, wall_hours=1.0), "short", 2.0),
        (Estimate(num_gpus=1, wall_hours=10.0), "long", 16.0),
        (Estimate(num_gpus=8, wall_hours=1.0), "long", 2.0),
        (Estimate(num_gpus=8, wall_hours=100.0), "long", 72.0),  # started anew from its checkpoint
    ],
)
def test_a_cell_goes_to_the_smallest_partition_that_fits(estimate, partition, hours):
    found = resources(estimate, partitions=PARTITIONS)
    assert (found.partition, found.hours) == (partition, hours)


def test_a_cell_that_fits_nowhere_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="cell c fits no partition: 16 GPUs") as raised:
        resources(asked={"gpus": 16, "nodes": 1}, partitions=PARTITIONS)
    assert "long: it has 8 GPUs a node" in raised.value.where


def test_bounds_of_the_profile_hold():
    assert resources(Estimate(wall_hours=0.01), cluster={"min_hours": 2.0}).hours == 2.0
    assert resources(BIG, cluster={"max_hours": 5.0}).hours == 5.0


@pytest.mark.parametrize(
    ("amount", "step"), [(0.2, 1), (1, 1), (1.1, 1.5), (1.6, 2), (2.5, 3), (3.1, 4), (100, 128)]
)
def test_steps_are_coarse_enough_for_like_cells_to_be_alike(amount, step):
    assert stepped(amount) == step


@pytest.mark.parametrize(
    ("launcher", "cluster", "words"),
    [
        ({"workers": 3}, {}, "launcher.workers"),
        ({"cells_per_job": 0}, {}, "launcher.cells_per_job is 0"),
        ({"workers_per_job": 2}, {}, "launcher.workers_per_job=2"),
        ({"time_margin": 0.5}, {}, "launcher.time_margin"),
        ({"resources": [{"only": "model=a", "gpu": 1}]}, {}, "gpu"),
        ({"resources": [{"only": "model=a", "hours": 0}]}, {}, "launcher.resources[0].hours is 0"),
        ({}, {"device": "a10"}, "unknown device 'a10'"),
        ({}, {"setup": "module load x"}, "cluster.setup"),
        ({}, {"sbatch": {"job-name": "x"}}, "cluster.sbatch.job-name is ours"),
        ({}, {"sbatch": {"jo": "x"}}, "cluster.sbatch.jo is ours"),
        ({}, {"sbatch": {"cpus": 4}}, "cpus-per-gpu or cpus-per-task"),
        ({}, {"sbatch": {"node": "n1"}}, "nodefile or nodelist or nodes"),
        ({}, {"sbatch": {"exclu": "n1"}}, "exclude or exclusive"),
        ({}, {"sbatch": {"mem_per": "1G"}}, "mem-per-cpu or mem-per-gpu"),
        ({}, {"environment": {"A B": "x"}}, "'A B'"),
        ({}, {"logs": "logs"}, "cluster.logs"),
        ({}, {"hours": 0}, "cluster.hours is 0"),
        ({}, {"account": "a b"}, "cluster.account is 'a b'"),
        ({}, {"reservation": "r\n"}, "cluster.reservation is 'r\\n'"),
        ({}, {"partitions": {"": None}}, "cluster.partitions. is ''"),
        ({}, {"partitions": {"p": {"cpus_per_node": -4}}}, "cpus_per_node is -4"),
        ({}, {"constraint": "a\nb"}, "cluster.constraint is 'a\\nb'"),
        ({}, {"python": "a\nb"}, "cluster.python is 'a\\nb'"),
        ({}, {"srun": [""]}, "cluster.srun[0] is ''"),
        ({}, {"sbatch": {"nodelist": ""}}, "cluster.sbatch.nodelist is ''"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_their_key(launcher, cluster, words):
    with pytest.raises(UserError) as raised:
        SlurmLauncher({"name": "slurm", **launcher}, 1, cluster)
    assert words in str(raised.value)


def test_resources_are_told_in_one_line():
    assert describe(resources(BIG)) == "4 GPUs, 32 CPUs, 64 GiB, 16 h"


@pytest.mark.parametrize(
    "key", ["account", "qos", "reservation", "gpu_type", "constraint", "python", "node_check"]
)
def test_a_blank_text_of_a_profile_is_none_as_of_a_variable_that_is_not_set(key):
    assert cluster_profile({key: ""}) == cluster_profile({key: " "}) == cluster_profile({})


@pytest.mark.parametrize(
    "cluster",
    [
        {"reservation": "night,maintenance_1"},
        {"constraint": "[rack1*2&rack2*4] & a100"},
        {"python": "/opt/our tools/bin/python"},
        {"account": "lab/a.b-c@d"},
        {"node_check": "nvidia-smi\ntest -d /scratch"},
        {"partitions": {"gpu": {"gpus_per_node": 0, "max_hours": 0.25}}},
    ],
)
def test_texts_that_slurm_takes_are_taken(cluster):
    assert cluster_profile(cluster) != cluster_profile({})
