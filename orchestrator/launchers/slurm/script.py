"""The batch script of a submission, and its submission with sbatch.

This is the only module that uses submitit, and only its writing of scripts: no pickles, no file for each
task, no polling. Each job runs ``python -m orchestrator.launchers.slurm.job STORE SWEEP SUBMISSION`` as one
task on its first node.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.jobs.records import SETUP_FAILED, Submission
from orchestrator.launchers.base import SubmitOutcome, Verdict
from orchestrator.launchers.slurm.options import Value, options
from orchestrator.launchers.slurm.query import find, slurm
from orchestrator.launchers.slurm.reasons import UNCLEAR, UNREACHED, is_limit, refusal_advice
from orchestrator.launchers.slurm.settings import ClusterProfile

JOB_MODULE = "orchestrator.launchers.slurm.job"
IGNORING_STOPS = """trap '' TERM USR1 USR2; exec "$@\""""
"""A shell command that starts the worker with stop signals ignored.

Until the worker installs its handlers, a signal would kill it, and the job would count as failed. What is
ignored stays ignored across `exec`."""

SETUP_MARK = "sweep: line"
"""Start of the log line that names the failed line of `cluster.setup`."""

# An ERR trap follows the rules of `set -e`: conditions, and all but the last command of `a && b`, may fail.
# Functions do not inherit the trap. Commands of a sourced file may fail too; there BASH_SOURCE is deeper.
# `exit 0` would end the job as if it had worked, hence the EXIT trap. Other exit codes are the user's choice.
_CHECK = f"""sweep_setup_failed() {{
  local number=$(($2 - sweep_setup_begin))
  echo "{SETUP_MARK} $number of cluster.setup failed with exit code $1: ${{sweep_setup[number - 1]:-}}" >&2
  exit {SETUP_FAILED}
}}
sweep_setup_ended() {{
  echo "{SETUP_MARK} '$1' of cluster.setup ended the job, with exit code 0: no worker was started" >&2
  exit {SETUP_FAILED}
}}
trap 'sweep_code=$?; [ ${{#BASH_SOURCE[@]}} -gt 1 ] || sweep_setup_failed $sweep_code $LINENO' ERR
trap '[ $? -ne 0 ] || sweep_setup_ended "$BASH_COMMAND"' EXIT
sweep_setup_begin=$LINENO"""
"""Bash that runs before `cluster.setup`: traps which report the line that failed and end the job."""


_INPUT = (
    "SLURM_EXPORT_ENV SRUN_EXPORT_ENV SLURM_STDINMODE SLURM_STDOUTMODE SLURM_STDERRMODE SLURM_LABELIO "
    "SLURM_TIMELIMIT SLURM_IMMEDIATE SLURM_EXCLUSIVE SLURM_EXACT SLURM_WAIT SLURM_TEST_EXEC SLURM_HOSTFILE "
    "SLURM_WORKING_DIR SLURM_REMOTE_CWD SLURM_CLUSTERS SLURM_DISTRIBUTION SLURM_STEP_GRES"
)
"""Variables that our srun would read as options, whoever set them; the script unsets them."""


