"""Apps of the shapes that public Hydra apps have, run as a user runs them."""

from __future__ import annotations

import pytest

from tests.apps import app, shapes
from tests.conftest import Sweep


@pytest.mark.long
def test_a_template_project_runs_and_goes_on_from_its_checkpoint(sweep: Sweep) -> None:
    app.write(sweep.folder, shapes.TEMPLATE)
    user = Sweep(sweep.folder, sweep.store, app.environment())
    words = ["experiment=wide", "+dies=true", "ckpt_path={checkpoint}", "seed=1"]
    said = user("launch", "--app", "src/train.py", *words, "--checkpoints", "checkpoints/*.ckpt")
    assert "(oc.env): data.data_dir, paths.root_dir, paths.data_dir" in said
    (row,) = user.json("collect", "train")
    assert (row["value"], row["start"], row["attempts"]) == (16, 2, 2)
    # Neither the folders of the project are identity, nor is the checkpoint to go on from.
    said = user("plan", "--app", "src/train.py", "experiment=wide", "+dies=true", "seed=1,2")
    assert "app    1    -       1" in said
    (output,) = sweep.store.glob("payload/app/*/2/output")
    assert {"train.log", "checkpoints", ".hydra"} <= {path.name for path in output.iterdir()}


@pytest.mark.long
def test_structured_configs_alone_and_tasks_in_their_output_folders(sweep: Sweep) -> None:
    app.write(sweep.folder, shapes.STORE)
    user = Sweep(sweep.folder, sweep.store, app.environment())
    user("launch", "--app", "app.py", "db=glob(*)", "timeout=5")
    rows = user.json("collect", "app")
    assert [(row["db"], row["port"], row["time.out"], row["folder"]) for row in rows] == [
        ("mysql", 3306, 5.0, "output"),
        ("postgres", 5432, 5.0, "output"),
    ]
    assert not (sweep.folder / "here.txt").exists()
    assert len([*sweep.store.glob("payload/app/*/1/output/here.txt")]) == 2


@pytest.mark.long
def test_a_package_with_a_search_path_and_a_launcher_of_its_own(sweep: Sweep) -> None:
    app.write(sweep.folder, shapes.PACKAGE)
    user = Sweep(sweep.folder, sweep.store, app.environment())
    words = ["data=small,large", "launcher.name=other", "polysweep.launcher.workers=1"]
    said = user("launch", "--app", "-m tool.train", *words)
    assert "the app has its own launcher" in said
    assert [row["value"] for row in user.json("collect", "train")] == [6, 60]
    logs = [path.read_text() for path in sweep.store.glob("payload/app/*/1/log.txt")]
    assert any("[__main__][INFO] - rate 2 of large" in log for log in logs)
