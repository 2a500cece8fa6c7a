"""`tracker=tensorboard` and `sweep sync --to tensorboard`, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from orchestrator.trackers.protocol import Described, MetricPoint, MirrorProgress
from orchestrator.trackers.tensorboard_mirror import EVENTS, NOTE, TensorboardRun


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return [(event.step, round(event.value, 4)) for event in read.Scalars(tag)]


def test_every_cell_is_one_event_file_and_a_sync_adds_nothing_twice(two: Any) -> None:
    said = two("launch", "two.yaml", "tracker=tensorboard")
    assert "TensorBoard: 2 runs; tensorboard --logdir" in said
    folders = sorted(path.parent for path in two.store.glob(f"sweeps/two/tensorboard/*/{EVENTS}"))
    assert len(folders) == 2
    before = [(folder / EVENTS).read_bytes() for folder in folders]
    for folder in folders:
        assert [step for step, _ in scalars(folder, "count/value")] == list(range(1, 9))
        assert scalars(folder, "count/num_steps") == [(0, 8.0)]
    assert "nothing was missing" in two("sync", "two", "--to", "tensorboard")
    assert before == [(folder / EVENTS).read_bytes() for folder in folders]


def test_a_file_that_a_killed_mirror_left_half_written_becomes_whole(two: Any, tmp_path: Path) -> None:
    two("launch", "two.yaml", "seed=0", "tracker=tensorboard", "tracker.tensorboard.dir=tb")
    (folder,) = (two.folder / "tb").iterdir()
    whole = (folder / EVENTS).read_bytes()
    note = json.loads((folder / NOTE).read_text())
    # Killed after the points were written and before they were noted.
    (folder / NOTE).write_text(json.dumps({"size": 0}))
    (folder / EVENTS).write_bytes(whole + whole[:50])
    two("sync", "two", "--to", "tensorboard")
    # The order of the hyperparameters in the file is another one in each process.
    assert json.loads((folder / NOTE).read_text()) == note and (folder / EVENTS).stat().st_size == len(whole)
    assert [step for step, _ in scalars(folder, "count/value")] == list(range(1, 9))
    (folder / EVENTS).write_bytes(whole[:100])  # a machine that went down kept the note and lost the points
    two("sync", "two", "--to", "tensorboard")
    assert json.loads((folder / NOTE).read_text()) == note and (folder / EVENTS).stat().st_size == len(whole)
    assert [step for step, _ in scalars(folder, "count/value")] == list(range(1, 9))


def test_numbers_go_in_with_their_time_and_what_is_no_number_stays_out(tmp_path: Path) -> None:
    at = time.time()
    config = {"lr": 0.1, "model": {"name": "m", "sizes": [1, 2]}, "none": None, "huge": 10**400}
    cell = Described(id="c", cell="c", sweep="s", revision=1, config=config, axes={}, stages=("s",))
    run = TensorboardRun(tmp_path / "c", cell)
    run.log([MetricPoint("s", 1, 3, at, {"loss": 0.5, "word": "x", "huge": 10**400})], MirrorProgress())
    read = EventAccumulator(str(tmp_path / "c"))
    read.Reload()
    assert read.Tags()["scalars"] == ["s/loss"]
    assert read.PluginTagToContent("hparams").keys() == {"_hparams_/session_start_info"}
    hparams = HParamsPluginData.FromString(
        read.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    ).session_start_info.hparams
    assert hparams["lr"].number_value == 0.1 and hparams["model.name"].string_value == "m"
    assert hparams["model.sizes"].string_value == "[1,2]"
    (event,) = read.Scalars("s/loss")
    assert (event.step, event.value) == (3, 0.5) and abs(event.wall_time - at) < 1e-3
