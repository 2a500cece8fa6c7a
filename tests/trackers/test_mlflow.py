"""`tracker=mlflow` and `sweep sync --to mlflow` against a small server on loopback, working or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError, retry_after_s
from orchestrator.store.ledger import open_ledger
from orchestrator.trackers.mirror import MirrorPasses
from orchestrator.trackers.mlflow_mirror import MlflowMirror, clean, found_run
from orchestrator.trackers.mlflow_server import Server, address_of
from orchestrator.trackers.protocol import Unavailable, as_text, flat
from tests.cli.launches import Running, wait_for
from tests.trackers.conftest import TWO
from tests.trackers.mlflow_server import SmallMlflow, real_mlflow
from tests.trackers.receiver import refusing


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallMlflow]:
    server = SmallMlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    yield server
    server.close()


def steps(run: dict[str, Any], key: str = "count/value") -> list[int]:
    return [step for step, _, _ in run["points"][key]]


def test_a_sweep_is_a_run_and_its_cells_are_nested_runs_with_all_that_the_store_has(
    two: Any, server: SmallMlflow
) -> None:
    said = two("launch", "two.yaml", "tracker=mlflow", "tracker.mlflow.experiment=mine")
    assert "MLflow: 2 runs in experiment mine" in said
    (parent,) = [id for id, run in server.runs.items() if run["info"]["run_name"] == "two"]
    assert server.runs[parent]["info"]["status"] == "FINISHED" and len(server.runs) == 3
    for cell in two.json("status", "two")["cells"]:
        run = server.named(cell["cell"])
        assert run["info"]["status"] == "FINISHED"
        assert run["tags"]["mlflow.parentRunId"] == parent
        assert run["tags"]["polysweep.cell"] == cell["cell"] and run["tags"]["polysweep.revision"] == "1"
        assert run["tags"]["polysweep.state"] == "done"
        assert run["params"]["count.num_steps"] == "8" and run["params"]["seed"] in "01"
        assert steps(run) == list(range(1, 9))
        times = [at for _, at, _ in run["points"]["count/value"]]
        assert times == sorted(times) and abs(times[0] / 1000 - time.time()) < 120
        assert run["points"]["count/num_steps"][0][2] == 8.0


def test_a_sync_fills_in_what_is_missing_once_and_prints_how_much(done: Any, server: SmallMlflow) -> None:
    assert "sent 16 points and 2 results of 2 cells" in done("sync", "two", "--to", "mlflow")
    before = {id: dict(run["points"]) for id, run in server.runs.items()}
    assert "nothing was missing" in done("sync", "two", "--to", "mlflow")
    assert before == {id: dict(run["points"]) for id, run in server.runs.items()} and len(before) == 3
    assert server.requests[-2:] == ["experiments/get-by-name", "runs/search"]
    done("discard", "two", "seed=0", "--stage", "count", "--reason", "again")
    done("launch", "two.yaml")
    (said,) = done.json("sync", "two", "--to", "mlflow")
    assert said == {"to": "mlflow", "cells": 1, "points": 8, "results": 1, "cells_lost": 0, "problem": ""}


def test_an_answer_that_is_lost_leaves_nothing_twice_and_nothing_out(done: Any, server: SmallMlflow) -> None:
    server.lose = 1
    said = done("sync", "two", "--to", "mlflow")
    assert "what is missing" not in said
    assert len(server.runs) == 3
    for seed in ("0", "1"):
        (run,) = [run for run in server.runs.values() if run["tags"].get("axis.seed") == seed]
        assert steps(run) == list(range(1, 9)) and len(run["points"]["count/num_steps"]) == 1


@pytest.mark.long
def test_sweeps_of_one_name_in_two_stores_are_apart_on_one_server(
    two: Any, server: SmallMlflow, tmp_path: Path
) -> None:
    for place in ("here", "there"):
        two("launch", "two.yaml", "tracker=mlflow", f"store.url={tmp_path / place}")
    assert len(server.runs) == 6
    assert len({run["tags"]["polysweep.sweep_id"] for run in server.runs.values()}) == 2


def test_a_cell_that_failed_is_failed_there_and_goes_on_in_its_run_when_it_is_run_again(
    two: Any, server: SmallMlflow
) -> None:
    fail = "count.fail={how: data, step: 6, attempts: 1}"
    two("launch", "two.yaml", "seed=0", fail, "tracker=mlflow", code=1)
    assert [run["info"]["status"] for run in server.runs.values()] == ["FAILED", "FAILED"]
    two("rerun", "two", "--yes")
    assert [run["info"]["status"] for run in server.runs.values()] == ["FINISHED", "FINISHED"]
    (run,) = [run for run in server.runs.values() if "polysweep.cell" in run["tags"]]
    assert steps(run) == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]


@pytest.mark.long
def test_a_launch_that_is_stopped_leaves_its_cells_killed_there_and_the_next_goes_on_in_them(
    two: Any, server: SmallMlflow
) -> None:
    slow = ("two.yaml", "seed=0", "count.num_steps=40", "count.step_s=0.1", "tracker=mlflow")
    running = Running(two.folder, two.store, ("launch", *slow))
    wait_for(lambda: any(run["points"] for run in server.runs.values()), 60)
    assert {run["info"]["status"] for run in server.runs.values()} == {"RUNNING"}
    running.interrupt()
    running.end()
    assert {run["info"]["status"] for run in server.runs.values()} == {"KILLED"}
    two("launch", *slow)
    assert [run["info"]["status"] for run in server.runs.values()] == ["FINISHED", "FINISHED"]
    (run,) = [run for run in server.runs.values() if "polysweep.cell" in run["tags"]]
    assert set(steps(run)) == set(range(1, 41))


@pytest.mark.parametrize(
    ("status", "retry", "word"),
    [
        pytest.param(401, "", "refuses us (401)", marks=pytest.mark.long),
        (429, "3600", "takes no more for now (429)"),
        pytest.param(503, "", "fails (503)", marks=pytest.mark.long),
    ],
)
def test_a_server_that_takes_nothing_is_named_once_and_mended_later(
    two: Any, server: SmallMlflow, status: int, retry: str, word: str, tmp_path: Path
) -> None:
    server.status, server.retry_after = status, retry
    said = two("launch", "two.yaml", "tracker=[mlflow,tensorboard]", f"tracker.tensorboard.dir={tmp_path}/tb")
    assert "2 cells: 2 done" in said and "TensorBoard: 2 runs" in said
    assert said.count(word) == 1 and "sweep sync two --to mlflow" in said
    (log,) = two.store.glob("sweeps/two/logs/request-1-mirror.log")
    assert word in log.read_text() and "Traceback" not in log.read_text()
    server.status = 0
    assert "sent 16 points" in two("sync", "two", "--to", "mlflow")


@pytest.mark.long
def test_a_pause_of_years_is_bounded(two: Any, server: SmallMlflow) -> None:
    two("launch", "two.yaml", "seed=0", "count.num_steps=1")
    server.status, server.retry_after = 429, "99999999999"
    ledger, said, over = open_ledger(str(two.store)), list[str](), threading.Event()
    passes = MirrorPasses("mlflow", {}, ledger=ledger, revision=ledger.revision("two", 1), notify=said.append)
    with ThreadPoolExecutor() as pool:
        result = pool.submit(passes.run, over)
        wait_for(lambda: said)
        time.sleep(0.2)  # it waits now
        over.set()
    assert result.result().problem.endswith("takes no more for now (429)")


def test_a_server_that_is_not_there_or_refuses_costs_a_sync_its_exit_code(
    done: Any, monkeypatch: pytest.MonkeyPatch, server: SmallMlflow
) -> None:
    server.status = 403
    said = done("sync", "two", "--to", "mlflow", code=3)
    assert "refuses us (403)" in said and "MLFLOW_TRACKING_USERNAME" in said
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI is not set" in done("sync", "two", "--to", "mlflow", code=2)
    assert "unknown mirror 'mlflw'" in done("sync", "two", "--to", "mlflw", code=2)
    assert "MLFLOW_TRACKING_URI is not set" in done("launch", "two.yaml", "tracker=mlflow", code=2)


def test_credentials_go_to_the_server_and_nowhere_else(
    two: Any, server: SmallMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2-very-secret")
    two("launch", "two.yaml", "tracker=mlflow")
    assert set(server.headers) == {"Bearer hunter2-very-secret"}
    server.status = 401
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//me:hunter2-very-secret@"))
    said = two("rerun", "two", "--yes", code=None) + two("sync", "two", "--to", "mlflow", code=3)
    assert "hunter2" not in said and server.headers[-1].startswith("Basic ")
    written = [path for path in two.store.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"hunter2" in path.read_bytes()]


def test_what_a_server_does_has_a_meaning(server: SmallMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(address: str) -> Unavailable:
        with pytest.raises(Unavailable) as caught:
            Server({"MLFLOW_TRACKING_URI": address}).experiment("x")
        return caught.value

    with refusing() as port:
        gone = call(f"http://127.0.0.1:{port}")
    assert "cannot be reached" in gone.what and not gone.is_final
    server.status, server.retry_after = 429, "17"
    assert call(server.address).retry_s == 17.0
    server.status, server.retry_after = 404, ""
    assert call(server.address).is_final  # no MLflow server
    server.status = 200  # nor is this one, although it answers in JSON
    gone = call(server.address)
    assert gone.is_final and "not of this API (200)" in gone.what
    monkeypatch.setattr("orchestrator.trackers.protocol.REQUEST_S", 0.2)
    server.status, server.delay_s = 0, 60.0
    assert "does not answer" in call(server.address).what
    assert retry_after_s("nonsense") is None and retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_addresses_and_names_that_no_server_takes() -> None:
    for url in ("", "sqlite:///m.db", "mlruns", "file:///tmp/x", "http://", "http://me:hunt/er2@host"):
        with pytest.raises(UserError) as caught:
            address_of({"MLFLOW_TRACKING_URI": url})
        assert "hunt" not in str(caught.value)
    assert clean("train/loss") == "train/loss"
    assert clean("a%b") != clean("a$b") and not set(clean("a%b")) & set("%$")
    assert not clean("/../x").startswith(("/", ".")) and len(clean("x" * 300)) <= 250
    with pytest.raises(UserError):
        MlflowMirror({"experimnt": "x"})


@pytest.mark.parametrize("text", ["", "12x", "-1", "1e3", "²"])
def test_a_cursor_that_somebody_edited_counts_as_none(text: str) -> None:
    run = {"info": {"run_id": "r", "status": "RUNNING"}, "data": {}}
    tags = {"polysweep.sent.a": text, "polysweep.sent.b": "12"}
    assert found_run(run, tags).progress.bytes == {"b": 12}


def test_values_of_a_config_are_text_as_it_is_and_json_for_all_else() -> None:
    values = ["a b", "", 'say "x"', 1, 0.5, True, None, ["en", 1], "1"]
    texts = ["a b", "", 'say "x"', "1", "0.5", "true", "null", '["en",1]', "1"]
    assert [as_text(value) for value in values] == texts
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": [1]})) == {"a.b": 1, "d": [1]}


@pytest.mark.long
def test_a_slow_server_holds_up_neither_the_cells_nor_another_mirror_nor_the_end(
    two: Any, server: SmallMlflow
) -> None:
    server.delay_s = 60.0
    start_s = time.monotonic()
    said = two("launch", "two.yaml", "tracker=[mlflow,tensorboard]")
    assert "2 cells: 2 done" in said and "TensorBoard: 2 runs" in said
    assert said.count("does not answer within") == 1 and "sweep sync two --to mlflow" in said
    assert time.monotonic() - start_s < 45  # one request is waited for, 10 s


@pytest.mark.long
def test_a_cell_with_more_than_a_request_holds_is_sent_whole(
    two: Any, server: SmallMlflow, tmp_path: Path
) -> None:
    many = {f"key{n}": n for n in range(230)}
    config = f"{{seed: 0, note: {'x' * 700}, many: {many}, "
    text = TWO.replace("{seed: 0, ", config).replace("'", "")
    (two.folder / "two.yaml").write_text(text)
    two("launch", "two.yaml", "seed=0", "count.num_steps=1500", "count.step_s=0")
    assert "sent 1,500 points and 1 result of 1 cell" in two("sync", "two", "--to", "mlflow")
    (run,) = [run for run in server.runs.values() if "polysweep.cell" in run["tags"]]
    assert steps(run) == list(range(1, 1501))
    assert len(run["params"]) == 236 and run["params"]["note"] == "x" * 500


@pytest.mark.long
def test_mlflows_own_server_shows_the_sweep_its_cells_and_each_point_once(
    two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with real_mlflow(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        fail = "count.fail={how: data, step: 6, attempts: 1}"
        two("launch", "two.yaml", fail, "tracker=mlflow", code=1)
        client = MlflowClient(address)
        (experiment,) = client.search_experiments(filter_string="name = 'polysweep'")

        def runs() -> dict[str, Any]:
            return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}

        assert {run.info.status for run in runs().values()} == {"FAILED"}
        two("rerun", "two", "--yes")
        # A cursor that was lost after its points arrived: they are sent again, and the server keeps one each.
        cell = next(name for name in runs() if name != "two")
        for tag in [tag for tag in runs()[cell].data.tags if tag.startswith("polysweep.sent.")]:
            client.delete_tag(runs()[cell].info.run_id, tag)
        assert "sent 10 points and 0 results of 1 cell" in two("sync", "two", "--to", "mlflow")
        assert "nothing was missing" in two("sync", "two", "--to", "mlflow")
        found = runs()
        assert len(found) == 3 and {run.info.status for run in found.values()} == {"FINISHED"}
        parent = found.pop("two").info.run_id
        for run in found.values():
            assert run.data.tags["mlflow.parentRunId"] == parent
            assert run.data.params["count.num_steps"] == "8"
            points = client.get_metric_history(run.info.run_id, "count/value")
            assert sorted(point.step for point in points) == [1, 2, 3, 4, 4, 5, 5, 6, 7, 8]
            assert run.data.metrics["count/num_steps"] == 8.0
