"""Credentials never reach the store: refused where they are settings, redacted where they are texts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"
GITHUB = "ghp_" + "a1B2" * 9
COUNT = """
description: one cell
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 3, step_s: 0, fail: null}%s}
axes: {seed: "range(0,1)"}
stages: [count]
"""


def texts_with(store: Path, secret: str) -> list[str]:
    """The files of a store that hold a text, by their path in it."""
    found = []
    for path in store.rglob("*"):
        if path.is_file() and secret.encode() in path.read_bytes():
            found.append(path.relative_to(store).as_posix())
    return found


@pytest.mark.parametrize(
    ("config", "words", "named"),
    [
        (f", wandb: {{api_key: {KEY}}}", (), "wandb.api_key"),
        (f", note: {GITHUB}", (), "note"),
        (", url: 'https://me:hunter2@h/x'", (), "url"),
        (", key: '${oc.env:MY_SECRET}'", (), "key"),
        (", note: '${oc.env:MY_SECRET}'", (), "note"),
        ("", (f"cluster.environment={{WANDB_API_KEY: {KEY}}}",), "cluster.environment.WANDB_API_KEY"),
        ("", ("cluster.setup=['export TOKEN=hunter2']",), "cluster.setup"),
        ("", ("launcher=ray", "launcher.address=http://me:hunter2@h:8265"), "launcher.address"),
        ("", ("launcher=ray", f"launcher.environment.HF_TOKEN={KEY}"), "launcher.environment.HF_TOKEN"),
        ("", (f"+a.db_password={KEY}",), "a.db_password"),
        ("", ("tracker=wandb", f"tracker.options.entity={GITHUB}"), "tracker.options.entity"),
        ("", (f"+trainer.x={GITHUB},{GITHUB}1",), "trainer.x"),
    ],
)
def test_a_credential_among_the_settings_is_refused_and_nothing_is_recorded(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, config: str, words: tuple[str, ...], named: str
) -> None:
    monkeypatch.setenv("MY_SECRET", KEY)
    (sweep.folder / "one.yaml").write_text(COUNT % config)
    said = sweep("launch", "one.yaml", *words, code=2)
    assert said.startswith(f"error: {named} looks like a secret") and "environment" in said
    assert KEY not in said and GITHUB not in said and "hunter2" not in said
    assert not list(sweep.store.glob("sweeps/*"))


def test_a_key_in_a_file_of_the_config_folder_is_refused_with_its_place(sweep: Any) -> None:
    (sweep.folder / "conf/model").mkdir(parents=True)
    (sweep.folder / "conf/model/mine.yaml").write_text(f"hub: {{token: {KEY}}}\n")
    (sweep.folder / "conf/config.yaml").write_text(
        "defaults: [_self_, model: mine]\nseed: 0\n"
        "count: {num_steps: 2, checkpoint_every: 3, step_s: 0, fail: null}"
    )
    (sweep.folder / "one.yaml").write_text("description: x\naxes: {seed: [0]}\nstages: [count]\n")
    said = sweep("launch", "one.yaml", code=2)
    assert said.startswith("error: model.hub.token looks like a secret") and "one.yaml" in said


def test_a_command_with_a_key_and_a_store_with_a_password_are_refused(sweep: Any) -> None:
    (sweep.folder / "one.yaml").write_text(
        f"config: {{a: 1}}\naxes: {{a: [1]}}\nstages: {{s: {{command: 'x --api-key {KEY}', reads: [a]}}}}"
    )
    assert "stages.s.command looks like a secret" in sweep("launch", "one.yaml", code=2)
    (sweep.folder / "one.yaml").write_text(COUNT % "")
    said = sweep("launch", "one.yaml", "store.url=s3://me:hunter2@bucket/x", code=2)
    assert "holds a user or a password" in said and "hunter2" not in said


STAGE = """
import os


def main(config, inputs, context):
    print("printed", os.environ["MY_SECRET"])
    raise RuntimeError(f"denied: {os.environ['MY_SECRET']} https://me:hunter2@h/x GITHUB")
"""


def test_messages_tracebacks_command_lines_and_diffs_are_kept_without_credentials(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", KEY)
    folder = sweep.folder
    (folder / "failing.py").write_text("")
    (folder / "one.yaml").write_text(
        f"# once: {GITHUB}\nconfig: {{a: 1}}\naxes: {{a: [1]}}\n"
        "stages: {s: {run: 'failing:main', reads: [a]}}"
    )
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@y")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "x")):
        subprocess.run([*git, *words], cwd=folder, check=True)
    (folder / "failing.py").write_text(STAGE.replace("GITHUB", GITHUB))
    sweep("launch", "one.yaml", "policy.retries={unknown: 0}", code=1)
    (end,) = sweep.store.glob("records/s/*/1/end.json")
    assert "denied: *** https://me:***@h/x ***" in end.read_text()
    (log,) = sweep.store.glob("payload/s/*/1/log.txt")
    assert f"printed {KEY}" in log.read_text()  # what the stage itself prints is its own
    assert "denied: ***" in log.read_text()
    assert texts_with(sweep.store, KEY) == [log.relative_to(sweep.store).as_posix()]
    assert not texts_with(sweep.store, GITHUB) and not texts_with(sweep.store, "hunter2")
    (request,) = sweep.store.glob("sweeps/one/requests/*.json")
    assert "+    print(" in request.read_text()


def test_credentials_in_the_code_of_a_snapshot_are_named_by_file_and_line(sweep: Any) -> None:
    (sweep.folder / "one.yaml").write_text(COUNT % "")
    (sweep.folder / "conf").mkdir()
    (sweep.folder / "train.py").write_text(
        f"import os\nURL = 'https://me:hunter2@h/x'\nK = '{GITHUB}'\nsort_key = 'a'\n"
    )
    (sweep.folder / "conf/a.yaml").write_text(f"lr: 1\nwandb:\n  api_key: {KEY}\n")
    said = sweep("launch", "one.yaml", "launcher.snapshot=true")
    for place in ("train.py:2", "train.py:3", "conf/a.yaml:3"):
        assert f"warning: {place} looks like a secret" in said
    assert said.count("warning:") == 3 and "hunter2" not in said and KEY not in said
    (kept,) = sweep.store.glob("code/*/project-0/train.py")
    assert GITHUB in kept.read_text()  # the files are those that run
