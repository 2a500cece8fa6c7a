"""A stage that only counts: steps, checkpoints, metrics and scripted failures, for trying the engine.

It imports nothing heavy. Its product, ``count.txt``, is a chain of digests over all steps, so a resume that
repeated or skipped a step would show.
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
"""Config: ``seed`` and ``count: {num_steps, checkpoint_every, step_s, fail}``; seconds a step are not hashed,
nor is `fail`: null or ``{how, step, attempts}`` with `how` one of raise, data, nan, memory, exit, kill, hang,
and `attempts` the number of first attempts that fail."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Counts to ``count.num_steps``.

    Returns:
        One row with the number of steps and the final digest.

    Raises:
        Exception: whatever `fail` scripts.
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
