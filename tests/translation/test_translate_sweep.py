"""The whole way from English rows to a data set: yields by fault, reruns, corrections, refusals, secrets."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from orchestrator.registry import load
from orchestrator.tasks.checking import check
from orchestrator.testing import wait_for
from orchestrator.translation import stages
from orchestrator.translation.run import REPLIES, VERDICTS, Answered, Judged, read_lines
from tests.conftest import Sweep
from tests.translation.rows import chain, config_of, english, run, write_source
from tests.translation.server import FAULTS, KEY, MODEL, Server

pytestmark = pytest.mark.xdist_group("translate sweep")  # they share what is expensive to make

KINDS = {
    "changed date": "number-changed",
    "lost placeholder": "placeholder-lost",
    "repeated placeholder": "placeholder-repeated",
    "wrong script": "wrong-script",
    "not translated": "not-translated",
    "cut off": "cut-off",
    "empty": "empty",
    "other call": "other-call",
    "prose around": "prose-around",
    "invalid JSON": "not-json",
    "rate limit": "unanswered",
    "error": "unanswered",
    "hang": "unanswered",
    "filter": "refused-request",
}
"""How a row's replies err, always, to why it is refused."""
WORDS = {fault: fault.replace(" ", "")[::-1] + "ness" for fault in FAULTS}
"""How they err to the symptom of the row."""
GOOD = ("dizzy", "weak", "tired", "cold")
SETTINGS = ("num_shards=1", "shard=0,all", "launcher.workers=2")
QUICK = (
    *("max_attempts=2", "max_unanswered=1", "endpoint.max_tries=2", "endpoint.timeout_s=4"),
    "endpoint.max_wait_s=0.1",
)


class Done(NamedTuple):
    """A translation that ran: the command, its output, the server, the data set and all that it wrote."""

    sweep: Sweep
    out: Path
    output: str
    server: Server
    root: Path


def translate(sweep: Sweep, source: Path, out: Path, *words: str, code: int = 0) -> str:
    given = ["--to", "es,ja", "--model", MODEL, "--out", str(out), *SETTINGS, *QUICK, *words]
    return sweep("data", "translate", "api_calling", str(source), *given, code=code)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """Rows of which some meet each fault always, one meets none, and one only the first time."""
    root = tmp_path_factory.mktemp("translate")
    write_source(root / "source", [*GOOD, *WORDS.values()], ["feverish", "sleepy", "sleepy"])
    server = Server({WORDS[fault]: fault for fault in FAULTS})
    with server.running() as url:
        env = {
            **os.environ,
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": KEY,
            "POLYSWEEP_DATA": str(root / "cache"),
        }
        (root / "project").mkdir()
        sweep = Sweep(root / "project", root / "store", env)
        output = translate(sweep, root / "source", root / "out", "--num-validation", "1")
        yield Done(sweep, root / "out", output, server, root)


def manifest(out: Path) -> Any:
    return json.loads((out / "translation.json").read_text())


def test_every_fault_is_counted_and_costs_its_row_in_all_languages(done: Done) -> None:
    found = manifest(done.out)
    by_kind: dict[str, int] = {"accepted": len(GOOD) + 3}
    for fault in FAULTS:
        by_kind[KINDS[fault]] = by_kind.get(KINDS[fault], 0) + 1
    for language in ("es", "ja"):
        # Japanese in another script is not also Spanish in another script, but the row is the same.
        assert found["yields"][language] == by_kind, language
    assert found["num_in_all_languages"] == found["num_in_data_set"] == len(GOOD) + 3
    names = {fault: f"{WORDS[fault]}.jsonl" for fault in FAULTS}
    dropped = {id_.partition("#")[0]: why for id_, why in found["dropped"].items()}
    assert dropped == {names[fault]: {"es": KINDS[fault], "ja": KINDS[fault]} for fault in FAULTS}


