"""Names that other distributions bring by entry points: found, refused with their origin, free of cost."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.api.reports import write_report
from orchestrator.compose.overrides import run_settings
from orchestrator.core.settings import TrackerSettings
from orchestrator.errors import UserError
from orchestrator.registry import LAUNCHERS, PLUGGABLE, REPORTS, check_trackers, is_known, known, lookup
from tests.conftest import Sweep

Installed = Callable[..., None]

MODULE = """
from pathlib import Path

from orchestrator.stage import StageSpec

TRIPLE = StageSpec(name="triple", run="bring_one:triple", reads=("seed",))


def triple(config, inputs, context):
    return [{"tripled": 3 * config.seed}]


def listing(rows, folder):
    path = Path(folder) / "listing.txt"
    path.write_text("".join(f"{row['tripled']}\\n" for row in rows))
    return [path]
"""
SWEEP = """
description: a stage and a report of a plugin
config: {seed: 0}
axes: {seed: [1, 2]}
stages: [triple]
report: [listing]
"""


def install(folder: Path, name: str, points: str, files: dict[str, str] | None = None) -> None:
    """Write a distribution as pip leaves it in a folder."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Return a function that installs a distribution for this process."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def install_here(name: str, points: str, files: dict[str, str] | None = None) -> None:
        install(folder, name, points, files)
        importlib.invalidate_caches()

    return install_here


def test_a_plugin_s_name_is_found_and_listed_and_one_of_ours_comes_first(installed: Installed) -> None:
    points = "[polysweep.reports]\nlisting = bring_one:listing\nstudy = bring_one:listing\n"
    installed("bring-one", points, {"bring_one.py": MODULE})
    assert is_known(REPORTS, "listing") and known(REPORTS) == [*REPORTS, "listing"]
    assert lookup(REPORTS, "listing", kind="report").__module__ == "bring_one"
    assert lookup(REPORTS, "study", kind="report").__module__.startswith("orchestrator.")
    with pytest.raises(UserError, match="unknown report 'listings'") as caught:
        lookup(REPORTS, "listings", kind="report")
    assert caught.value.allowed == "did you mean listing?"


def test_each_group_extends_its_own_table_alone(installed: Installed) -> None:
    groups = "".join(f"[polysweep.{group}]\nof_{group} = sys:path\n" for group in PLUGGABLE)
    installed("bring-all", groups)
    for table in PLUGGABLE.values():
        group = next(name for name, each in PLUGGABLE.items() if each is table)
        assert known(table) == [*table, f"of_{group}"] and is_known(table, f"of_{group}")
        with pytest.raises(UserError, match=rf"the plugin 'of_{group}' of bring-all 1\.0") as caught:
            lookup(table, f"of_{group}", kind=group)  # a list is nothing of all this
        assert caught.value.where == f"entry point polysweep.{group}: sys:path"


