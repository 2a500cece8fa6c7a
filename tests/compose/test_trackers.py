"""`tracker=[a,b]`: several mirrors at once, and combinations that mean nothing."""

from __future__ import annotations

import pytest

from orchestrator.compose.overrides import run_settings, run_settings_with
from orchestrator.errors import UserError


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("tracker=store", set()),
        ("tracker=none", set()),
        ("tracker=wandb", {"wandb"}),
        ("tracker=mlflow", {"mlflow"}),
        ("tracker=[mlflow]", {"mlflow"}),
        ("tracker=[wandb,store]", {"wandb"}),
        ("tracker=[store,wandb,wandb]", {"wandb"}),
        ("tracker=[trackio,tensorboard,mlflow,wandb]", {"wandb", "mlflow", "tensorboard", "trackio"}),
    ],
)
def test_each_combination_is_its_mirrors_in_whatever_order(word: str, found: set[str]) -> None:
    assert set(run_settings([word]).tracker.mirrors) == found


def test_each_mirror_of_several_has_its_own_options() -> None:
    words = ["tracker=[wandb,mlflow]", "tracker.options.project=p", "tracker.mlflow.experiment=e"]
    mirrors = run_settings(words).tracker.mirrors
    assert mirrors["wandb"]["project"] == "p" and mirrors["mlflow"] == {"experiment": "e"}


def test_another_choice_replaces_the_mirrors_of_an_earlier_launch() -> None:
    earlier = run_settings(["tracker=[wandb,mlflow]", "tracker.mlflow.experiment=e"])
    assert set(run_settings_with(earlier, ["tracker=tensorboard"]).tracker.mirrors) == {"tensorboard"}
    changed = run_settings_with(earlier, ["tracker.mlflow.experiment=f"])
    assert changed.tracker.mirrors["mlflow"] == {"experiment": "f"} and "wandb" in changed.tracker.mirrors


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("tracker=mlflw", "unknown tracker 'mlflw'"),
        ("tracker=[wandb,mlflw]", "unknown tracker 'mlflw'"),
        ("tracker=[none,wandb]", "none goes with no other tracker"),
        ("launcher=[local,slurm]", "one option is chosen"),
    ],
)
def test_what_means_nothing_is_an_error(word: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        run_settings([word])
    assert what in error.value.what


def test_a_tracker_of_ones_own_goes_with_mirrors_that_have_a_section(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "conf/tracker"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine.module:Tracker\noptions: {speed: 3}\n")
    tracker = run_settings(["tracker=[mine,mlflow]"], tmp_path).tracker
    assert tracker.name == "mine.module:Tracker" and set(tracker.mirrors) == {"mlflow"}
    with pytest.raises(UserError, match=r"both set tracker\.name"):
        run_settings(["tracker=[mine,wandb]"], tmp_path)
