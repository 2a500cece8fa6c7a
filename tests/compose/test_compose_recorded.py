"""What sweep files become, and how bad ones are refused, is as recorded, see tests/recording.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.compose.given import given
from orchestrator.compose.main import Composition
from orchestrator.compose.overrides import run_settings, run_settings_with
from orchestrator.core.settings import RunSettings
from orchestrator.core.tree import changed_keys
from tests.compose import refused
from tests.compose.accepted import COMPOSED, GIVEN, SETTINGS
from tests.compose.conftest import Project
from tests.recording import Answers, answer, compare, compare_text, plain

RECORDED = Path(__file__).parent / "recorded"


def changed(settings: RunSettings, plainly: RunSettings) -> dict[str, Any]:
    """Dotted key to what it became, of what differs."""
    old, new = (msgspec.to_builtins(each) for each in (plainly, settings))
    return {key: after for key, (_, after) in changed_keys(old, new).items()}


def shown(composition: Composition, plainly: RunSettings) -> Iterator[str]:
    """A composition in lines."""
    sweep = composition.sweep
    yield from (f"note: {note}" for note in composition.notes)
    yield f"settings: {plain(changed(composition.settings, plainly))}"
    yield from (f"stage {name}: {plain(spec)}" for name, spec in sweep.specs.items())
    yield f"config of the first: {plain(sweep.cells[0].config)}"
    for cell in sweep.cells:
        chain = " ".join(f"{sweep.stages[digest].name}={digest[:6]}" for digest in cell.stage_digests)
        yield f"{cell.id}: {plain(cell.axes)} {plain(cell.columns)} {chain}"
    for instance in sweep.stages.values():
        inputs = " ".join(f"{each.stage}[{each.label}]={each.digest[:6]}" for each in instance.inputs)
        yield f"{instance.name} {instance.digest[:6]}: {plain(instance.reads)} {inputs}"
    yield from (f"phase: {plain(phase)}" for phase in sweep.phases)
    if sweep.search is not None:
        yield f"search: {plain(sweep.search)}"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store and no server of whoever runs the tests."""
    for name in ("SWEEP_STORE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", dict.fromkeys(name.partition(",")[0] for name in COMPOSED))
def test_what_is_composed_is_as_recorded(study: Project, quiet: None, name: str) -> None:
    plainly, lines = run_settings(cwd=study.folder), list[str]()
    for each, (text, overrides) in COMPOSED.items():
        if each.partition(",")[0] == name:
            study.write("own.yaml", text)
            lines += [
                f"## {each}: {' '.join(overrides)}",
                *shown(study.compose("own.yaml", overrides), plainly),
                "",
            ]
    compare_text(RECORDED / f"{name.replace(' ', '_')}.txt", "\n".join(lines), {str(study.folder): "FOLDER"})


def of_each(study: Project, texts: Sequence[tuple[str, Sequence[str]]], base: str = "") -> Answers:
    for text, words in texts:
        number = answer(lambda text=text, words=words: len(study.sweep(base + text, *words).sweep.cells))  # type: ignore[misc]
        yield (
            f"{text[-90:].strip()} {' '.join(words)}".strip(),
            plain(number).replace(str(study.folder), "FOLDER"),
        )


def files(*keys: str) -> list[tuple[str, Sequence[str]]]:
    """Sweep files in which one of these keys is wrong, with the other keys that they need."""
    found = []
    for text in refused.FILES:
        lines = {"axes": "axes: {model: [a, b]}", "stages": "stages: {s: {command: x, reads: [model, seed]}}"}
        for part in text.splitlines():
            lines.pop(part.partition(":")[0], None)
        if (text.partition(":")[0] in keys) if keys else not text.startswith(("axes", "stages", "overrides")):
            found.append(("\n".join([*lines.values(), text]), ()))
    return found


SEARCHED = "search: {metric: loss, mode: min, num_cells: 20, "
GROUPS: dict[str, tuple[str, Sequence[tuple[str, Sequence[str]]]]] = {
    "overrides_refused": (refused.SWEEP, [("", words) for words in refused.OVERRIDES]),
    "axes_refused": ("", files("axes", "overrides")),
    "stages_refused": ("", files("stages")),
    "files_refused": ("", files()),
    "conditions_refused": (refused.OPTIMIZERS, [(f"when: {when}", ()) for when in refused.WHEN.values()]),
    "searches_refused": (
        refused.SEARCH,
        [(f"{SEARCHED}{space}}}\n{more}", ()) for more, space in refused.SEARCHES.values()],
    ),
    "labels_refused": (refused.LABELS, [(f"axes: {{{axes}}}", words) for axes, words in refused.LABELLED]),
    "phases_refused": (refused.STAGES, refused.PHASES),
    "rungs_refused": (refused.STAGES, refused.RUNGS),
}
"""Name of a recorded file to what all its sweep files begin with, and how each goes on, with overrides."""


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_refused_is_refused_as_recorded(study: Project, quiet: None, name: str) -> None:
    base, texts = GROUPS[name]
    compare(RECORDED / f"{name}.txt", of_each(study, texts, base))


@pytest.mark.parametrize("part", range(3))
def test_settings_are_what_overrides_make_of_them(study: Project, quiet: None, part: int) -> None:
    study.write("conf/cluster/own.yaml", "defaults: [default]\nhours: 1:30\naccount: 01234\n")
    study.write("conf/launcher/mine.yaml", "name: mine\nspeed: 3\n")
    study.write("conf/tracker/mine.yaml", "name: mine.module:Tracker\noptions: {speed: 3}\n")
    here = study.folder

    def asked() -> Answers:
        plainly = run_settings(cwd=here)
        for words in SETTINGS[part::3]:
            yield " ".join(words), answer(lambda: changed(run_settings(words, cwd=here), plainly))  # noqa: B023
        former = run_settings(["launcher=slurm", "policy.lease_s=7", "policy.limits_s.fit=2"], cwd=here)
        for words in SETTINGS[part::9]:
            yield (
                f"later {' '.join(words)}",
                answer(lambda: changed(run_settings_with(former, words, cwd=here), former)),  # noqa: B023
            )

    found = ((question, plain(a).replace(str(here), "FOLDER")) for question, a in asked())
    compare(RECORDED / f"settings_{part}.txt", found)


def test_a_command_line_stands_for_a_sweep_file_as_recorded() -> None:
    def asked() -> Answers:
        for app, command, words, options in GIVEN:
            every = defaultdict(list[Any], options)
            yield f"{app} {command} {words} {options}", answer(lambda: given(app, command, words, every))  # noqa: B023

    compare(RECORDED / "given.txt", asked())
