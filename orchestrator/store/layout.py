"""The layout of the store: the key of each record and the folder of each payload.

These functions build the keys, so that the whole layout can be seen in one place. Numbers n and k count from
1, i from 0; g is the generation of a product.

::

    store.json
    sweeps/<sweep>/<k>.json                       sealed revision k
    sweeps/<sweep>/requests/<n>.json              launch, rerun, cancel, discard, in order
    sweeps/<sweep>/submissions/<n>.json           a submission to a scheduler, with <n>/{job,driver}.json,
                                                  <n>/closings/<k>.json, <n>/reports/<index>.<restart>.json
    sweeps/<sweep>/decisions/<k>/<n>.json         decision n about the cells of revision k
    sweeps/<sweep>/workers/<nonce>.json           for how long a worker has held its GPUs
    sweeps/<sweep>/notices/<event>/               a try to send a notice: <channel>.<n>.json, and then
                                                  <channel>.<n>.outcome.json
    sweeps/<sweep>/{report,logs,wandb,mlflow,tensorboard,trackio}/
    nodes/<n>.json                                what happened on a node, in order
    records/<stage>/<digest>/spec.json
    records/<stage>/<digest>/<n>/{claim,start,heartbeat,end}.json
    done/<stage>/<digest>.<g>.json
    void/<stage>/<digest>.<g>.json
    retired/<stage>/<policy>/<digest>.<g>.json
    payload/<stage>/<digest>/<n>/                 log.txt metrics.jsonl outcome.json
                                                  checkpoints/ output/ scratch/ work/ audit/
    code/<digest>.json                            the manifest of a code snapshot; written last
    code/<digest>/{polysweep,project-<i>}/        in a bucket: code/<digest>.archive/files.tar
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from orchestrator.store.objects import Listing


class Named(Protocol):
    """What names a stage instance: the instance itself, an input, or a record of its product."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def digest(self) -> str:
        """Digest of the instance."""


STORE = "store.json"
LOG, METRICS, OUTCOME = "log.txt", "metrics.jsonl", "outcome.json"
OUTPUT, CHECKPOINTS, SCRATCH, WORK = "output", "checkpoints", "scratch", "work"
AUDIT, SEGMENTS = "audit", "segments.json"
"""Folder of checkpoints that are kept for an audit, and in it a file on what the attempt ran."""
NODES = "nodes"
"""Prefix of the reports about nodes."""
CODE = "code"
"""Prefix of all code snapshots."""
CODE_PACKAGE = "polysweep"
"""Folder within a code snapshot from which `orchestrator` is imported."""
CLAIM, START, HEARTBEAT, END = "claim.json", "start.json", "heartbeat.json", "end.json"
RECORDS = (CLAIM, START, HEARTBEAT, END)


def revisions(sweep: str) -> str:
    """Return the prefix of a sweep's sealed revisions."""
    return f"sweeps/{sweep}"


def revision(sweep: str, number: int) -> str:
    """Return the key of a sealed revision, numbered from 1."""
    return f"sweeps/{sweep}/{number}.json"


def requests(sweep: str) -> str:
    """Return the prefix of a sweep's requests."""
    return f"sweeps/{sweep}/requests"


def request(sweep: str, number: int) -> str:
    """Return the key of a request, numbered from 1; zero-padded, so that listings are in order."""
    # Requests are applied in the order of their numbers, so names sort like numbers.
    return f"{requests(sweep)}/{number:06d}.json"


def submissions(sweep: str) -> str:
    """Return the prefix of a sweep's submissions to schedulers."""
    return f"sweeps/{sweep}/submissions"


def submission(sweep: str, number: int) -> str:
    """Return the key of a submission's intent, numbered from 1."""
    return f"{submissions(sweep)}/{number:06d}.json"


def accepted(sweep: str, number: int) -> str:
    """Return the key of the record with the scheduler's id for a submission."""
    return f"{submissions(sweep)}/{number:06d}/job.json"


def driver(sweep: str, number: int) -> str:
    """Return the key of a driver's report about the workers that it started."""
    return f"{submissions(sweep)}/{number:06d}/driver.json"


def closings(sweep: str, number: int) -> str:
    """Return the prefix of the recorded ends of a submission's jobs."""
    return f"{submissions(sweep)}/{number:06d}/closings"


def closing(sweep: str, number: int, k: int) -> str:
    """Return the key of one batch of recorded ends, numbered from 1."""
    return f"{closings(sweep, number)}/{k:06d}.json"


def job_reports(sweep: str, number: int) -> str:
    """Return the prefix of the exit reports of a submission's jobs."""
    return f"{submissions(sweep)}/{number:06d}/reports"


def job_report(sweep: str, number: int, index: int, restart: int) -> str:
    """Return the key of the exit report of one start of a job."""
    return f"{job_reports(sweep, number)}/{index}.{restart}.json"


def decision(sweep: str, revision: int, number: int) -> str:
    """Return the key of a decision about a revision's cells, numbered from 1."""
    return f"sweeps/{sweep}/decisions/{revision}/{number:06d}.json"


def workers(sweep: str) -> str:
    """Return the prefix of the records of a sweep's workers."""
    return f"sweeps/{sweep}/workers"


def worker(sweep: str, nonce: str) -> str:
    """Return the key of the record of one worker."""
    return f"{workers(sweep)}/{nonce}.json"


def notices(sweep: str) -> str:
    """Return the prefix of the records about a sweep's notices."""
    return f"sweeps/{sweep}/notices"


