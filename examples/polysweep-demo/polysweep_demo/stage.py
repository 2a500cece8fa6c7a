"""A stage: a random walk, whose product is its last position."""

from __future__ import annotations

import os
import random

from orchestrator.stage import Config, Context, Inputs, Row, StageSpec

WALK = StageSpec(name="walk", run="polysweep_demo.stage:walk", reads=("seed", "num_steps"))
"""Config: ``seed`` and ``num_steps``."""


def walk(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Walk ``num_steps`` steps, and return the last position and the priority that the process ran with."""
    chance, position = random.Random(config.seed), 0
    for step in range(1, config.num_steps + 1):
        position += chance.choice((-1, 1))
        context.log(step, position=position)
    (context.output / "position.txt").write_text(f"{position}\n")
    return [{"position": position, "nice": os.nice(0)}]
