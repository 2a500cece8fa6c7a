"""Bad input: exit 2, a first line `error:`, no traceback, nothing started and nothing created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import main

GOOD = """
description: fine
expect_cells: 2
config: {seed: 0, languages: [en, es], count: {num_steps: 1, checkpoint_every: 0, step_s: 0.0, fail: null}}
axes: {seed: [0, 1]}
stages: [count]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_STORE", raising=False)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "rows.csv").write_text("a,b\n")
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(Path.cwd().rglob("*"))
    code = main(words)
    out, err = capfd.readouterr()
    assert code == 2, (code, out, err)
    assert err.startswith("error: "), err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 4
    assert sorted(Path.cwd().rglob("*")) == before
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launch", "smok"], "did you mean smoke"),
        (["launch", "rows.csv"], "rows.csv is a file, but the name of a sweep file ends in .yaml or .yml"),
        (["launch", "no/such.yaml"], "no sweep file"),
        (["plan", "good.yaml", "--gpus-per-node", "4"], "--gpus N"),
        (["plan", "good.yaml", "--gpus", "4", "--budget"], "two questions"),
        (["plan", "good.yaml", "--gpus", "99999999999999999999"], "at most 10,000,000 GPUs"),
        (["simulate", "good.yaml", "--gpus", "99999999999"], "at most 10,000,000 GPUs"),
        (["plan", "good.yaml", "--only", ""], "the selector is empty"),
        (["plan", "good.yaml", "--only", "failure="], "unknown failure ''"),
        (["launch", "good.yaml", "--wait", "--detach"], "not allowed with argument"),
        (["launch", "good.yaml", "speed=3"], "unknown key 'speed'"),
        (["launch", "good.yaml", "count.num_step=3"], "count.num_steps"),
        (["launch", "good.yaml", "seed="], "seed"),
        (["launch", "good.yaml", "expect_cells=3"], "2 cells"),
        (["launch", "good.yaml", "launcher=lokal"], "local"),
        (["launch", "good.yaml", "launcher.worker=3"], "launcher.workers"),
        (["launch", "good.yaml", "launcher.workers=0"], "launcher.workers"),
        (["launch", "good.yaml", "launcher.workers=many"], "launcher.workers"),
        (["launch", "good.yaml", "policy.lease_s=0"], "policy.lease_s"),
        (["launch", "good.yaml", "policy.retries.sloth=1"], "sloth"),
        (
            ["launch", "good.yaml", "launcher=slurm", "+cluster.sbatch.x=[a]"],
            "cluster.sbatch.x is of the wrong",
        ),
        (["launch", "good.yaml", "launcher=slurm", "+cluster.partitions.p=q"], "cluster.partitions.p is of"),
        (
            ["launch", "good.yaml", "launcher=slurm", "+cluster.partitions.p.gpu=1"],
            "'cluster.partitions.p.gpu'",
        ),
        (["launch", "good.yaml", "policy.rehearse=maybe"], "true, false, auto"),
        (["launch", "good.yaml", "policy.budget.gpu_hours=-1"], "0 or more, or null"),
        (["launch", "good.yaml", "policy.breaker=2.5"], "policy.breaker"),
        (["launch", "good.yaml", "store.url=ftp://x/y"], "unknown store scheme 'ftp'"),
        (["launch", "good.yaml", "--store", "s3:/bucket/x"], "'s3:/bucket/x' is no address of a store"),
        (["launch", "good.yaml", "--store", "file:/x"], "'file:/x' is no address of a store"),
        (["launch", "good.yaml", "--store", " "], "begins or ends with a space"),
        (["launch", "good.yaml", "--store", " runs/new"], "begins or ends with a space"),
        (["launch", "good.yaml", "store.url=/proc/nowhere"], "not writable"),
        (["launch", "good.yaml", f"store.url={'n' * 256}"], "the path of the store is too long"),
        (["status", "good.yaml", "--store", "n/" * 2000], "the path of the store is too long"),
        (["status", "good.yaml", "--store", "~nobody-here/x"], "names no folder"),
        (["launch", "~nobody-here/good.yaml"], "no sweep file '~nobody-here/good.yaml'"),
        (["data", "import", "math", "~nobody-here/x", "--out", "o"], "no file or folder '~nobody-here/x'"),
        (["launch", "good.yaml", "--only", "sed=1"], "unknown key 'sed'"),
        (["launch", "good.yaml", "--only", "seed=7"], "seed"),
        (["launch", "good.yaml", "--only", "nonsense-cell"], "nonsense-cell"),
        (["launch", "good.yaml", "--bogus"], "--bogus"),
        (["launch", "good.yaml", "--name", "a/b"], "a/b"),
        (["launch", "good.yaml@0"], "revision"),
        (["status", "good.yaml@3"], "no revision good@3"),
        (["status", "nothing-here"], "unknown sweep"),
        (["status", "nothing-here"], "nor in the store"),
        (["launch", "good", "seed=range(0,6)"], "good.yaml is a file here"),
        (["status", "good.yaml@²"], "names no revision"),
        (["status", f"good.yaml@{'9' * 5000}"], "names no revision"),
        (["status", ".."], "unknown sweep '..'"),
        (["status", "x" * 5000], "unknown sweep"),
        (["launch", f"{'x' * 300}.yaml"], "no sweep file"),
        (["status", "good.yaml", "store.url="], "names no store"),
        (["logs", "good.yaml"], "required: CELL\n"),
        (["logs", "good.yaml", "--store", "elsewhere", "--stage", "count"], "required: CELL\n"),
        (["logs", "store.url=elsewhere"], "required: SWEEP, CELL\n"),
        (["status", "--store", "elsewhere"], "required: SWEEP\n"),
        (["--store", "elsewhere", "status"], "required: SWEEP\n"),
        (["--store=elsewhere", "status"], "required: SWEEP\n"),
        (["--store"], "unknown verb"),
        (["collect", "--store=elsewhere"], "required: SWEEP"),
        (["launch", "--store", "elsewhere"], "required: SWEEP, or --app"),
        (["best", "good.yaml", "--store", "elsewhere"], "required: METRIC\n"),
        (["logs", "--store", "elsewhere", "good", "seed=0"], "elsewhere"),
        (["verify", "--store", "elsewhere", "x.zip"], "--store"),
        (["collect", "good.yaml@*"], "never launched"),
        (["status", "good.yaml", "seed=1"], "unexpected"),
        (["why", "good.yaml", "seed9"], "seed9"),
        (["logs", "good.yaml", "seed0", "--stage", "train"], "no stage 'train'"),
        (["rerun", "good.yaml"], "never launched"),
        (["cancel", "good.yaml"], "never launched"),
        (["discard", "good.yaml", "seed=0", "--stage", "count"], "--reason"),
        (["collect", "good.yaml", "--format", "parquet"], "--out"),
        (["collect", "good.yaml", "--out", "rows.txt"], "parquet, csv, json"),
        (["launch", "smoke", "model=tiny-qwen"], "tiny-qwen3"),
        (["launch", "smoke", "mixture=en+fr"], "en+es"),
        (["launch", "smoke", "trainer.learning_rate=fast"], "trainer.learning_rate"),
        (["launch", "smoke", "trainer.micro_batch_size=5"], "micro"),
        (["launch", "smoke", "languages=[en,en]", "mixture=none"], "en"),
        (["launch", "smoke", "evaluation.languages=[en,xx]"], "xx"),
        (["launch", "smoke", "evaluation.languages=[en,en]"], "en"),
        (["launch", "smoke", "data=files"], "data.train_dir"),
        (["launch", "smoke", "model=custom", "model.path=/no/such/model"], "/no/such/model"),
        (["launch", "smoke", "data=files", "data.train_dir=/no/such", "data.test_dir=/no"], "/no/such"),
        (["frobnicate"], "unknown verb"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_refused_with_the_way_out(folder, capfd, words, says):
    assert says in refused(capfd, *words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axes: {a: [1, 2}\n", "bad.yaml, line 1"),
        (GOOD.replace("[0, 1]", "[]"), "seed"),
        (GOOD.replace("expect_cells: 2", "expect_cells: 3"), "1 fewer"),
        (GOOD + "exclude: ['seed=0', 'seed=1']\n", "no cell"),
        (GOOD + "exclude: ['sead=0']\n", "unknown key 'sead'"),
        (GOOD.replace("{seed: 0", "{3: 4, seed: 0"), "a key of config is of the wrong type: int"),
        (GOOD.replace("axes:", "axis:"), "axes"),
        (GOOD.replace("[count]", "[cuont]"), "count"),
        (GOOD.replace("[count]", "{a: {run: 'nowhere_to_be_found:main'}}"), "nowhere_to_be_found"),
        (GOOD.replace("[count]", "{a: {run: 'x:y', command: 'z'}}"), "a"),
        (GOOD.replace("[count]", "{a: {command: 'true', reads: [sead]}}"), "sead"),
        (GOOD.replace("[count]", "{a: {command: 'true', version: -1}}"), "stages.a.version is -1"),
        (GOOD.replace("[count]", "{a: {command: 'true', after: [b]}}"), "b"),
        (GOOD.replace("[count]", "{a: {command: 'true', after: [a]}}"), "a"),
        (GOOD.replace("[count]", "{a: {command: 'true', reads: [seed, seed]}}"), "'seed' twice in `reads`"),
        (
            GOOD.replace("[count]", "{b: {run: 'x:y'}, a: {run: 'x:y', after: [b, b]}}"),
            "'b' twice in `after`",
        ),
        (
            GOOD.replace("seed: 0,", "seed: /home/me/data,").replace("axes: {seed: [0, 1]}", "axes: {}"),
            "path",
        ),
        (GOOD.replace("expect_cells: 2", "expect_cells: two"), "expect_cells"),
        ('config: {s: "a\\0b"}\nstages: {a: {command: "echo {config.s}", reads: [s]}}\n', "s is 'a\\x00b'"),
        ('config: {s: [{t: "a\\0"}]}\nstages: {a: {command: "x {args}", reads: [s]}}\n', "s.0.t is 'a\\x00'"),
        ('config: {s: 0}\naxes: {s: "range(3,0)"}\nstages: {a: {command: x}}\n', "range(start,stop,step)"),
        ('config: {s: 0}\naxes: {s: "range(0,3,0)"}\nstages: {a: {command: x}}\n', "a step that is not 0"),
        ('config: {"s t": 0}\naxes: {"s t": [1]}\nstages: {a: {command: x}}\n', "without spaces"),
        ("- a\n- b\n", "mapping"),
        ("", "bad.yaml"),
    ],
)
def test_a_wrong_sweep_file_is_refused_with_its_place(folder, capfd, text, says):
    (folder / "bad.yaml").write_text(text)
    assert says in refused(capfd, "launch", "bad.yaml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["launch", "good.yaml", "--store", "loop"], "is no folder: Too many levels of symbolic links"),
        (["status", "good.yaml", "--store", "loop/x"], "is no folder: Too many levels of symbolic links"),
        (["launch", "good.yaml", "--store", "nowhere.yaml"], "is a link to nowhere"),
        (["status", "good.yaml", "--store", "good.yaml"], "is a file"),
        (["status", "good.yaml", "--store", "good.yaml/x"], "is no folder: Not a directory"),
        (["launch", "good.yaml", "--store", "caf\udce9"], "is no UTF-8 text: "),
        (["launch", "loop.yaml"], "no sweep file 'loop.yaml', but a link to"),
        (["launch", "nowhere.yaml"], "absent.yaml, where no file is"),
        (["launch", "odd.yaml", 'seed="\udce9"'], "reads.seed is '\\udce9', which has no stable identity"),
        (["launch", "odd.yaml", 'other="\udce9"'], "no UTF-8 text: "),
    ],
)
def test_links_that_lead_nowhere_files_and_bytes_are_refused_by_name(folder, capfd, words, says):
    for name, target in (("loop", "loop"), ("loop.yaml", "loop.yaml"), ("nowhere.yaml", "absent.yaml")):
        (folder / name).symlink_to(target)
    stage = "stages: {fit: {command: 'echo {config.seed}', reads: [seed], uses: [other]}}\n"
    (folder / "odd.yaml").write_text(f"config: {{seed: a, other: a}}\n{stage}")
    assert says in refused(capfd, *words)


