"""The batch script of a submission: the one place that knows submitit, which writes it down.

Of submitit only the writing of scripts is used: no pickle, no file a task, no polling. What runs is
``python -m orchestrator.launchers.slurm.job STORE SWEEP SUBMISSION`` as one task on the job's first node.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.jobs.records import Submission
from orchestrator.launchers.base import SubmitOutcome, Verdict
from orchestrator.launchers.jobs import SETUP_FAILED
from orchestrator.launchers.slurm.options import Value, options
from orchestrator.launchers.slurm.query import find, slurm
from orchestrator.launchers.slurm.reasons import UNCLEAR, UNREACHED, is_limit, refusal_advice
from orchestrator.launchers.slurm.settings import ClusterProfile

JOB_MODULE = "orchestrator.launchers.slurm.job"
DEAF = """trap '' TERM USR1 USR2; exec "$@\""""
"""A signal that comes before the worker can heed it must not end it as if it had failed."""

SETUP_SAID = "sweep: line"
"""How the line of the log begins that names the line of `cluster.setup`."""

# An ERR trap follows the rules of `set -e`: a condition, and all but the last command of `a && b`, may fail.
# Functions do not inherit it; a sourced file, whose own commands may fail, has a deeper BASH_SOURCE.
# An `exit 0` would end the job as if it had worked; another code is the user's own word, and stays.
_CHECK = f"""sweep_setup_failed() {{
  local number=$(($2 - sweep_setup_begin))
  echo "{SETUP_SAID} $number of cluster.setup failed with exit code $1: ${{sweep_setup[number - 1]:-}}" >&2
  exit {SETUP_FAILED}
}}
sweep_setup_ended() {{
  echo "{SETUP_SAID} '$1' of cluster.setup ended the job, with exit code 0: no worker was started" >&2
  exit {SETUP_FAILED}
}}
trap 'sweep_code=$?; [ ${{#BASH_SOURCE[@]}} -gt 1 ] || sweep_setup_failed $sweep_code $LINENO' ERR
trap '[ $? -ne 0 ] || sweep_setup_ended "$BASH_COMMAND"' EXIT
sweep_setup_begin=$LINENO"""

_INPUT = (
    "SLURM_EXPORT_ENV SRUN_EXPORT_ENV SLURM_STDINMODE SLURM_STDOUTMODE SLURM_STDERRMODE SLURM_LABELIO "
    "SLURM_TIMELIMIT SLURM_IMMEDIATE SLURM_EXCLUSIVE SLURM_EXACT SLURM_WAIT SLURM_TEST_EXEC SLURM_HOSTFILE "
    "SLURM_WORKING_DIR SLURM_REMOTE_CWD SLURM_CLUSTERS SLURM_DISTRIBUTION SLURM_STEP_GRES"
)
"""Variables that our srun would read as options, whoever set them."""


def script(
    submission: Submission, cluster: ClusterProfile, *, store: str, sweep: str, code: Path, logs: Path
) -> str:
    """Return the whole text that sbatch is given.

    Args:
        submission: what to submit.
        cluster: the profile.
        store: URL of the store.
        sweep: its name.
        code: folder of the code snapshot.
        logs: folder of the jobs' own logs, one file a task; a task that is started anew goes on in its file.

    Raises:
        UserError: a path has what Slurm cannot pass on, or `cluster.sbatch` sets what is ours to set.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    python = cluster.python or sys.executable
    _check_paths(
        {"the store": store, "the code": str(code), "the folder": submission.folder, "python": python}
    )
    _check_paths({"the folder of the logs": str(logs)})
    for what, path in (("the folder of the logs", logs), ("the folder", submission.folder)):
        if "\\" in str(path):
            raise UserError(f"{what} has a backslash: {str(path)!r}", where="Slurm takes it for an escape")
    if ":" in str(code):
        raise UserError(
            f"the store's path has a colon: {str(code)!r}",
            where="jobs import the code from there, and PYTHONPATH takes a colon for the end of a path",
            fix="store.url= another folder",
        )
    given = options(submission, cluster, output=str(logs).replace("%", "%%") + "/%a.log")
    job = [python, "-P", "-m", JOB_MODULE, store, sweep, str(submission.number)]
    command = "exec " + shlex.join([*_srun(submission, cluster, given), "sh", "-c", DEAF, "sweep", *job])
    text: str = _make_sbatch_string(
        command="\n".join([*_exports(cluster, code), f"unset {_INPUT}", command]),
        folder=logs,
        job_name=submission.name,
        time=None,
        nodes=None,
        wckey=None,
        setup=_setup(cluster.setup),
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters=given,
    )
    unset = "|".join(re.escape(name) for name in ("signal", "open-mode") if name not in given)
    return re.sub(rf"^#SBATCH --({unset})=.*\n", "", text, flags=re.MULTILINE) if unset else text


def _check_paths(paths: dict[str, str]) -> None:
    for what, path in paths.items():
        if not path.isprintable():
            raise UserError(f"{what} has a character that no batch script can hold: {path!r}")


def _setup(lines: Sequence[str]) -> list[str] | None:
    """Return the user's lines of shell, word for word, between what notices that one failed."""
    if not lines:
        return None
    text = "\n".join(lines)
    listed = " ".join(quoted(line) for line in text.split("\n"))
    return [f"sweep_setup=({listed})", _CHECK, text, "trap - ERR EXIT"]


