"""A command that ends with code 0 when its job is signalled goes on in the next start of that job."""

from __future__ import annotations

import pytest

FIT = """
import os, signal, sys, time
from pathlib import Path
work, output = map(Path, sys.argv[1:])
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
state = work / "step"
step = int(state.read_text()) if state.exists() else 0
(output / "start").write_text(str(step))
while step < 60:
    time.sleep(0.25)
    step += 1
    state.write_text(str(step))
    with open(os.environ["SWEEP_METRICS"], "a") as stream:
        stream.write('{"step": %d}\\n' % step)
    if received:
        sys.exit(0)
(output / "finished").touch()
(output / "rows.csv").write_text(f"steps,start\\n{step},{(output / 'start').read_text()}\\n")
"""
SWEEP = """
config: {x: 1}
axes: {x: [1]}
stages:
  count: {command: "{python} fit.py {work} {output}", reads: [x], results: rows.csv, finished: finished}
"""


@pytest.mark.long
@pytest.mark.parametrize(("number", "why"), [("TERM", "stopped"), ("USR1", "deadline")])
def test_a_signalled_command_that_exits_with_0_goes_on_in_the_next_start(jobs, number, why):
    (jobs.folder / "fit.py").write_text(FIT)
    (jobs.folder / "jobs.yaml").write_text(SWEEP)
    jobs.launch("jobs.yaml", "cluster.hours=0.03", "cluster.min_hours=0.03")
    jobs.until(lambda: len(jobs.steps()) > 8)
    task = jobs.task()
    jobs.cluster.run("scancel", f"--signal={number}", task)
    jobs.until(lambda: jobs.ends())
    [end] = jobs.ends()
    assert (end["outcome"], end["why"]) == ("released", why)
    jobs.until_job("PENDING", task)
    jobs.wake()
    jobs.until_done(1)
    (row,) = jobs.json("collect", "jobs")
    assert row["steps"] == 60 and row["start"] > 8 and row["attempts"] == 2