def test_two_plugins_of_one_name_are_refused_with_both_distributions(installed: Installed) -> None:
    for name in ("bring-one", "bring-two"):
        installed(name, "[polysweep.launchers]\npbs = bring:Launcher\n")
    for look in (lambda: lookup(LAUNCHERS, "pbs", kind="launcher"), lambda: is_known(LAUNCHERS, "pbs")):
        with pytest.raises(UserError, match="several plugins are named 'pbs'") as caught:
            look()
        assert "bring-one 1.0 and bring-two 1.0" in caught.value.allowed


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("absent_module:made", "ModuleNotFoundError: No module named 'absent_module'"),
        ("broken_module:made", "RuntimeError: no licence"),
        ("sys:made", "AttributeError: module 'sys' has no attribute 'made'"),
        ("leaving_module:made", "SystemExit: 0"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_refused_with_its_distribution(
    installed: Installed, value: str, cause: str
) -> None:
    files = {
        "broken_module.py": "raise RuntimeError('no licence')",
        "leaving_module.py": "raise SystemExit(0)",
    }
    installed("bring-none", f"[polysweep.mirrors]\nlost = {value}\n", files)
    with pytest.raises(UserError) as caught:
        check_trackers("store", {"lost": {}})
    assert caught.value.what == f"the plugin 'lost' of bring-none 1.0 cannot be imported: {cause}"
    assert caught.value.where == f"entry point polysweep.mirrors: {value}"


@pytest.mark.parametrize("value", ["absent_package", "broken_module.inner", "brought"])
def test_a_plugin_without_its_folder_of_config_is_refused_with_its_distribution(
    installed: Installed, tmp_path: Path, value: str
) -> None:
    files = {"broken_module.py": "raise RuntimeError('no licence')", "brought/__init__.py": ""}
    installed("bring-conf", f"[polysweep.conf]\nlost = {value}\n", files)
    with pytest.raises(UserError, match=r"the plugin 'lost' of bring-conf 1\.0 has no folder conf"):
        run_settings(["launcher=lost"], tmp_path)
    assert run_settings(["launcher=local"], tmp_path).launcher["name"] == "local"


UNFIT = """
from orchestrator.saving import Tracker
from orchestrator.tasks.files import FileTask


class Halved:  # a tracker without its second method
    def __init__(self, tracked): ...

    def log(self, step, metrics): ...


class Careless(Tracker):  # its constructor forgets the argument
    def __init__(self): ...


class Failing:  # a mirror whose constructor fails
    def __init__(self, options):
        raise RuntimeError("no licence")

    check = begin = progress = open = forget = end = summary = None.__class__


def report(rows): ...


NUMBER = 3
"""


@pytest.mark.parametrize(
    ("group", "name", "problem"),
    [
        ("trackers", "Halved", "lacks close"),
        ("trackers", "Careless", "takes (), and is called with 1 argument"),
        ("trackers", "NUMBER", "is of type int, and cannot be called"),
        ("tasks", "FileTask", "is a class, and an object of it is needed"),
        ("stages", "report", "lacks the fields of a StageSpec"),
        ("reports", "report", "takes (rows), and is called with 2 arguments"),
        ("mirrors", "Failing", "cannot be used: RuntimeError: no licence"),
        ("launchers", "Halved", "lacks hardware, gpus, start, poll, stop, refusal"),
    ],
)
def test_an_object_that_is_not_what_its_group_needs_is_refused_before_it_is_used(
    installed: Installed, group: str, name: str, problem: str
) -> None:
    installed("bring-wrong", f"[polysweep.{group}]\nwrong = unfit:{name}\n", {"unfit.py": UNFIT})
    for named, what in (
        ("wrong", "the plugin 'wrong' of bring-wrong 1.0"),
        (f"unfit:{name}", f"the kind 'unfit:{name}'"),
    ):
        with pytest.raises(UserError) as caught:
            made = lookup(PLUGGABLE[group], named, kind="kind")
            made({})
        assert caught.value.what == f"{what} {problem}"


def test_what_others_print_is_no_part_of_standard_output(
    installed: Installed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = "print('imported')\ndef write(rows, folder):\n    print('written')\n    return []\n"
    points = "[polysweep.reports]\nloud = loud_one:write\n"
    installed("bring-loud", points, {"loud_one.py": text, "loud_two.py": text})
    for name in ("loud", "loud_two:write"):
        assert write_report(name, [{"n": 1}], tmp_path, {}, where="here", notify=print) == []
        assert capsys.readouterr() == ("", "imported\nwritten\n")


def test_a_module_that_exits_when_it_is_imported_is_refused(installed: Installed) -> None:
    installed("bring-script", "", {"leaves.py": "raise SystemExit(0)"})
    with pytest.raises(UserError, match="module 'leaves' exits when imported"):
        lookup(REPORTS, "leaves:write", kind="report")


def test_a_plugin_without_its_folder_of_config_does_no_harm_to_the_others(
    installed: Installed, tmp_path: Path
) -> None:
    installed("bring-conf", "[polysweep.conf]\nlost = absent_package\n")
    files = {"whole/__init__.py": "", "whole/conf/launcher/whole.yaml": "name: local\n"}
    installed("bring-whole", "[polysweep.conf]\nwhole = whole\n", files)
    assert run_settings(["launcher=whole"], tmp_path).launcher["name"] == "local"
    with pytest.raises(UserError, match="unknown launcher 'whol'") as caught:
        run_settings(["launcher=whol"], tmp_path)
    assert caught.value.allowed == "did you mean whole?" and "'lost' of bring-conf 1.0" in caught.value.fix


def test_folders_of_config_of_plugins_with_one_name_are_all_searched(
    installed: Installed, tmp_path: Path
) -> None:
    for name in ("bring_a", "bring_b"):
        files = {f"{name}/__init__.py": "", f"{name}/conf/launcher/{name}.yaml": "name: local\n"}
        installed(name.replace("_", "-"), f"[polysweep.conf]\nmine = {name}\n", files)
    for name in ("bring_a", "bring_b"):
        assert run_settings([f"launcher={name}"], tmp_path).launcher["name"] == "local"


def test_built_in_names_do_not_search_for_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", None)
    monkeypatch.delitem(sys.modules, "orchestrator.plugins", raising=False)
    for table in PLUGGABLE.values():
        assert all(is_known(table, name) for name in table)
    lookup(REPORTS, "general", kind="report")
    assert "orchestrator.plugins" not in sys.modules


def test_options_of_a_plugin_s_mirror_are_those_of_its_section() -> None:
    settings = TrackerSettings(name="wandb", options={"project": "x"}, plugins={"lost": {"file": "y"}})
    assert settings.mirrors == {"lost": {"file": "y"}, "wandb": {"project": "x"}}


def test_a_sweep_uses_the_stage_report_launcher_and_config_of_plugins(sweep: Sweep, tmp_path: Path) -> None:
    site = tmp_path / "site"
    points = """
[polysweep.stages]
triple = bring_one:TRIPLE
[polysweep.reports]
listing = bring_one:listing
[polysweep.launchers]
two = bring_launcher:Two
[polysweep.conf]
bring = bring_launcher
"""
    files = {
        "bring_one.py": MODULE,
        "bring_launcher/__init__.py": LAUNCHER,
        "bring_launcher/conf/launcher/two.yaml": "name: two\nworkers: 2\n",
    }
    install(site, "bring-one", points, files)
    (sweep.folder / "thrice.yaml").write_text(SWEEP)
    sweep.env = {**os.environ, "SWEEP_STORE": str(sweep.store), "PYTHONPATH": str(site)}
    said = sweep("launch", "thrice.yaml", "launcher=two")
    assert "2 done" in said
    assert (sweep.store / "sweeps/thrice/report/listing.txt").read_text() == "3\n6\n"
    sweep.env.pop("PYTHONPATH")
    said = sweep("launch", "thrice.yaml", code=2)
    assert "unknown stage 'triple'" in said
    said = sweep("launch", "smoke", "launcher=two", code=2)
    assert "unknown launcher 'two'" in said and "local, ray, slurm" in said


LAUNCHER = """
from orchestrator.launchers.local import LocalLauncher


class Two(LocalLauncher):
    def __init__(self, settings, num_cells, cluster=None):
        super().__init__({**settings, "name": "local"}, num_cells, cluster)
"""
