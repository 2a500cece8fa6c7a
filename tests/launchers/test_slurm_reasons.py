"""Slurm's reasons: which limits pass, which never do, and what to change then."""

from __future__ import annotations

import pytest

from orchestrator.launchers.slurm.reasons import (
    UNCLEAR,
    UNREACHED,
    is_limit,
    may_release,
    never,
    refusal_advice,
)

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's"
    " size and/or time limits)"
)


@pytest.mark.parametrize(
    ("said", "limit", "advice"),
    [
        (f"sbatch: error: QOSMaxSubmitJobPerUserLimit {POLICY}", True, ""),
        (f"sbatch: error: AssocMaxSubmitJobLimit {POLICY}", True, ""),
        (f"sbatch: error: AssocGrpSubmitJobsLimit {POLICY}", True, ""),
        (f"sbatch: error: QOSGrpSubmitJobsLimit {POLICY}", True, ""),
        (f"sbatch: error: MaxSubmitJobsPerAccount {POLICY}", True, ""),
        ("Batch job submission failed: Required node not available (down, drained or reserved)", True, ""),
        ("Batch job submission failed: Access/permission denied", False, "cluster.account"),
        ("User's group not permitted to use this partition", False, "cluster.partitions"),
        ("Batch job submission failed: Invalid license specification", False, "cluster.sbatch"),
        ("Batch job submission failed: Invalid node name specified", False, "nodelist"),
        ("Batch job submission failed: Job dependency problem", False, "dependency"),
        ("Invalid Trackable RESource (TRES) specification", False, "cluster.gpu_option"),
        ("Requested partition configuration not available now", False, "cluster.partitions"),
        ("sbatch: error: Invalid --exclusive specification", False, "cluster.sbatch"),
        (POLICY, True, ""),  # which of the two it is, it does not say
        ("Slurm temporarily unable to accept job, sleeping and retrying", True, ""),
        (
            "Batch job submission failed: Required partition not available (inactive or drain)",
            True,
            "",
        ),
        (f"sbatch: error: QOSMaxWallDurationPerJobLimit {POLICY}", False, "fewer hours"),
        (f"sbatch: error: AssocMaxWallDurationPerJobLimit {POLICY}", False, "fewer hours"),
        (f"sbatch: error: QOSMaxCpuMinutesPerJobLimit {POLICY}", False, "fewer hours"),
        (f"sbatch: error: QOSMaxMemoryPerJob {POLICY}", False, "less memory"),
        (f"sbatch: error: AssocMaxMemPerJob {POLICY}", False, "less memory"),
        (f"sbatch: error: QOSMaxGRESPerJob {POLICY}", False, "fewer GPUs"),
        (f"sbatch: error: QOSMaxCpuPerJobLimit {POLICY}", False, "fewer CPUs"),
        (f"sbatch: error: QOSMaxNodePerJobLimit {POLICY}", False, "fewer nodes"),
        (f"sbatch: error: QOSMinGRES {POLICY}", False, "at least so much"),
        (f"sbatch: error: QOSMaxCpuPerUserLimit {POLICY}", False, "ask for less"),
        (f"sbatch: error: AssocGrpMemLimit {POLICY}", False, "ask for less"),
        (
            "Batch job submission failed: Invalid account or account/partition combination",
            False,
            "cluster.account",
        ),
        ("Batch job submission failed: Invalid qos specification", False, "cluster.qos"),
        ("Batch job submission failed: Requested node configuration is not available", False, "no node"),
        ("sbatch: error: Memory specification can not be satisfied", False, "cluster.sbatch.mem"),
        ("sbatch: unrecognized option '--foo=3'", False, "drops an option"),
        (
            "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            False,
            "hours",
        ),
        ("a word of the site's own script", False, ""),
    ],
)
def test_only_what_passes_is_waited_for_and_others_say_what_to_change(said, limit, advice):
    assert is_limit(said) is limit
    assert advice in refusal_advice(said) and bool(advice) == bool(refusal_advice(said))


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "QOSMaxWallDurationPerJobLimit",
            "QOSMaxMemoryPerJob",
            "QOSMaxMemoryPerNode",
            "AssocMaxGRESPerNode",
        ),
        *("QOSMaxBillingPerJob", "QOSMaxLicensePerJob", "AssocMaxBBPerJob", "QOSMaxUnknownPerNode"),
        *("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "InvalidAccount", "InvalidQOS"),
        *("AccountNotAllowed", "QOSNotAllowed", "BadConstraints", "QOSMinMemory", "QOSMinCpuNotSatisfied"),
        *("DependencyNeverSatisfied", "ReservationDeleted", "MaxMemPerLimit", "AssociationTimeLimit"),
    ],
)
def test_a_job_that_waits_for_what_never_comes_says_what_to_change(reason):
    assert never(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "",
            "None",
            "Priority",
            "Resources",
            "Licenses",
            "BeginTime",
            "Dependency",
            "JobHeldUser",
            "JobHeldAdmin",
        ),
        *(
            "ReqNodeNotAvail, UnavailableNodes:node3",
            "JobArrayTaskLimit",
            "QOSMaxJobsPerUserLimit",
            "NodeDown",
        ),
        *("QOSGrpCpuLimit", "QOSMaxCpuPerUserLimit", "AssocGrpMemLimit", "AssocMaxJobsLimit", "Reservation"),
        *(
            "QOSGrpNodeLimit",
            "PartitionDown",
            "PartitionInactive",
            "QOSUsageThreshold",
            "SchedDefer",
            "Cleaning",
        ),
    ],
)
def test_a_job_that_waits_for_others_may_start(reason):
    assert not never(reason)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", UNCLEAR),
        ("Zero Bytes were transmitted or received", UNCLEAR),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", UNREACHED),
        ("Batch job submission failed: Invalid account or account/partition combination specified", None),
        ("Batch job submission failed: Requested node configuration is not available", None),
        ("sbatch: error: invalid partition specified: lo", None),
    ],
)
def test_what_sbatch_says_is_unclear_or_unreached_or_a_refusal(said, what):
    assert [pattern for pattern in (UNCLEAR, UNREACHED) if pattern.search(said)] == ([what] if what else [])


@pytest.mark.parametrize(
    ("reason", "restarts", "is_released"),
    [
        ("launch_failed_requeued_held", 1, True),
        ("(launch failed requeued held)", None, True),
        ("user env retrieval failed requeued held", 3, True),
        ("launch_failed_requeued_held", 4, False),
        ("JobHeldUser", 0, False),
        ("JobHoldMaxRequeue", 5, False),
        ("Priority", 0, False),
    ],
)
def test_a_job_that_a_node_failed_to_start_is_released_a_few_times(
    reason: str, restarts: int | None, is_released: bool
) -> None:
    assert may_release(reason, restarts) is is_released
