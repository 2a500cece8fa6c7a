"""What the partitions of a cluster have, by the profile or else by ``sinfo``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.errors import UserError, nearest
from orchestrator.launchers.slurm import query
from orchestrator.launchers.slurm.programs import asked
from orchestrator.launchers.slurm.settings import Partition


def partitions(names: Mapping[str, Partition | None], cluster: str = "") -> dict[str, Partition]:
    """Fill in what the profile does not say of a partition from ``sinfo``: of its smallest node.

    Args:
        names: name to what it has, None to ask Slurm.
        cluster: Slurm's name for the cluster; "" for the one here.

    Raises:
        UserError: Slurm does not know a partition.
        InfrastructureError: it does not answer.
    """
    if all(told is not None for told in names.values()):
        return {name: told for name, told in names.items() if told is not None}
    found: dict[str, list[list[str]]] = {}
    options = query.cluster(cluster).options if cluster else ()
    # --all: hidden ones too
    for line in asked("sinfo", *options, "-ah", "-o", "%R|%G|%c|%m|%l").splitlines():
        name, *rest = line.strip().split("|")
        if len(rest) == 4:
            found.setdefault(name, []).append(rest)
    filled = {}
    for name, told in names.items():
        if told is not None:
            filled[name] = told
        elif name not in found:
            raise UserError(
                f"Slurm knows no partition {name!r}", where="cluster.partitions", allowed=nearest(name, found)
            )
        else:
            rows = found[name]
            filled[name] = Partition(
                gpus_per_node=min(_gpus(row[0]) for row in rows),
                cpus_per_node=min(_number(row[1]) for row in rows),
                memory_gib=min(_number(row[2]) for row in rows) / 1024,
                max_hours=_hours(rows[0][3]),
            )
    return filled


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _gpus(gres: str) -> int:
    return sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)*:(\d+)", gres))


def _hours(limit: str) -> float | None:
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"[\d:]+", clock) or (days and not days.isdigit()):
        return None  # infinite
    parts = [int(part) for part in clock.split(":")]
    parts = [0] * (3 - len(parts)) + parts if len(parts) > 1 else [0, parts[0], 0]
    return int(days or 0) * 24 + parts[0] + parts[1] / 60 + parts[2] / 3600
