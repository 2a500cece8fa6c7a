"""What the cells cost and with what code they were made, as far as the rows say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.reporting import About

Row = Mapping[str, Any]
_DEVICES = ("num_gpus", "num_devices", "num_processes", "world_size")
"""Columns that may say on how many devices a cell was trained; one without them."""


def gpu_hours(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns hours of training times devices, in total and by model; null where no row says how long."""
    cells: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if _number(row.get("train_seconds")):
            key = ("cell", "model", "task", "languages", "seed")
            cells[tuple(str(row.get(name)) for name in key)] = row
    by_model: dict[str, dict[str, float]] = {}
    is_counted = False
    for row in cells.values():
        num_devices = next((num for name in _DEVICES if (num := _number(row.get(name)))), None)
        is_counted = is_counted or num_devices is not None
        spent = by_model.setdefault(str(row.get("model")), {"hours": 0.0, "num_cells": 0, "num_tokens": 0})
        spent["hours"] += (_number(row.get("train_seconds")) or 0.0) * (num_devices or 1) / 3600
        spent["num_cells"] += 1
        spent["num_tokens"] += int(_number(row.get("train_tokens")) or 0)
    devices = sorted({str(row["device"]) for row in rows if row.get("device")})
    return {
        "total": sum(spent["hours"] for spent in by_model.values()) if by_model else None,
        "num_cells": len(cells),
        "devices_known": is_counted,
        "devices": devices,
        "by_model": [{"model": model, **spent} for model, spent in sorted(by_model.items())],
    }


def provenance(rows: Sequence[Row], about: About | None) -> dict[str, Any]:
    """Returns code versions with the cells that each made, and from the facts launches and hosts."""
    made = {(str(row.get("cell", "")), str(row["code"])) for row in rows if row.get("code")}
    codes = Counter(code for _, code in made)
    found: dict[str, Any] = {
        "codes": [{"code": code, "num_cells": num} for code, num in sorted(codes.items())],
        "revisions": sorted({str(row["revision"]) for row in rows if row.get("revision")}),
        "launches": [],
        "hosts": [],
    }
    if about is not None:
        found["launches"] = [
            {name: getattr(launch, name) for name in launch.__struct_fields__} for launch in about.launches
        ]
        found["hosts"] = list(about.hosts)
    return found


def retries(about: About | None) -> list[dict[str, Any]]:
    """Returns the stages that took more than one attempt, with what was changed from one to the next."""
    return [
        {
            "stage": retry.stage,
            "cells": list(retry.cells),
            "attempts": [
                {
                    "number": attempt.number,
                    "outcome": attempt.outcome,
                    "why": attempt.why,
                    "message": attempt.message,
                    "changed": {key: list(pair) for key, pair in attempt.changed.items()},
                }
                for attempt in retry.attempts
            ],
        }
        for retry in (about.retries if about is not None else ())
    ]


def _number(value: Any) -> float | None:
    """Returns a number from a cell of any table, None for an empty one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
