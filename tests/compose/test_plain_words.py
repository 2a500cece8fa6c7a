"""Words without quotes are read alike in sweep files, config folders and overrides: text stays text."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from orchestrator.compose.files import shipped
from orchestrator.compose.overrides import run_settings
from orchestrator.compose.reading import read_yaml
from orchestrator.errors import UserError

SWEEP = """
config: {value: x}
axes: {value: [WORD]}
stages: {fit: {command: "echo {config.value}", reads: [value]}}
"""

TEXTS = [
    *("no", "NO", "No", "off", "on", "yes", "y", "n", "010", "01234", "-01", "12:30", "190:20:30", "1_000"),
    *("2026-11-26", "2026_11", "0b11", "0o18", "007.5", "1e", "e5", "inf", "nan", "TrUe", "nULL", "1.2.3"),
]
NUMBERS = [
    *(("0", 0), ("10", 10), ("-3", -3), ("+3", 3), ("1e-3", 0.001), ("1e5", 1e5), (".5", 0.5), ("-.5", -0.5)),
    *(("1.", 1.0), ("0o17", 15), ("0x1F", 31), ("true", True), ("False", False), ("NULL", None)),
]


def values(project, text, *overrides):
    cells = project.sweep(text, *overrides).sweep.cells
    return [(cell.axes["value"], cell.config["value"], type(cell.config["value"])) for cell in cells]


def test_what_yaml_1_1_takes_for_something_else_is_text_and_its_own_label(project):
    wanted = [(word, word, str) for word in TEXTS]
    assert values(project, SWEEP.replace("WORD", ", ".join(TEXTS))) == wanted
    assert values(project, SWEEP, f"value={','.join(TEXTS)}") == wanted
    assert values(project, SWEEP, "value=no") == [("no", "no", str)]


def test_numbers_truth_values_and_null_are_those_of_yaml_1_2(project):
    words = [word for word, _ in NUMBERS]
    wanted = [(value, type(value)) for _, value in NUMBERS]
    assert [found[1:] for found in values(project, SWEEP.replace("WORD", ", ".join(words)))] == wanted
    assert [found[1:] for found in values(project, SWEEP, f"value={','.join(words)}")] == wanted


def test_a_file_of_a_config_group_reads_words_as_a_sweep_file_and_overrides_do(project):
    words = ["no", "010", "12:30", "1_000", "1e-3", "0o17", "2026-11-26", "~x", "on"]
    section = "".join(f"k{index}: {word}\n" for index, word in enumerate(words))
    project.write("conf/kind/a.yaml", section)
    text = "stages: {fit: {command: 'echo {config.kind.k0}', reads: [kind]}}\n"
    grouped = "config: {defaults: [{kind: a}], kind: {}}\n" + text
    of_group = project.sweep(grouped).sweep.cells[0].config["kind"]
    assert of_group == dict(
        zip([f"k{i}" for i in range(9)], [*words[:4], 0.001, 15, *words[6:]], strict=True)
    )
    inline = "config:\n  kind:\n" + "".join(f"    {line}\n" for line in section.splitlines()) + text
    given = [f"kind.k{index}={word}" for index, word in enumerate(words) if "~" not in word]
    blank = project.sweep(inline.replace(": on", ": x").replace(": no", ": x"), *given).sweep.cells[0].config
    assert blank["kind"] == of_group
    listed = project.sweep(f"overrides: {given}\n{grouped}").sweep.cells[0].config["kind"]
    assert listed == of_group


def test_plan_notes_which_words_are_text_here_and_were_not_in_yaml_1_1(project):
    project.write("conf/kind/a.yaml", "use_ema: yes\n")
    text = """
    config: {defaults: [{kind: a}], kind: {}, seed: 0}
    axes: {seed: [012, '012b', "no", 2026-11-26, 1e-3]}
    stages: {fit: {command: "true", reads: [seed, kind]}}
    """
    assert [note.partition(" is text")[0] for note in project.sweep(text).notes] == [
        "own.yaml, line 3: 012",
        "a.yaml, line 1: yes",
    ]
    many = project.sweep(SWEEP.replace("WORD", "no, on, off, yes, 12:30")).notes
    assert len(many) == 4 and many[-1] == "and 2 more such words"


def test_words_in_quotes_are_text_everywhere(project):
    wanted = [(word, word, str) for word in ("true", "1", "null")]
    assert values(project, SWEEP.replace("WORD", "'true', '1', \"null\"")) == wanted
    assert values(project, SWEEP, "value='true','1',\"null\"") == wanted


def test_labels_that_yaml_1_1_reads_as_truth_values_need_no_quotes(project):
    text = """
    config: {seed: 0}
    axes: {language: {no: {seed: 1}, en: {seed: 2}, on: {seed: 3}}}
    stages: {fit: {command: "true", reads: [seed]}}
    """
    cells = project.sweep(text).sweep.cells
    assert [cell.axes["language"] for cell in cells] == ["no", "en", "on"]
    assert [cell.axes["language"] for cell in project.sweep(text, "language=no").sweep.cells] == ["no"]


@pytest.mark.parametrize("word", ["1e999", "-1e999", "12e5678", "9" * 5000])
def test_a_number_that_cannot_be_held_is_refused_with_the_way_out(project, word):
    for text, override in ((SWEEP.replace("WORD", word), []), (SWEEP, [f"value={word}"])):
        with pytest.raises(UserError) as error:
            project.sweep(text, *override)
        assert "is too large a number" in error.value.what
        assert error.value.fix == "in quotes it is text"
        assert len(error.value.what) < 80


@pytest.mark.parametrize(
    ("time", "hours"),
    [("1:30", 1.5), ("0:05", 5 / 60), ("1:30:00", 1.5), ("2-00:00:00", 48.0), ("1-6", 30.0)],
)
def test_hours_may_be_written_as_a_time(project, time, hours):
    project.write("conf/cluster/own.yaml", f"defaults: [default]\nhours: {time}\naccount: 01234\n")
    settings = run_settings(["cluster=own", f"cluster.max_hours={time}"], cwd=project.folder)
    assert (settings.cluster["hours"], settings.cluster["max_hours"]) == pytest.approx((hours, hours))
    assert settings.cluster["account"] == "01234"
    listed = run_settings(["launcher=slurm", f"launcher.resources=[{{hours: {time}}}]"], cwd=project.folder)
    assert listed.launcher["resources"][0]["hours"] == pytest.approx(hours)


@pytest.mark.parametrize("time", ["1:75", "long", "1:3", "'1'"])
def test_hours_that_are_no_time_are_refused(project, time):
    with pytest.raises(UserError) as error:
        run_settings([f"cluster.hours={time}"], cwd=project.folder)
    assert "cluster.hours is" in error.value.what
    assert "1:30" in error.value.allowed


@pytest.mark.parametrize("folder", ["conf", "sweeps"])
def test_every_file_that_ships_here_reads_as_omegaconf_reads_it(folder):
    files = sorted(shipped(folder).rglob("*.yaml"))
    assert files
    for file in files:
        assert read_yaml(file) == OmegaConf.to_container(OmegaConf.load(file), resolve=False), file
