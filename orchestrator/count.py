"""A stage that only counts, for trying the engine: steps, checkpoints, metrics and scripted failures.

It imports nothing heavy. Its product, ``count.txt``, is a chain of digests over all steps, so that a resume
that repeats or skips a step changes it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time

from orchestrator.errors import StageFailure
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec

COUNT = StageSpec(
    run="orchestrator.count:main",
    name="count",
    reads=("count", "seed"),
    uses=("count.step_s", "count.fail"),
)
"""The stage's declaration.

Config: ``seed`` and ``count: {num_steps, checkpoint_every, step_s, fail}``. `step_s` (seconds per step) and
`fail` are not hashed. `fail` is null or ``{how, step, attempts}``: `how` is one of raise, data, nan, config,
memory, chance, exit, kill and hang; `attempts` is how many of the first attempts fail.
"""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Count to ``count.num_steps``.

    Returns:
        One row with the number of steps and the final digest.

    Raises:
        Exception: the failure that `fail` scripts.
    """
    num_steps, every = config.count.num_steps, config.count.checkpoint_every
    start, state = 0, str(config.seed)
    if context.resume is not None:
        start, state = context.resume.step, (context.resume.folder / "state").read_text(encoding="utf-8")
    for step in range(start + 1, num_steps + 1):
        _fail_as_scripted(context.uses.count.fail, step, context)
        time.sleep(context.uses.count.step_s)
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()
        context.log(step, num_steps=num_steps, value=int(state[:8], 16) / 2**32)
        if (every and step % every == 0) or context.checkpoint_due(step):
            with context.checkpoint(step) as folder:
                (folder / "state").write_text(state, encoding="utf-8")
            # Right after a checkpoint, so that a stop loses no step.
            context.stop_if_asked()
    (context.output / "count.txt").write_text(f"{num_steps} {state}\n", encoding="utf-8")
    return [{"num_steps": num_steps, "digest": state}]


def _fail_as_scripted(fail: Config | None, step: int, context: Context) -> None:
    if fail is None or step != fail.step or context.attempt > fail.attempts:
        return
    match fail.how:
        case "raise":
            raise ValueError(f"scripted failure at step {step}")
        case "data" | "nan" | "config" as cause:
            raise StageFailure(cause, f"scripted {cause} failure at step {step}")
        case "memory":
            raise MemoryError(f"scripted at step {step}")
        case "chance":
            raise RuntimeError(f"scripted failure that a retry may cure, at step {step}")
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(0.1)