def script(
    submission: Submission, cluster: ClusterProfile, *, store: str, sweep: str, code: Path, logs: Path
) -> str:
    """Return the complete text that sbatch receives.

    Args:
        submission: what to submit.
        cluster: the profile.
        store: URL of the store.
        sweep: its name.
        code: folder of the code snapshot.
        logs: folder of the jobs' own logs, one file for each task; a restarted task continues its file.

    Raises:
        UserError: a path has characters that Slurm cannot pass on, or `cluster.sbatch` sets a reserved
            option.
    """
    # imported here, so that other uses of this module do not load submitit
    from submitit.slurm.slurm import _make_sbatch_string

    python = cluster.python or sys.executable
    _check_paths(
        {"the store": store, "the code": str(code), "the folder": submission.folder, "python": python}
    )
    _check_paths({"the folder of the logs": str(logs)})
    for what, path in (("the folder of the logs", logs), ("the folder", submission.folder)):
        if "\\" in str(path):
            raise UserError(f"{what} has a backslash: {str(path)!r}", where="Slurm takes it for an escape")
    # the code is a folder in the store, so the store's path is at fault
    if ":" in str(code):
        raise UserError(
            f"the store's path has a colon: {str(code)!r}",
            where="jobs import the code from there, and PYTHONPATH takes a colon for the end of a path",
            fix="store.url= another folder",
        )
    # %a is the task's index; other % of the path would be read as patterns too
    given = options(submission, cluster, output=str(logs).replace("%", "%%") + "/%a.log")
    job = [python, "-P", "-m", JOB_MODULE, store, sweep, str(submission.number)]
    command = "exec " + shlex.join(
        [*_srun(submission, cluster, given), "sh", "-c", IGNORING_STOPS, "sweep", *job]
    )
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
    # submitit always writes these two options, which a profile may have dropped
    unset = "|".join(re.escape(name) for name in ("signal", "open-mode") if name not in given)
    return re.sub(rf"^#SBATCH --({unset})=.*\n", "", text, flags=re.MULTILINE) if unset else text


def _check_paths(paths: dict[str, str]) -> None:
    """Raise `UserError` for paths with characters that no batch script can hold."""
    for what, path in paths.items():
        if not path.isprintable():
            raise UserError(f"{what} has a character that no batch script can hold: {path!r}")


def _setup(lines: Sequence[str]) -> list[str] | None:
    """Return the user's shell lines, unchanged, between the traps that report a failed line."""
    if not lines:
        return None
    text = "\n".join(lines)
    listed = " ".join(quoted(line) for line in text.split("\n"))
    return [f"sweep_setup=({listed})", _CHECK, text, "trap - ERR EXIT"]


def _srun(submission: Submission, cluster: ClusterProfile, given: dict[str, Value]) -> list[str]:
    """Return the srun command for one task on the job's first node.

    The worker runs as a step, because Slurm signals only steps when it preempts a job with a grace time; a
    bare script would miss it. ``--overlap`` lets a stage start steps of its own, which would otherwise wait
    for ours to end. ``--export=ALL`` passes on the environment of this script, also when the job was
    submitted with ``--export=NONE``.
    """
    first = ["--relative=0"] if submission.resources.num_nodes > 1 else []
    cpus = [f"--cpus-per-task={given['cpus-per-task']}"] if "cpus-per-task" in given else []
    return ["srun", "--nodes=1", "--ntasks=1", *first, *cpus, "--overlap", "--export=ALL", *cluster.srun]


def _exports(cluster: ClusterProfile, code: Path) -> list[str]:
    """Return the shell lines that set the environment of the workers."""
    variables = [("PYTHONUTF8", "1")]  # independent of the node's locale
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
    # the snapshot comes first, so that it takes precedence over installed packages
    variables.append(("PYTHONPATH", shlex.quote(str(code)) + '"${PYTHONPATH:+:$PYTHONPATH}"'))
    return [f"export {name}={value}" for name, value in variables]


def _text(value: str | int | float | bool) -> str:
    """Return the value of a variable: text unchanged, numbers and booleans as in JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _expanded(path: str) -> str:
    """Quote a path so that the shell on the node expands variables in it, and nothing else."""
    return '"' + re.sub(r'([\\"`])', r"\\\1", path) + '"'


def quoted(text: str) -> str:
    """Quote text for bash, byte for byte and on one line. Slurm refuses scripts with DOS line ends."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + re.sub(r"[^ -~]", lambda m: "".join(f"\\x{b:02x}" for b in m[0].encode()), escaped) + "'"


SBATCH_TIMEOUT_S = 60.0
_LOOKS, _LOOK_S = 3, 1.0
"""How often to search for a job of unknown id, and by how much the pause grows each time, in seconds."""

_ANSWER = re.compile(r"^\s*(?P<job>[1-9]\d*)(;(?P<cluster>[\w.-]+))?\s*$", re.MULTILINE)
"""The job id that ``sbatch --parsable`` prints on its own line. A site's wrapper may print others beside
it."""