def _srun(submission: Submission, cluster: ClusterProfile, given: dict[str, Value]) -> list[str]:
    """One task on the first node, as a step: a bare script misses the signal at a preemption with grace.

    It overlaps: a command that starts steps of its own would else wait for ours to end. It exports all: a job
    that was submitted with ``--export=NONE`` has an environment all the same, that of this script.
    """
    first = ["--relative=0"] if submission.resources.num_nodes > 1 else []
    cpus = [f"--cpus-per-task={given['cpus-per-task']}"] if "cpus-per-task" in given else []
    return ["srun", "--nodes=1", "--ntasks=1", *first, *cpus, "--overlap", "--export=ALL", *cluster.srun]


def _exports(cluster: ClusterProfile, code: Path) -> list[str]:
    variables = [("PYTHONUTF8", "1")]  # whatever the node's locale
    variables += [
        (name, quoted(_text(value))) for name, value in cluster.environment.items() if value is not None
    ]
    if cluster.scratch is not None:
        variables.append(("SWEEP_SCRATCH", _expanded(cluster.scratch)))
    if cluster.cache is not None:
        for name, folder in (
            ("TRITON_CACHE_DIR", "triton"),
            ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
            ("CUDA_CACHE_PATH", "cuda"),
        ):
            variables.append((name, _expanded(f"{cluster.cache}/{folder}")))
    # the snapshot outranks what is installed
    variables.append(("PYTHONPATH", shlex.quote(str(code)) + '"${PYTHONPATH:+:$PYTHONPATH}"'))
    return [f"export {name}={value}" for name, value in variables]


def _text(value: str | int | float | bool) -> str:
    """Return what a variable holds: text as it is, numbers and booleans as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _expanded(path: str) -> str:
    """Quote a path in which the shell of the node replaces variables, and nothing else."""
    return '"' + re.sub(r'([\\"`])', r"\\\1", path) + '"'


def quoted(text: str) -> str:
    """Quote text for bash, byte for byte and on one line: Slurm refuses scripts with DOS line ends."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + re.sub(r"[^ -~]", lambda m: "".join(f"\\x{b:02x}" for b in m[0].encode()), escaped) + "'"


SBATCH_TIMEOUT_S = 60.0
_LOOKS, _LOOK_S = 3, 1.0
_ANSWER = re.compile(r"^\s*(?P<job>[1-9]\d*)(;(?P<cluster>[\w.-]+))?\s*$", re.MULTILINE)
"""What ``sbatch --parsable`` prints: a line of its own, beside which a site's wrapper may print others."""

_SLURMS_OWN = re.compile(r"Batch job submission failed|Unable to contact slurm controller")
"""What only sbatch says, when there is no job."""


def submit(text: str, submission: Submission) -> SubmitOutcome:
    """Give a script to sbatch; where that does not know how it ended, look for a job of that name.

    Args:
        text: the script.
        submission: whose name no other job has, and whose cluster the job must go to.
    """
    try:
        said = slurm("sbatch", "--parsable", text=text, timeout_s=SBATCH_TIMEOUT_S)
    except InfrastructureError as error:
        if "there is no" in error.what:
            return SubmitOutcome(Verdict.UNREACHED, said=error.what)
        return _looked_for(submission, error.what)
    answers = list(_ANSWER.finditer(said.output))
    words = " ".join(said.error.split())
    if said.code == 0 and len(answers) == 1:
        job, cluster = answers[0]["job"], answers[0]["cluster"] or ""
        if said.output.strip() != answers[0][0].strip():  # a number among other lines may be another's
            job = _looked_for(submission, "").job or job
        return _accepted(submission, job, cluster)
    if said.code == 0 or answers or UNCLEAR.search(words):
        return _looked_for(submission, words or " ".join(said.output.split()))
    if not _SLURMS_OWN.search(words):  # a site's wrapper may fail after sbatch has succeeded
        try:
            job = find(submission)
        except InfrastructureError:
            return SubmitOutcome(Verdict.UNCLEAR, said=_short(words))
        if job is not None:
            return SubmitOutcome(Verdict.ACCEPTED, job=job)
    if UNREACHED.search(words):
        return SubmitOutcome(Verdict.UNREACHED, said=_short(words))
    if is_limit(words):
        return SubmitOutcome(Verdict.LIMIT, said=_short(words))
    advice = refusal_advice(words)
    return SubmitOutcome(Verdict.REFUSED, said=_short(words) + (f"; {advice}" if advice else ""))


def _accepted(submission: Submission, job: str, cluster: str) -> SubmitOutcome:
    """Take a job, but not one of another cluster: nobody would look for it there."""
    if cluster.casefold() in ("", submission.cluster.casefold()):
        return SubmitOutcome(Verdict.ACCEPTED, job=job)
    try:
        ended = slurm("scancel", "-M", cluster, job)
    except InfrastructureError as error:
        return SubmitOutcome(Verdict.UNCLEAR, said=f"job {job} went to cluster {cluster}, and {error.what}")
    if ended.code != 0:
        return SubmitOutcome(Verdict.UNCLEAR, said=f"job {job} went to cluster {cluster}: {ended.problem}")
    return SubmitOutcome(
        Verdict.REFUSED,
        said=f"sbatch gave the job to cluster {cluster}, not {submission.cluster}, and it was cancelled; "
        f"cluster.sbatch.clusters: {cluster} submits to that cluster",
    )


def _looked_for(submission: Submission, said: str) -> SubmitOutcome:
    for look in range(_LOOKS):
        time.sleep(_LOOK_S * look)
        try:
            if (job := find(submission)) is not None:
                return SubmitOutcome(Verdict.ACCEPTED, job=job)
        except InfrastructureError:
            continue
    return SubmitOutcome(Verdict.UNCLEAR, said=_short(said))


def _short(words: str) -> str:
    return re.sub(r"sbatch: (error: )?", "", words)[:300]
