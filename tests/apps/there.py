"""Hydra apps on a scheduler: a task sees what it sees here, and goes on from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.apps import app, shapes
from tests.conftest import Sweep
from tests.launchers.on_scheduler import OnScheduler

WORDS = ("model=small,wide", "seed=3", "opt.lr=0.2", "+opt.extra.more=3", "required=x")


def seen(store: Path) -> list[dict[str, Any]]:
    """Return what each task saw, in the order of the models' widths."""
    found = [json.loads(path.read_text()) for path in store.glob("payload/app/*/1/output/seen.json")]
    return sorted(found, key=lambda each: each["resolved"]["model"]["width"])


def assert_a_task_sees_what_it_sees_here(on: OnScheduler, *there: str) -> None:
    """Launch an app here and there, and compare types, configs, HydraConfig and results.

    Args:
        on: the command where the scheduler is.
        there: words that choose the launcher.
    """
    app.write(on.folder)
    here = Sweep(on.folder, on.store.parent / "here", app.environment())
    here("launch", "--app", "train.py", *WORDS)
    on("launch", "--app", "train.py", *WORDS, *there)
    on.until_done(2, "train", timeout_s=150)
    pairs = list(zip(seen(on.store), seen(here.store), strict=True))
    assert len(pairs) == 2
    for mine, its in pairs:
        assert mine["forms"] == its["forms"] and mine["model"] == its["model"]
        # Jobs run the copy of the folder that the launch kept.
        assert its["cwd"] == str(on.folder) and Path(mine["cwd"]).is_relative_to(on.store / "code")
        assert (Path(mine["cwd"]) / "train.py").read_text() == (on.folder / "train.py").read_text()
        differ = {a[0] for a, b in zip(mine["hydra"], its["hydra"], strict=True) if a != b}
        places = {"/run/dir", "/sweep/dir", "/sweep/subdir", "/runtime/output_dir", "/runtime/cwd"}
        assert differ <= places | {"/runtime/config_sources/1/path"}, differ - places
        assert mine["token"] == app.ENVIRONMENT["APP_TOKEN"]
    columns = ("cell", "model", "width", "value")
    rows = [
        [{key: row[key] for key in columns} for row in each.json("collect", "train")] for each in (on, here)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2


def assert_an_app_goes_on_from_its_checkpoint(on: OnScheduler, *there: str) -> None:
    """Launch a template project that dies once there, with the checkpoint as an override.

    Args:
        on: the command where the scheduler is.
        there: words that choose the launcher.
    """
    app.write(on.folder, shapes.TEMPLATE)
    words = ["experiment=wide", "+dies=true", "ckpt_path={checkpoint}", "seed=1"]
    on("launch", "--app", "src/train.py", *words, *there, "--checkpoints", "checkpoints/*.ckpt")
    on.until_done(1, "train", timeout_s=150)
    (row,) = on.json("collect", "train")
    assert (row["value"], row["start"], row["attempts"]) == (16, 2, 2)