def notice_try(sweep: str, event: str, channel: str, number: int) -> str:
    """Return the key of one try to send a notice, numbered from 1."""
    return f"{notices(sweep)}/{event}/{channel}.{number}.json"


def notice_outcome(sweep: str, event: str, channel: str, number: int) -> str:
    """Return the key of the outcome of a try to send a notice."""
    return f"{notices(sweep)}/{event}/{channel}.{number}.outcome.json"


def node_report(number: int) -> str:
    """Return the key of a report about a node, numbered from 1."""
    return f"{NODES}/{number:06d}.json"


def job_logs(sweep: str, number: int) -> str:
    """Return the folder of a submission's script and of its jobs' own logs."""
    return f"{logs(sweep)}/jobs-{number:06d}"


def report(sweep: str) -> str:
    """Return the folder of a sweep's table and figures."""
    return f"sweeps/{sweep}/report"


def logs(sweep: str) -> str:
    """Return the folder of the logs of launchers and workers."""
    return f"sweeps/{sweep}/logs"


def mirror(sweep: str, name: str) -> str:
    """Return the folder of one of a sweep's mirrors: its files, its notes and its lock."""
    return f"sweeps/{sweep}/{name}"


def stage_records(stage: str) -> str:
    """Return the prefix of a stage's records, with one folder per digest."""
    return f"records/{stage}"


def stage_spec(of: Named) -> str:
    """Return the key of the content that a stage's digest was computed from."""
    return f"records/{of.stage}/{of.digest}/spec.json"


def attempts(of: Named) -> str:
    """Return the prefix of a stage instance's attempts, with one folder per attempt."""
    return f"records/{of.stage}/{of.digest}"


def attempt(of: Named, number: int, record: str) -> str:
    """Return the key of one record of an attempt; attempts are numbered from 1."""
    return f"records/{of.stage}/{of.digest}/{number}/{record}"


def done_index(stage: str) -> str:
    """Return the flat prefix of the `done` records of a stage."""
    # Flat and apart from the attempts: one listing shows which of thousands of instances are done.
    return f"done/{stage}"


def done(of: Named, generation: int) -> str:
    """Return the key of the record that a generation of a product exists."""
    return f"done/{of.stage}/{of.digest}.{generation}.json"


def void_index(stage: str) -> str:
    """Return the flat prefix of the `void` records of a stage."""
    return f"void/{stage}"


def void(of: Named, generation: int) -> str:
    """Return the key of the record that a generation no longer counts."""
    return f"void/{of.stage}/{of.digest}.{generation}.json"


def retired_index(stage: str, policy: str) -> str:
    """Return the flat prefix of the `retired` records of a stage under one policy."""
    return f"retired/{stage}/{policy}"


def retired(of: Named, policy: str, generation: int) -> str:
    """Return the key of the record that files of a generation were deleted on purpose."""
    return f"retired/{of.stage}/{policy}/{of.digest}.{generation}.json"


def payload(of: Named, number: int) -> str:
    """Return the folder that an attempt writes to."""
    # Apart from the records of attempts, which are never deleted, so that numbers are never reused.
    return f"payload/{of.stage}/{of.digest}/{number}"


def output(of: Named, number: int) -> str:
    """Return the folder of the files that become an attempt's product."""
    return f"{payload(of, number)}/{OUTPUT}"


def log(of: Named, number: int) -> str:
    """Return the key of an attempt's log of standard output and error."""
    return f"{payload(of, number)}/{LOG}"


def metrics(of: Named, number: int) -> str:
    """Return the key of an attempt's metrics, in JSON lines."""
    return f"{payload(of, number)}/{METRICS}"


def checkpoints(of: Named, number: int) -> str:
    """Return the folder of an attempt's checkpoints, with one folder per step."""
    return f"{payload(of, number)}/{CHECKPOINTS}"


def code(digest: str) -> str:
    """Return the folder of a code snapshot."""
    return f"{CODE}/{digest}"


def code_record(digest: str) -> str:
    """Return the key of a code snapshot's manifest, which is written last."""
    # Beside the folder, not in it: the folder holds nothing but code.
    return f"{CODE}/{digest}.json"


def code_archive(digest: str) -> str:
    """Return the folder of a code snapshot's archive, used in buckets instead of single files."""
    return f"{CODE}/{digest}.archive"


def code_project(number: int) -> str:
    """Return the name of a project's folder in a code snapshot, numbered from 0."""
    return f"project-{number}"


def parse_generation(name: str) -> tuple[str, int] | None:
    """Return digest and generation of ``<digest>.<g>.json``; None for any other name."""
    digest, _, rest = name.partition(".")
    generation, _, suffix = rest.partition(".")
    return (digest, int(generation)) if suffix == "json" and generation.isdigit() else None


def levels(prefix: str, paths: Collection[str]) -> dict[str, Listing]:
    """Return the listing of each level under a prefix, given all paths below it."""
    files: dict[str, set[str]] = {prefix: set()}
    folders: dict[str, set[str]] = {prefix: set()}
    for path in paths:
        *above, name = path.split("/")
        place = prefix
        for part in above:
            folders.setdefault(place, set()).add(part)
            place = f"{place}/{part}"
            files.setdefault(place, set())
        files[place].add(name)
    folder_names = {place: tuple(sorted(folders.get(place, ()))) for place in files}
    return {place: Listing(tuple(sorted(files[place])), folder_names[place]) for place in files}
