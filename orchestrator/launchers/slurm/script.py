"""The batch script of a submission: the one place that knows submitit, which writes the options.

Of submitit only the writing of scripts is used: no pickle, no file a task, no polling. What runs is
``python -m orchestrator.launchers.slurm.job STORE SWEEP SUBMISSION`` as one task on the job's first node.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from orchestrator.core.jobs import Resources, Submission
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.launchers.slurm.settings import Cluster

JOB_MODULE = "orchestrator.launchers.slurm.job"
DEAF = """trap '' TERM USR1 USR2; exec "$@\""""
"""A signal that comes before the worker can heed it must not end it as if it had failed."""


def script(
    submission: Submission, cluster: Cluster, *, store: str, sweep: str, code: Path, logs: Path
) -> str:
    """Returns the whole text that sbatch is given.

    Args:
        submission: what to submit.
        cluster: the profile.
        store: URL of the store.
        sweep: its name.
        code: folder of the code snapshot.
        logs: folder of the jobs' own logs, one file a task; a task that is started anew goes on in its file.

    Raises:
        InfrastructureError: submitit finds no Slurm here.
        UserError: submitit refuses an option.
    """
    from submitit.slurm.slurm import SlurmExecutor

    try:
        executor = SlurmExecutor(folder=logs)
        executor.update_parameters(**_parameters(submission, cluster, logs))
    except RuntimeError as error:
        raise InfrastructureError(
            "there is no Slurm here: no srun", fix="run it on a login node of the cluster; sweep doctor"
        ) from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"submitit refuses an option: {error}", where="cluster") from error
    python = [cluster.python or sys.executable, "-P", "-m", JOB_MODULE]
    words = [*_srun(submission.resources, cluster), "sh", "-c", DEAF, "sweep", *python]
    command = "exec " + shlex.join([*words, store, sweep, str(submission.number)])
    exports = _exports(cluster, code)
    text: str = executor._make_submission_file_text("\n".join([*exports, command]), submission.name)
    return text


def _parameters(submission: Submission, cluster: Cluster, logs: Path) -> dict[str, Any]:
    """What submitit knows by name; the rest goes as further options, which outrank what it would set."""
    asked, last = submission.resources, len(submission.tasks) - 1
    throttle = f"%{submission.max_running}" if submission.max_running else ""
    more: dict[str, Any] = {
        "array": f"0-{last}{throttle}",
        "signal": f"USR1@{cluster.signal_s}",
        "output": f"{logs}/%a.log",
        "chdir": submission.folder,
        "requeue": True,
    }
    if cluster.reservation:
        more["reservation"] = cluster.reservation
    if asked.gpus_per_node and cluster.gpu_option == "gpus-per-node":
        more["gpus-per-node"] = _gpus(asked, cluster)
    more.update({name.lstrip("-").replace("_", "-"): value for name, value in cluster.sbatch.items()})
    known = {
        "job_name": submission.name,
        "time": minutes(asked.hours),
        "nodes": asked.num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": asked.cpus,
        "mem": f"{round(asked.memory_gib * 1024)}M" if asked.memory_gib is not None else None,
        "partition": asked.partition or None,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(submission.exclude) or None,
        "exclusive": cluster.exclusive or None,
        "gres": f"gpu:{_gpus(asked, cluster)}"
        if asked.gpus_per_node and cluster.gpu_option == "gres"
        else None,
        "setup": list(cluster.setup) or None,
        "wckey": None,
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": more,
    }
    return {key: value for key, value in known.items() if value is not None or key == "wckey"}


def _gpus(asked: Resources, cluster: Cluster) -> str:
    return f"{cluster.gpu_type}:{asked.gpus_per_node}" if cluster.gpu_type else str(asked.gpus_per_node)


def _srun(asked: Resources, cluster: Cluster) -> list[str]:
    """One task on the first node, as a step: a bare script misses the signal at a preemption with grace."""
    first = ["--relative=0"] if asked.num_nodes > 1 else []
    return [
        "srun",
        "--nodes=1",
        "--ntasks=1",
        *first,
        f"--cpus-per-task={asked.cpus}",
        *cluster.srun,
    ]


def _exports(cluster: Cluster, code: Path) -> list[str]:
    variables = {name: f'"{value}"' for name, value in cluster.environment.items()}
    if cluster.scratch is not None:
        variables["SWEEP_SCRATCH"] = f'"{cluster.scratch}"'
    if cluster.cache is not None:
        for name, folder in (
            ("TRITON_CACHE_DIR", "triton"),
            ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
            ("CUDA_CACHE_PATH", "cuda"),
        ):
            variables[name] = f'"{cluster.cache}/{folder}"'
    # the snapshot outranks what is installed
    variables["PYTHONPATH"] = shlex.quote(str(code)) + '"${PYTHONPATH:+:$PYTHONPATH}"'
    return [f"export {name}={value}" for name, value in variables.items()]


def minutes(hours: float) -> int:
    """Returns what sbatch's ``--time`` is given: whole minutes, at least one."""
    return max(1, math.ceil(hours * 60))