def test_config_folders_that_are_links_to_themselves_hold_nothing(folder, capfd):
    for name in ("conf", "sweeps"):
        (folder / name).symlink_to(name)
    assert main(["plan", "good.yaml"]) == 0, capfd.readouterr().err


def test_a_store_of_a_newer_format_is_refused_and_left_alone(folder, capfd):
    store = folder / "runs"
    store.mkdir()
    (store / "store.json").write_text(json.dumps({"nonce": "x", "format": 99, "colour": "blue"}))
    assert "format 99" in refused(capfd, "launch", "good.yaml")
    assert "format 99" in refused(capfd, "status", "good.yaml")


def test_an_evaluation_language_without_data_is_refused(folder, capfd):
    for name in ("train", "test"):
        (folder / name).mkdir()
    row = json.dumps({"id": "0", "question": "1 + 1?", "answer": "2\n#### 2"})
    for language in ("en", "es", "ja", "bn", "sw"):
        (folder / "train" / f"{language}.jsonl").write_text("\n".join([row] * 3))
        (folder / "test" / f"mgsm_{language}.tsv").write_text("1 + 1?\t2\n")
    words = ["data=files", f"data.train_dir={folder / 'train'}", f"data.test_dir={folder / 'test'}"]
    assert "te" in refused(capfd, "launch", "smoke", *words)


