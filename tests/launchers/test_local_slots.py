"""The local launcher's slots: by CPU or by GPU, and what it refuses."""

from __future__ import annotations

import os

import pytest

from orchestrator.errors import UserError
from orchestrator.launchers.local import (
    LocalLauncher,
    LocalSettings,
    gpu_hardware,
    host_hardware,
    slots,
    visible_gpus,
)

GPUS = ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("settings", "gpus", "num_cpus", "num_cells", "expected"),
    [
        ({}, (), 8, 100, [{}] * 8),
        ({"cpus_per_worker": 4}, (), 8, 100, [{}] * 2),
        ({}, (), 8, 3, [{}] * 3),
        ({"workers": 5}, (), 2, 1, [{}] * 5),
        ({"cpus_per_worker": 16}, (), 8, 100, [{}]),
        ({}, GPUS, 64, 100, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in GPUS]),
        ({"gpus_per_worker": 2}, GPUS, 64, 9, [{"CUDA_VISIBLE_DEVICES": ids} for ids in ("0,1", "2,3")]),
        ({"gpus_per_worker": 3}, GPUS, 64, 9, [{"CUDA_VISIBLE_DEVICES": "0,1,2"}]),
        ({}, ("GPU-ab", "GPU-cd"), 64, 1, [{"CUDA_VISIBLE_DEVICES": "GPU-ab"}]),
        ({"gpus_per_worker": 0}, GPUS, 2, 9, [{"CUDA_VISIBLE_DEVICES": ""}] * 2),
    ],
)
def test_slots_fit_the_machine(settings, gpus, num_cpus, num_cells, expected):
    assert slots(LocalSettings(**settings), gpus, num_cpus, num_cells) == expected


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [({"workers": 5}, GPUS), ({"gpus_per_worker": 5, "workers": 1}, GPUS), ({"cpus_per_worker": 0}, ())],
)
def test_slots_that_do_not_fit_are_refused(settings, gpus):
    with pytest.raises(UserError, match=r"launcher|fit"):
        slots(LocalSettings(**settings), gpus, 8, 10)


def test_an_unknown_launcher_setting_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="workers"):
        LocalLauncher({"name": "local", "worker": 2}, 1)


def test_visible_gpus_are_those_that_the_environment_names():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5"}) == ("3", "5")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


def test_a_host_has_its_own_memory():
    hardware = host_hardware()
    assert hardware.device == "cpu"
    assert hardware.memory_gib == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def test_gpus_have_the_memory_of_the_smallest_and_nothing_is_said_without_the_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_hardware(GPUS, 2) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '81920, NVIDIA A100-SXM4-80GB'\necho '40960, NVIDIA A100-SXM4-40GB'\n")
    tool.chmod(0o755)
    hardware = gpu_hardware(GPUS, 2)
    assert (hardware.memory_gib, hardware.peak_tflops, hardware.max_gpus) == (0.98 * 40, 312, 2)
    tool.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert gpu_hardware(GPUS, 2) is None


def test_a_stage_of_a_launch_inside_a_job_sees_the_job_and_no_task_of_it(sweep):
    (sweep.folder / "in.yaml").write_text(
        "config: {seed: 0}\naxes: {seed: [0]}\n"
        "stages: {in: {command: \"sh -c 'env -0 >{output}/env'\", reads: [seed]}}\n"
    )
    task = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "3", "PMI_RANK": "0", "PMIX_RANK": "0"}
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "2"}
    sweep.env = {**os.environ, **task, **job, "SWEEP_STORE": str(sweep.store)}
    sweep("launch", "in.yaml")
    (path,) = sweep.store.glob("payload/in/*/1/output/env")
    seen = {pair.partition("=")[0] for pair in path.read_text().split("\0")}
    assert job.keys() <= seen and not task.keys() & seen