def test_the_data_set_passes_the_check_and_unblocks_the_study(done: Done) -> None:
    report = done.sweep.json("data", "check", str(done.out))
    assert report["problems"] == []
    assert {split["split"]: split["num_parallel"] for split in report["splits"]} == {
        "train": len(GOOD) - 1,
        "validation": 1,
        "test": 3,
    }
    study = ["data.tasks.api_calling.num_train=null", "data.tasks.api_calling.num_validation=null"]
    study += [
        "data.tasks.api_calling.num_test=null",
        "evaluation.languages=[en,es,ja]",
        "mixture=en,en+es,en+ja",
    ]
    plan = done.sweep.json(
        *(
            "plan",
            "multilingual_220",
            f"data.api_calling_dir={done.out}",
            *study,
            "model=tiny-qwen3",
            "evaluation.engine=transformers",
        )
    )
    blocked = {(cell["axes"]["task"], bool(cell["blocked"])) for cell in plan["cells"]}
    assert blocked == {("api_calling", False), ("math", True)}


def test_another_sweep_requests_no_reply_again(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = done.server.asked.copy()
    assert max(asked.values()) == 2  # max_attempts, of rows that were refused
    monkeypatch.setenv("OPENAI_BASE_URL", done.sweep.env["OPENAI_BASE_URL"])  # type: ignore[index]
    waits = {"timeout_s": 0.3, "max_tries": 1, "max_wait_s": 0.05}
    more = {"num_shards": 2, "max_attempts": 2, "max_unanswered": 1.0, "endpoint": waits}
    config = config_of(done.root / "source", done.root / "cache" / "translations", **more)
    rows = [
        run(stages.TRANSLATE, config, done.root / f"more{shard}", language="es", shard=shard)[1][0]
        for shard in (0, 1)
    ]
    assert sum(row["num_requests"] for row in rows) == 0 and done.server.asked == asked
    assert sum(row["num_cached"] for row in rows) == sum(n for (_, to), n in asked.items() if to == "Spanish")


def test_the_key_and_the_address_are_written_nowhere(done: Done) -> None:
    assert done.server.authorizations == {f"Bearer {KEY}"}
    address = done.sweep.env["OPENAI_BASE_URL"].removeprefix("http://")  # type: ignore[index]
    assert KEY not in done.output and address not in done.output
    for path in done.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data and address.encode() not in data, path


def test_a_correction_passes_the_same_checks_and_saves_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", ["dizzy", "weak", "tired"], [])
    with Server({"dizzy": "lost placeholder", "weak": "wrong script"}).running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache", max_attempts=1)
        validated, rows = chain(config, tmp_path / "a")
    assert {row["reason"]: row["num_rows"] for row in rows} == {
        "accepted": 1,
        "placeholder-lost": 1,
        "wrong-script": 1,
    }
    dizzy, weak, _ = read_lines(validated / VERDICTS, Judged)
    (key,) = {fault.key for fault in dizzy.faults}
    lost = next(fault.text for fault in dizzy.faults).split("lacks ")[1][:5]
    lines = [
        {"row": dizzy.row, "language": "es", "texts": {key: f"{dizzy.translations[key]} {lost}"}},
        {"row": weak.row, "language": "es", "texts": {"1": "debilidad"}},
        {"row": weak.row, "language": "ja", "texts": {"1": "?"}},
    ]
    overlay = tmp_path / "es.jsonl"
    overlay.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {**config, "overlay": {"path": str(overlay), "fingerprint": "sha256:1"}}
    inputs = {"validate": {"es.0": validated}}
    output, (row,) = run(stages.ASSEMBLE, config, tmp_path / "assembled", inputs)
    assert (row["num_accepted"], row["num_corrected"], row["num_kept"]) == (2, 1, 2)
    found = manifest(output)
    assert found["corrected"]["es"] == [dizzy.id]
    assert [one["id"] for one in found["refused_corrections"]["es"]] == [weak.id]
    assert found["unknown_corrections"] == [f"{weak.row} ja"]
    assert check(output / "dataset").problems == ()


def test_rows_that_only_english_distinguishes_or_that_contradict_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", ["dizzy", "DIZZY", "weak"], [])
    rows = json.loads((source / "train" / "en.json").read_text())
    rows.append({**rows[2], "id": "9", "expected_output": "API-Request: [Other()]"})
    rows[1] = {**rows[0], "id": "1", "input": rows[0]["input"].replace("Sure.", "SURE.")}
    (source / "train" / "en.json").write_text(json.dumps(rows))
    with Server().running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache")
        validated, _ = chain(config, tmp_path / "a")
        output, _ = run(stages.ASSEMBLE, config, tmp_path / "b", {"validate": {"es.0": validated}})
    assert manifest(output)["yields"]["es"] == {"accepted": 2, "same-as-another": 1}
    assert check(output / "dataset").problems == ()


def test_a_review_sheet_shows_what_was_refused_first_and_escapes_all_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["dizzy", "<script>alert(1)</script>", "weak"]
    source = write_source(tmp_path / "source", words, [])
    with Server({"weak": "lost placeholder"}).running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache", max_attempts=1)
        validated, _ = chain(config, tmp_path / "a")
        output, _ = run(stages.ASSEMBLE, config, tmp_path / "b", {"validate": {"es.0": validated}})
    sheet = (output / "review" / "es.html").read_text()
    assert "<script>alert" not in sheet and "&lt;script&gt;" in sheet
    assert sheet.index('class="refused"') < sheet.index('class="accepted"')
    assert "<mark>[[1]]<small>" in sheet and "http" not in sheet.split("<body>")[1]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--to", "es,xx"], "unknown language 'xx'"),
        (["--to", "en"], "to=en translates nothing"),
        (["--out", "there"], "there exists"),
        (["engine=other"], "unknown engine 'other'"),
        (["nonsense"], "unexpected 'nonsense'"),
        (["--num-test", "0"], "too few"),
        (["--overlay", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--overlay", "../broken.jsonl"], "a correction is not as it should be"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_recorded(
    words: list[str], what: str, sweep: Sweep, store: Path, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", ["dizzy"], [])
    (sweep.folder / "there").mkdir()
    (sweep.folder / "there" / "file").touch()
    (tmp_path / "broken.jsonl").write_text('{"row": "1"}\n')
    given = ["--to", "es", "--model", MODEL, "--out", "new", *words]
    assert what in sweep("data", "translate", "api_calling", str(source), *given, code=2)
    assert not store.exists() and not (sweep.folder / "new").exists()


@pytest.mark.parametrize("wrong", ["address", "key", "columns", "file", "refused key"])
def test_a_missing_key_or_a_wrong_source_is_refused(
    wrong: str, sweep: Sweep, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", ["dizzy"], [])
    what = {
        "address": "$OPENAI_BASE_URL is not set",
        "key": "$OPENAI_API_KEY is not set",
        "columns": "no text 'expected_output' or 'output' in a row",
        "file": "no file or folder",
        "refused key": "refuses the key in $OPENAI_API_KEY (status 401)",
    }[wrong]
    with Server().running() as url:
        if wrong != "address":
            monkeypatch.setenv("OPENAI_BASE_URL", url)
        if wrong == "key":
            monkeypatch.delenv("OPENAI_API_KEY")
        if wrong == "refused key":
            monkeypatch.setenv("OPENAI_API_KEY", "sk-proj-" + "w1R2o3N4g5" * 3)
        if wrong == "columns":
            row = english("dizzy")
            del row["expected_output"]
            (source / "train" / "en.json").write_text(json.dumps([row]))
        place = tmp_path / "nothing" if wrong == "file" else source
        given = ["--to", "es", "--model", MODEL, "--out", "new"]
        output = sweep("data", "translate", "api_calling", str(place), *given, code=2)
    assert what in output and "w1R2o3N4g5" not in output
    assert not store.exists()


def test_a_snapshot_is_refused_since_it_would_write_no_data_set(
    sweep: Sweep, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", ["dizzy"], [])
    with Server().running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        given = ["--to", "es", "--model", MODEL, "--out", "new", "launcher.snapshot=true"]
        output = sweep("data", "translate", "api_calling", str(source), *given, code=2)
    assert "launcher.snapshot=true" in output and not store.exists()


def test_the_plan_counts_requests_and_tokens(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source", GOOD, ["sleepy"] * 3)
    words = [f"source.path={source}", f"model.name={MODEL}", "to=[es,te]", "language=es,te,all"]
    assert "$OPENAI_BASE_URL is not set" in sweep("plan", "translate_api_calling", *words)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    plan = sweep.json("plan", "translate_api_calling", *words)
    assert plan["num_cells"] == 17 and plan["prefetch"] is None
    totals = plan["totals"]
    assert totals["num_requests"] >= 2 * 5 and totals["completion_tokens"] > 0
    by_language = {cell["cell"][:2]: 0 for cell in plan["cells"]}
    for cell in plan["cells"]:
        by_language[cell["cell"][:2]] += cell["estimate"]["completion_tokens"]
    assert by_language["te"] > 3 * by_language["es"]  # Telugu takes more tokens


def translate_one(source: Path, cache: Path, folder: Path) -> None:
    config = config_of(source, cache, endpoint={"max_concurrent": 2})
    run(load_spec(), config, folder, language="es", shard=0)


def load_spec() -> Any:
    return load("orchestrator.translation.stages:TRANSLATE")


def test_after_a_kill_only_requests_in_flight_are_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"ill{'abcdefghij'[n % 10] * (1 + n // 10)}" for n in range(30)]
    source, server = write_source(tmp_path / "source", words, []), Server()
    server.may_reply = threading.Semaphore(8)
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        forks = multiprocessing.get_context("fork")
        child = forks.Process(target=translate_one, args=(source, tmp_path / "cache", tmp_path / "a"))
        child.start()
        wait_for(lambda: server.asked.total() > 8)  # so at most two replies are not read yet
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        before = server.sent.total()
        assert before == 8
        server.may_reply.release(len(words))
        output, (row,) = run(
            stages.TRANSLATE, config_of(source, tmp_path / "cache"), tmp_path / "b", language="es", shard=0
        )
    assert row["num_answered"] == len(words) and row["num_cached"] >= before - 2
    assert sum(number - 1 for number in server.asked.values()) <= 2  # max_concurrent
    assert len(read_lines(output / REPLIES, Answered)) == len(words)


@pytest.mark.long
def test_a_launch_that_is_killed_with_all_its_processes_goes_on(
    tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"ill{'abcdefghij'[n % 10] * (1 + n // 10)}" for n in range(60)]
    source, server = write_source(tmp_path / "source", words, []), Server(delay_s=0.1)
    given = (
        "data",
        "translate",
        "api_calling",
        str(source),
        "--to",
        "es,ja",
        "--model",
        MODEL,
        "--out",
        "out",
    )
    settings = ("num_shards=2", "shard=0,1,all", "launcher.workers=2", "endpoint.max_concurrent=2")
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("POLYSWEEP_DATA", str(tmp_path / "cache"))
        env = {**os.environ, "SWEEP_STORE": str(sweep.store)}
        command = [sys.executable, "-m", "orchestrator", *given, *settings]
        launch = subprocess.Popen(command, cwd=sweep.folder, env=env, stdout=subprocess.DEVNULL)
        until_s = time.monotonic() + 60
        while server.sent.total() < 30 and time.monotonic() < until_s:
            time.sleep(0.02)
        family = [*psutil.Process(launch.pid).children(recursive=True), psutil.Process(launch.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launch.wait()
        before = server.sent.copy()
        assert 30 <= before.total() < 2 * len(words)
        sweep(*given, *settings)
    twice = sum(number - 1 for number in server.asked.values())
    assert twice <= 2 * 2, "workers times requests at a time"
    assert server.asked.total() == 2 * len(words) + twice
    assert manifest(sweep.folder / "out")["num_in_data_set"] == len(words)
