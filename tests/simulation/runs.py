"""Runs of all kinds, by a word."""

from __future__ import annotations

from orchestrator.simulation import schedules
from orchestrator.simulation.schedules import Play, Played
from tests.simulation.cluster_runs import ClusterPlay
from tests.simulation.ray_runs import RayPlay
from tests.simulation.request_runs import RequestPlay
from tests.simulation.requested_jobs import JobRequestPlay, RayRequestPlay

KINDS = (
    *("workers", "requests", "requests", "jobs", "jobs", "workers", "ray", "ray"),
    *("jobs+requests", "jobs+requests", "ray+requests", "ray+requests"),
)
"""Which kind a seed plays, in turn, where nobody chooses. Odd seeds have a folder, even ones a bucket."""

CLASSES: dict[str, type[Play]] = {
    "workers": Play,
    "jobs": ClusterPlay,
    "requests": RequestPlay,
    "ray": RayPlay,
    "jobs+requests": JobRequestPlay,
    "ray+requests": RayRequestPlay,
}


def play(seed: int, kind: str | None = None, lines: list[str] | None = None) -> Played:
    """A run of a seed."""
    return schedules.play(seed, lines=lines, kind=CLASSES[kind or KINDS[seed % len(KINDS)]])
