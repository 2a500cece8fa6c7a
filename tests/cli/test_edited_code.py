"""Code that is edited while cells run: nothing is made by two versions under one name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import provenance
from orchestrator.stage import StageSpec
from orchestrator.store.checkout import Checkout
from tests.cli.launches import records, wait_for

COMMAND = """
import json, os, sys, time
output, seed = sys.argv[1:3]
edited = os.environ.get("TEST_EDITED", "")
while edited and os.path.exists("made_by_a_stage.csv") and not os.path.exists(edited):  # not the first one
    time.sleep(0.05)
open(output + "/rows.jsonl", "w").write(json.dumps({"seed": int(seed), "version": 1}))
open("made_by_a_stage.csv", "a").write(f"{seed}\\n")
"""
SWEEP = """
config: {seed: 0}
axes: {seed: "range(0,3)"}
stages: {act: {command: "python s.py {output} {config.seed}", reads: [seed], results: rows.jsonl}}
"""


@pytest.fixture
def edited(sweep: Any) -> Any:
    """A folder with a command stage of three cells."""
    (sweep.folder / "s.py").write_text(COMMAND)
    (sweep.folder / "act.yaml").write_text(SWEEP)
    return sweep


def edit(sweep: Any) -> None:
    (sweep.folder / "s.py").write_text(COMMAND.replace('"version": 1', '"version": 2'))


def dones(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in store.glob("done/*/*.json")]


@pytest.mark.parametrize("with_git", [pytest.param(False, marks=pytest.mark.long), True])
def test_an_edit_stops_the_claims_and_the_next_launch_goes_on_and_says_what_differs(
    edited: Any, background: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_git: bool
) -> None:
    monkeypatch.setenv("TEST_EDITED", str(tmp_path / "edited"))
    if with_git:
        for words in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *words], cwd=edited.folder, check=True)
    launch = background("launch", "act.yaml", "launcher.workers=1")
    wait_for(lambda: records(edited.store, "end.json"))
    edit(edited)
    (tmp_path / "edited").touch()
    code, output = launch.end()
    assert code == 3 and ": s.py changed since the launch" in output, output
    made = {done["code"]: done["rows"][0]["version"] for done in dones(edited.store)}
    assert all(version == 1 for code, version in made.items() if "~" not in code), made
    again = edited("launch", "act.yaml")
    assert "made by other code than now" in again and "3 done" in again
    codes = {start["provenance"]["code"] for start in records(edited.store, "start.json")}
    assert len(codes) == 2
    versions = {(done["code"], done["rows"][0]["version"]) for done in dones(edited.store)}
    assert len({code for code, _ in versions}) == len(versions)  # none stands for both
    assert "made by different code" in edited("status", "act")


@pytest.mark.long
def test_launches_with_nothing_edited_show_no_drift_whatever_the_stages_wrote_beside_the_code(
    edited: Any,
) -> None:
    edited("launch", "act.yaml", "--only", "seed=0")
    assert (edited.folder / "made_by_a_stage.csv").exists()
    (edited.folder / "act.yaml").write_text(SWEEP.replace("range(0,3)", "range(0,2)"))
    output = edited("launch", "act.yaml")
    assert "code" not in output and "2 done" in output


def test_a_launch_from_a_snapshot_runs_the_code_as_it_was_with_packages_of_ones_own(
    edited: Any, background: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"  # as `pip install --target` fills it
    packages.mkdir()
    monkeypatch.setenv("TEST_EDITED", str(tmp_path / "edited"))
    (packages / "elsewhere.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.path.relpath(packages, edited.folder))  # seen from there alone
    command = f"import elsewhere\n{COMMAND}"
    (edited.folder / "s.py").write_text(command)
    launch = background("launch", "act.yaml", "launcher.workers=1", "launcher.snapshot=true")
    wait_for(lambda: records(edited.store, "end.json"))
    edit(edited)
    (tmp_path / "edited").touch()
    code, output = launch.end()
    assert code == 0 and "3 done" in output, output
    assert {row["version"] for row in edited.json("collect", "act")} == {1}
    edited.folder.joinpath("s.py").write_text(command)
    assert "made by" not in edited("launch", "act.yaml")  # the version is that of the checkout


# The digest


def checkout(folder: Path, command: str = "python s.py", run: str | None = None) -> Checkout:
    spec = StageSpec(run=run, reads=()) if run else StageSpec(command=command, reads=())
    return Checkout({"act": spec}, [str(folder)], left_out=[folder / "store"])


COMMIT = ["commit", "-q", "-m", "first"]
EDITS = {
    "a file that a command names": lambda f: (f / "settings.json").write_text("{}"),
    "a helper that is imported late": lambda f: (f / "lib/helper.py").write_text("x = 2"),
    "a helper of the same size": lambda f: (f / "lib/helper.py").write_text("x = 9"),
    "a new module": lambda f: (f / "lib/new.py").write_text(""),
    "a module that is gone": lambda f: (f / "lib/helper.py").unlink(),
    "a mode": lambda f: (f / "s.py").chmod(0o755),
    "a file behind a linked folder": lambda f: (f.parent / "shared/far.py").write_text("x = 2"),
}
NO_EDITS = {
    "a product": lambda f: (f / "results.csv").write_text("1"),
    "a file of the store": lambda f: (f / "store/x.py").write_text("1"),
    "a virtual environment": lambda f: (f / "env/lib.py").write_text("1"),
    "what Python compiles": lambda f: (f / "lib/helper.pyc").write_text("1"),
    "a sweep": lambda f: (f / "act.yaml").write_text("stages: [more]\n"),
    "a time of change": lambda f: os.utime(f / "s.py"),
}
TRACKED = {"a data file that git tracks": lambda f: (f / "data.txt").write_text("2")}


@pytest.fixture(params=["git", "no git"])
def project(tmp_path: Path, request: Any) -> Path:
    """A project with all that may lie in one."""
    folder = tmp_path / "project"
    for name in ("lib", "store", "env", "../shared"):
        (folder / name).mkdir(parents=True)
    for name in ("s.py", "lib/helper.py", "../shared/far.py"):
        (folder / name).write_text("x = 1")
    for name in ("settings.json", "data.txt", "env/pyvenv.cfg"):
        (folder / name).write_text("1")
    (folder / "act.yaml").write_text("stages: [count]\n")
    (folder / "linked").symlink_to("../shared")
    if request.param == "git":
        (folder / ".gitignore").write_text("store\nenv\n*.pyc\n")
        for words in (["init", "-q"], ["add", "s.py", "lib", "data.txt", "act.yaml", "linked"]):
            subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("name", [*EDITS, *NO_EDITS, *TRACKED])
def test_what_belongs_to_the_code(project: Path, name: str) -> None:
    code = checkout(project, "python s.py --config=settings.json {output}")
    before = code.digest()
    assert (
        code.digest() == before == checkout(project, "python s.py --config=settings.json {output}").digest()
    )
    (EDITS | NO_EDITS | TRACKED)[name](project)
    changes = name in EDITS or (name in TRACKED and (project / ".git").exists())
    assert (code.digest() != before) is changes, code.changed()
    assert bool(code.changed()) is changes


@pytest.mark.long
def test_what_a_command_writes_is_no_edit_and_a_second_launch_has_the_same_version(edited: Any) -> None:
    """Logs, checkpoints and results in the working folder; with a word that is no possible file name."""
    command = "python s.py {output} {config.seed} | tee -a run.log; touch best.ckpt; "
    command += "cp run.log late.json; echo 'x = 1' >> gen.py; : --save best.ckpt --out metrics.json "
    command += f"; date +%N > metrics.json; date >> run.log; : {'x' * 300}"
    text = SWEEP.replace('"python s.py {output} {config.seed}"', json.dumps(command) + ", shell: true")
    (edited.folder / "act.yaml").write_text(text)
    assert "3 done" in edited("launch", "act.yaml", "launcher.workers=1")
    for name in ("late.json", "gen.py"):
        (edited.folder / name).unlink()
    (edited.folder / "act.yaml").write_text(text.replace("range(0,3)", "range(0,5)"))
    again = edited("launch", "act.yaml", "launcher.workers=1")
    assert "5 done" in again and "other code" not in again, again


WRITES = [
    "python s.py --out made.json",
    "python s.py --output-file=made.json",
    "python s.py log_file=made.json",
    "python s.py -o made.json",
    "python s.py > made.json",
    "python s.py 2>>made.json",
    "python s.py | tee -a made.json",
    "python s.py trainer.save='made.json'",
    "python s.py | tee made.log",
    "python s.py data.csv",
    "python s.py --data-out data.csv",
]
READS = [
    "python s.py made.json",
    "python s.py --config made.json",
    "python s.py --layout=made.json",
    "python s.py --report-config made.json",
    "python s.py --summary_template=made.json",
]
DATA = [
    "python s.py --data data.csv",
    "python s.py --sft-data data.csv",
    "python s.py --train data.csv",
    "python s.py train=data.csv",
    "python s.py --train-file='data.csv'",
    "python s.py data.vocab=data.csv",
    "python s.py --input data.csv",
    "python s.py --source-vocab-file data.csv",
    "python s.py --validation_data data.csv",
    "python s.py < data.csv",
    "python s.py --predictions made.json",
    "python s.py --eval-results made.json",
    "python s.py --eval-results data.csv",
    "python s.py --test-predictions data.csv",
    "python s.py --validation-metrics data.csv",
    "python s.py --train-state data.csv",
    "python s.py --state-dict data.csv",
    "python s.py --label-cache data.csv",
    "python s.py --in-place data.csv",
]


@pytest.mark.parametrize("command", [*WRITES, *READS, *DATA])
def test_a_named_file_is_code_or_data_unless_the_command_writes_it(tmp_path: Path, command: str) -> None:
    """Data, and what may be an output, is noticed, but stops no worker: an attempt may have written it."""
    for name in ("s.py", "made.json", "made.log", "data.csv"):
        (tmp_path / name).write_text("1")
    code = checkout(tmp_path, command)
    before = code.digest()
    for name in ("made.json", "made.log", "data.csv"):
        (tmp_path / name).write_text("22")
    assert (code.digest() != before) is (command not in WRITES)
    assert code.is_code_of(before) is (command not in READS)
    assert code.changed() == (["made.json"] if command in READS else [])


@pytest.mark.long
def test_data_that_attempts_of_a_launch_rewrite_stops_no_worker_and_gives_another_version(
    edited: Any,
) -> None:
    """Its option names an input, but nothing shows who writes a file."""
    (edited.folder / "made_by_a_stage.csv").write_text("of an earlier run\n")
    text = SWEEP.replace("{config.seed}", "{config.seed} --data made_by_a_stage.csv")
    (edited.folder / "act.yaml").write_text(text)
    assert "3 done" in edited("launch", "act.yaml", "launcher.workers=1")
    assert len({done["code"] for done in dones(edited.store)}) == 3


def test_data_that_a_command_names_is_apart_from_the_code_for_a_worker_that_starts_later(
    tmp_path: Path,
) -> None:
    for name in ("s.py", "data.csv", "made.json"):
        (tmp_path / name).write_text("1")
    spec = StageSpec(command="python s.py --data data.csv made.json", reads=())
    launch = Checkout({"act": spec}, [str(tmp_path)])
    before = launch.digest()
    (tmp_path / "data.csv").write_text("22")
    later = Checkout({"act": spec}, [str(tmp_path)], named=launch.named)
    assert later.digest() != before and later.is_code_of(before) and launch.is_code_of(before)
    (tmp_path / "made.json").write_text("22")
    assert not later.is_code_of(before) and not launch.is_code_of(before)


@pytest.mark.parametrize(
    "text",
    [
        "from .... import y",
        pytest.param("x = " + "(" * 5000, id="("),
        pytest.param("x = " + "-" * 50_000, id="-"),
    ],
)
def test_a_script_with_an_import_above_the_root_or_too_deep_to_be_read_is_code_all_the_same(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "project").mkdir()
    script = tmp_path / "s.py"
    levels = "." * (len(script.parts) + 3)
    script.write_text(text.replace("....", levels) + "\n")
    code = checkout(tmp_path / "project", "python ../s.py")
    before = code.digest()
    script.write_text("x = 1\n")
    assert code.digest() != before


@pytest.mark.parametrize("name", ["../lib/s.py", "linked.py"])
@pytest.mark.parametrize("changed", ["helper.py", "deep/inner.py", "deep/__init__.py", "deep/other.py"])
def test_what_a_script_outside_of_the_project_imports_is_code(
    tmp_path: Path, name: str, changed: str
) -> None:
    lib, project = tmp_path / "lib", tmp_path / "project"
    (lib / "deep").mkdir(parents=True)
    project.mkdir()
    (lib / "s.py").write_text("import json, helper\nfrom deep import inner\n")
    (lib / "deep" / "inner.py").write_text("from . import other\nfrom .nothing import x\n")
    for each in ("helper.py", "deep/__init__.py", "deep/other.py", "stranger.py"):
        (lib / each).write_text("x = 1\n")
    (project / "linked.py").symlink_to(lib / "s.py")
    code = checkout(project, f"python {name}")
    before = code.digest()
    (lib / "stranger.py").write_text("x = 3\n")
    assert code.digest() == before
    (lib / changed).write_text("y = 22\n")
    assert code.digest() != before and code.changed() == [f"../lib/{changed}"]


def test_a_worker_that_starts_later_takes_no_output_for_code(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("x = 1")
    (tmp_path / "tool").write_text("1")
    (tmp_path / "tool").chmod(0o755)
    spec = StageSpec(command="./tool s.py made.json made.py", reads=())
    launch = Checkout({"act": spec}, [str(tmp_path)])
    before = launch.digest()
    for name in ("made.json", "made.py"):
        (tmp_path / name).write_text("1")
    later = Checkout({"act": spec}, [str(tmp_path)], named=launch.named)
    assert launch.digest() == before == later.digest()
    (tmp_path / "tool").write_text("2")
    assert later.digest() != before


def test_what_git_ignores_is_no_code_beyond_links_and_in_repositories_inside(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repository(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("gen*.py\n")
        (folder / "kept.py").write_text("x = 1")
        for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", *COMMIT]):
            subprocess.run(["git", *words], cwd=folder, check=True)

    if not (project / ".git").exists():
        return
    repository(project.parent / "other")
    repository(project / "inside")
    repository(project / "vendored")
    (project / "beyond").symlink_to("../other")
    (project / ".gitignore").write_text("store\nenv\ngen*.py\nvendored\n/hidden_link\n")
    (project / "hidden_link").symlink_to("../shared/more")
    (project.parent / "shared/more").mkdir()
    words = ["git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../other", "sub"]
    url = str(project.parent / "other")
    subprocess.run([url if word == "../other" else word for word in words], cwd=project, check=True)
    here = project / "vendored"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    monkeypatch.setenv("GIT_DIR", str(project.parent / "other/.git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(project.parent / "nothing"))
    assert provenance.git_state(str(here))["commit"] == head.stdout.strip()
    code = checkout(project)
    before = code.digest()
    ignored = ["gen.py", "inside/gen.py", "sub/gen.py", "beyond/gen.py", "lib/gen2.py", "vendored/x.py"]
    for name in [*ignored, "../shared/more/x.py"]:
        (project / name).write_text("x = 1")
    assert code.digest() == before, code.changed()
    for name in ("inside/new.py", "sub/new.py", "beyond/new.py", "linked/gen.py"):
        (project / name).write_text("x = 1")
        assert code.digest() != before, name
        (project / name).unlink()
    assert code.digest() == before, code.changed()


def test_the_module_of_a_stage_belongs_to_the_code_even_if_git_ignores_it(project: Path) -> None:
    (project / ".gitignore").write_text("*.py\n")
    (project / "own.py").write_text("x = 1")
    code = checkout(project, run="own:main")
    before = code.digest()
    (project / "own.py").write_text("x = 2")
    assert code.digest() != before


def test_stages_of_our_own_run_no_code_of_the_project(project: Path) -> None:
    code = checkout(project, run="orchestrator.count:main")
    before = code.digest()
    (project / "s.py").write_text("x = 2")
    assert code.digest() == before


def test_a_digest_of_many_files_is_quick_to_take_again(tmp_path: Path) -> None:
    for number in range(2000):
        path = tmp_path / f"pkg{number % 20}/module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {number}\n")
    code = checkout(tmp_path)
    before = code.digest()
    time.sleep(2.1)  # what has only just changed is read again
    code.digest()
    read: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(str(tmp_path)):
            read.append(str(args[0]))

    sys.addaudithook(hook)  # nothing can remove it, and nobody reads there later
    assert code.digest() == before and read == []