_SLURMS_OWN = re.compile(r"Batch job submission failed|Unable to contact slurm controller")
"""Messages that only sbatch itself prints, when there is no job."""


def submit(text: str, submission: Submission) -> SubmitOutcome:
    """Submit a script with sbatch; if the result is unclear, search for a job of the submission's name.

    A lost reply must not lead to a second job, and a job that exists must not be overlooked. So the exit code
    alone decides nothing:

    1. Success with exactly one job id: accepted. With other lines beside it, the id found by name takes
       precedence.
    2. Success without exactly one id, a timeout, or an error after which the job may exist: search by name,
       several times.
    3. An error that is not sbatch's own, as of a site's wrapper: search by name once.
    4. Nothing found: the message decides between unreached, a limit and a refusal.

    Args:
        text: the script.
        submission: its name is unique among jobs, and its cluster is where the job must go.
    """
    try:
        result = slurm("sbatch", "--parsable", text=text, timeout_s=SBATCH_TIMEOUT_S)
    except InfrastructureError as error:
        if "there is no" in error.what:
            return SubmitOutcome(Verdict.UNREACHED, message=error.what)
        return _looked_for(submission, error.what)
    answers = list(_ANSWER.finditer(result.output))
    message = " ".join(result.error.split())
    if result.code == 0 and len(answers) == 1:
        job, cluster = answers[0]["job"], answers[0]["cluster"] or ""
        if result.output.strip() != answers[0][0].strip():  # a number among other lines may be something else
            job = _looked_for(submission, "").job or job
        return _accepted(submission, job, cluster)
    if result.code == 0 or answers or UNCLEAR.search(message):
        return _looked_for(submission, message or " ".join(result.output.split()))
    if not _SLURMS_OWN.search(message):  # a site's wrapper may fail after sbatch succeeded
        try:
            job = find(submission)
        except InfrastructureError:
            return SubmitOutcome(Verdict.UNCLEAR, message=_short(message))
        if job is not None:
            return SubmitOutcome(Verdict.ACCEPTED, job=job)
    if UNREACHED.search(message):
        return SubmitOutcome(Verdict.UNREACHED, message=_short(message))
    if is_limit(message):
        return SubmitOutcome(Verdict.LIMIT, message=_short(message))
    advice = refusal_advice(message)
    return SubmitOutcome(Verdict.REFUSED, message=_short(message) + (f"; {advice}" if advice else ""))


def _accepted(submission: Submission, job: str, cluster: str) -> SubmitOutcome:
    """Accept a job, or cancel it if it went to another cluster, where no query of ours would find it."""
    if cluster.casefold() in ("", submission.cluster.casefold()):
        return SubmitOutcome(Verdict.ACCEPTED, job=job)
    try:
        ended = slurm("scancel", "-M", cluster, job)
    except InfrastructureError as error:
        return SubmitOutcome(
            Verdict.UNCLEAR, message=f"job {job} went to cluster {cluster}, and {error.what}"
        )
    if ended.code != 0:
        return SubmitOutcome(Verdict.UNCLEAR, message=f"job {job} went to cluster {cluster}: {ended.problem}")
    return SubmitOutcome(
        Verdict.REFUSED,
        message=f"sbatch gave the job to cluster {cluster}, not {submission.cluster}, and it was cancelled; "
        f"cluster.sbatch.clusters: {cluster} submits to that cluster",
    )


def _looked_for(submission: Submission, message: str) -> SubmitOutcome:
    """Search for the job of a submission by name, a few times: the controller may be slow to list it."""
    for look in range(_LOOKS):
        time.sleep(_LOOK_S * look)
        try:
            if (job := find(submission)) is not None:
                return SubmitOutcome(Verdict.ACCEPTED, job=job)
        except InfrastructureError:
            continue
    return SubmitOutcome(Verdict.UNCLEAR, message=_short(message))


def _short(words: str) -> str:
    """Shorten a message of sbatch for display."""
    return re.sub(r"sbatch: (error: )?", "", words)[:300]