def test_more_training_items_than_the_files_hold_are_refused_before_anything_is_recorded(folder, capfd):
    for name in ("train", "test"):
        (folder / name).mkdir()
    rows = [json.dumps({"id": str(n), "question": f"{n} + 1?", "answer": f"#### {n + 1}"}) for n in range(3)]
    for language in ("en", "es"):
        (folder / "train" / f"{language}.jsonl").write_text("\n".join(rows))
        (folder / "test" / f"mgsm_{language}.tsv").write_text("1 + 1?\t2\n")
    words = ["data=files", f"data.train_dir={folder / 'train'}", f"data.test_dir={folder / 'test'}"]
    words += ["task=math", "mixture=en", "evaluation.languages=[en]", "data.num_validation=1"]
    found = refused(capfd, "launch", "smoke", *words, "data.tasks.math.num_train=3")
    assert "3 train items" in found and "2" in found
    assert not list(folder.glob("**/requests/*"))


def test_links_in_a_circle_in_the_project_do_no_harm(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "conf").mkdir()
    (folder / "conf" / "loop").symlink_to("loop")
    (folder / "conf" / "up").symlink_to("..")
    (folder / "self.py").symlink_to("self.py")
    assert main(["plan", "good.yaml"]) == 0
    assert "2 cells" in capfd.readouterr().out


@pytest.mark.parametrize("words", [["help", "launch"], ["--version"], ["--help"], ["-h"]])
def test_a_store_before_a_request_for_help_does_no_harm(folder, capfd, words):
    assert main(words) == 0
    plain = capfd.readouterr().out
    assert main(["--store", "elsewhere", *words]) == 0
    assert capfd.readouterr().out == plain
