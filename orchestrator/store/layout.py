"""Where each record and payload lies in the store: the only module that knows.

::

    store.json
    sweeps/<sweep>/<k>.json                       sealed revision k
    sweeps/<sweep>/requests/<n>.json              launch, rerun, cancel, discard, in order
    sweeps/<sweep>/submissions/<n>.json           given to a scheduler; beside it <n>/{job,driver}.json,
                                                  <n>/closings/<k>.json, <n>/reports/<index>.<restart>.json
    sweeps/<sweep>/{report,logs,wandb}/
    records/<stage>/<digest>/spec.json
    records/<stage>/<digest>/<n>/{claim,start,heartbeat,end}.json
    done/<stage>/<digest>.<g>.json
    void/<stage>/<digest>.<g>.json
    retired/<stage>/<policy>/<digest>.<g>.json
    payload/<stage>/<digest>/<n>/                 log.txt metrics.jsonl outcome.json
                                                  checkpoints/ output/ scratch/ work/
    code/<digest>.json                            the files of a code snapshot; written last
    code/<digest>/{polysweep,project-<k>}/        in a bucket: code/<digest>.archive/files.tar
"""

from __future__ import annotations

STORE = "store.json"
LOG, METRICS, OUTCOME = "log.txt", "metrics.jsonl", "outcome.json"
OUTPUT, CHECKPOINTS, SCRATCH, WORK = "output", "checkpoints", "scratch", "work"
CODE = "code"
"""The prefix of all code snapshots."""
CODE_PACKAGE = "polysweep"
"""The folder of a code snapshot from which `orchestrator` is imported."""
CLAIM, START, HEARTBEAT, END = "claim.json", "start.json", "heartbeat.json", "end.json"
RECORDS = (CLAIM, START, HEARTBEAT, END)


def revisions(sweep: str) -> str:
    """The prefix of a sweep's sealed revisions."""
    return f"sweeps/{sweep}"


def revision(sweep: str, number: int) -> str:
    """A sealed revision, numbered from 1."""
    return f"sweeps/{sweep}/{number}.json"


def requests(sweep: str) -> str:
    """The prefix of a sweep's requests."""
    return f"sweeps/{sweep}/requests"


def request(sweep: str, number: int) -> str:
    """A request, numbered from 1; zero-padded so that a listing is in order."""
    return f"{requests(sweep)}/{number:06d}.json"


def submissions(sweep: str) -> str:
    """The prefix of what a sweep gave to schedulers."""
    return f"sweeps/{sweep}/submissions"


def submission(sweep: str, number: int) -> str:
    """The intent of a submission, numbered from 1."""
    return f"{submissions(sweep)}/{number:06d}.json"


def accepted(sweep: str, number: int) -> str:
    """The id that the scheduler gave to a submission."""
    return f"{submissions(sweep)}/{number:06d}/job.json"


def driver(sweep: str, number: int) -> str:
    """What a job that starts workers itself sees of them."""
    return f"{submissions(sweep)}/{number:06d}/driver.json"


def closings(sweep: str, number: int) -> str:
    """The prefix of what was found of a submission's jobs that are over."""
    return f"{submissions(sweep)}/{number:06d}/closings"


def closing(sweep: str, number: int, k: int) -> str:
    """One of the closings, numbered from 1."""
    return f"{closings(sweep, number)}/{k:06d}.json"


def job_reports(sweep: str, number: int) -> str:
    """The prefix of the last words of a submission's jobs."""
    return f"{submissions(sweep)}/{number:06d}/reports"


def job_report(sweep: str, number: int, index: int, restart: int) -> str:
    """The last words of one start of a job."""
    return f"{job_reports(sweep, number)}/{index}.{restart}.json"


def job_logs(sweep: str, number: int) -> str:
    """The folder of a submission's script and of its jobs' own logs."""
    return f"{logs(sweep)}/jobs-{number:06d}"


def report(sweep: str) -> str:
    """The folder of a sweep's table and figures."""
    return f"sweeps/{sweep}/report"


def logs(sweep: str) -> str:
    """The folder of the logs of launchers and workers."""
    return f"sweeps/{sweep}/logs"


def mirror(sweep: str) -> str:
    """The folder of a sweep's mirror to W&B: its files, and what it remembers."""
    return f"sweeps/{sweep}/wandb"


def stage_records(stage: str) -> str:
    """The prefix under which a stage has one folder a digest."""
    return f"records/{stage}"


def stage_spec(stage: str, digest: str) -> str:
    """What was hashed."""
    return f"records/{stage}/{digest}/spec.json"


def attempts(stage: str, digest: str) -> str:
    """The prefix under which a stage has one folder an attempt."""
    return f"records/{stage}/{digest}"


def attempt(stage: str, digest: str, number: int, record: str) -> str:
    """A record of an attempt, numbered from 1."""
    return f"records/{stage}/{digest}/{number}/{record}"


def done_index(stage: str) -> str:
    """The flat prefix of a stage's products."""
    return f"done/{stage}"


def done(stage: str, digest: str, generation: int) -> str:
    """The record that generation g of a product exists."""
    return f"done/{stage}/{digest}.{generation}.json"


def void_index(stage: str) -> str:
    """The flat prefix of a stage's voided products."""
    return f"void/{stage}"


def void(stage: str, digest: str, generation: int) -> str:
    """The record that generation g no longer counts."""
    return f"void/{stage}/{digest}.{generation}.json"


def retired_index(stage: str, policy: str) -> str:
    """The flat prefix of what was retired of a stage's products under a policy."""
    return f"retired/{stage}/{policy}"


def retired(stage: str, policy: str, digest: str, generation: int) -> str:
    """The record that files of generation g are absent by decision."""
    return f"retired/{stage}/{policy}/{digest}.{generation}.json"


def payload(stage: str, digest: str, number: int) -> str:
    """The folder that an attempt writes."""
    return f"payload/{stage}/{digest}/{number}"


def output(stage: str, digest: str, number: int) -> str:
    """The folder of the files that become an attempt's product."""
    return f"{payload(stage, digest, number)}/{OUTPUT}"


def log(stage: str, digest: str, number: int) -> str:
    """What an attempt printed."""
    return f"{payload(stage, digest, number)}/{LOG}"


def metrics(stage: str, digest: str, number: int) -> str:
    """An attempt's metrics, as JSON lines."""
    return f"{payload(stage, digest, number)}/{METRICS}"


def checkpoints(stage: str, digest: str, number: int) -> str:
    """The folder of an attempt's checkpoints, one folder a step."""
    return f"{payload(stage, digest, number)}/{CHECKPOINTS}"


def code(digest: str) -> str:
    """The folder of a code snapshot."""
    return f"{CODE}/{digest}"


def code_record(digest: str) -> str:
    """The record that a code snapshot is whole."""
    return f"{CODE}/{digest}.json"


def code_archive(digest: str) -> str:
    """The folder of a code snapshot's archive: where its files are not kept each under its own name."""
    return f"{CODE}/{digest}.archive"


def code_project(number: int) -> str:
    """A project in a code snapshot, numbered from 0."""
    return f"project-{number}"


def parse_generation(name: str) -> tuple[str, int] | None:
    """Reads ``<digest>.<g>.json``; None for any other name."""
    digest, _, rest = name.partition(".")
    generation, _, suffix = rest.partition(".")
    return (digest, int(generation)) if suffix == "json" and generation.isdigit() else None
