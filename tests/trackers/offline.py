"""Reading back what W&B wrote offline: its transaction log (LevelDB's record format around protobufs)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


class OfflineRun(NamedTuple):
    """One offline folder."""

    id: str
    name: str
    group: str
    project: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    step_metrics: dict[str, str]
    exit_code: int | None


def runs_in(folder: Path) -> list[OfflineRun]:
    """Reads all offline runs, the oldest first; what a killed mirror had not written yet is none."""
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [run for run in map(read, paths) if run is not None]


def read(path: Path) -> OfflineRun | None:
    """Reads one file."""
    run, history, summary, axes, code = None, [], {}, {}, None
    for record in _records(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
            case "history":
                history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
            case "summary":
                summary.update({_key(i): json.loads(i.value_json) for i in record.summary.update})
            case "metric" if record.metric.step_metric:
                axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                code = record.exit.exit_code
    if run is None:
        return None
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    return OfflineRun(
        run.run_id, run.display_name, run.run_group, run.project, config, history, summary, axes, code
    )


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _records(data: bytes) -> Iterator[Any]:
    position, parts = HEADER, []  # the file's own header has the size of a record's
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]  # 1 whole, 2 first, 3 middle, 4 last
        position += HEADER
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
