"""Time of `sweep status` and `sweep query` on a local folder: as processes, and the grouping of rows alone.

Makes stores of finished cells from records, without running them. `sweep status` is timed as a first look,
as a later one, and without a place for what it keeps; also when the kernel holds no record in memory.
Usage:

    python benchmarks/query.py [230 | 10000]...
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import duckdb
import msgspec

from orchestrator.api import query
from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState
from orchestrator.core.records import Done
from orchestrator.core.sweep import StageInstance
from orchestrator.count import COUNT
from orchestrator.manifest import scan
from orchestrator.stage import StageSpec
from orchestrator.store import kept, layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.objects import idle
from tests.store import builders

NUM_ROWS = 110_000
GROUPING = "select language, avg(score) as score, count(*) as n from results group by all"


def finish(ledger: Ledger, store: Path, instance: StageInstance, num_rows: int) -> None:
    """Write what an attempt leaves, without the sync of each file that makes it durable."""

    def put(key: str, record: msgspec.Struct) -> None:
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (store / key).write_bytes(ledger.encode(record))

    folder = store / layout.output(instance, 1)
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text("whole")
    rows = tuple({"language": f"l{n % 20}", "score": n / 7, "loss": n * 0.1} for n in range(num_rows))
    put(layout.attempt(instance, 1, layout.CLAIM), builders.claim())
    done = Done(
        nonce=new_nonce(),
        stage=instance.stage,
        digest=instance.digest,
        generation=1,
        attempt=1,
        files=scan(folder),
        rows=rows,
        seconds=1.0,
    )
    put(layout.done(instance, 1), done)
    put(layout.attempt(instance, 1, layout.END), builders.end("succeeded"))


def timed(what: str, *words: str, prepare: Callable[[], object] = idle) -> None:
    """Run a command five times; print the shortest time, and the least processor time.

    Args:
        what: the command, for people.
        words: of Python's command line.
        prepare: called before each run.
    """
    runs = []
    for _ in range(5):
        prepare()
        before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        runs.append((time.perf_counter() - start_s, cpu_s))
    wall_s, cpu_s = map(min, zip(*runs, strict=True))
    print(f"  {what:<52} {wall_s:6.2f} s  {cpu_s:6.2f} s of processor")


def forget(folder: Path) -> None:
    """Let the kernel drop the content of files from memory; it still knows their names and sizes."""
    for path in folder.glob("*/*"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def time_looks(store: Path, cache: Path) -> None:
    """Time `sweep status` with and without kept records; leave them kept."""

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    nowhere = Path(os.environ["SWEEP_CACHE"] + "-none")
    nowhere.write_text("no folder")
    status = ("-m", "orchestrator", "status", "counts")
    os.sync()
    timed("sweep status, first look", *status, prepare=first)
    timed("sweep status, later", *status)
    timed("sweep status, later, records not in memory", *status, prepare=lambda: forget(store / "done"))
    os.environ["SWEEP_CACHE"] = str(nowhere)
    timed("sweep status, nothing kept", *status)
    timed("sweep status, nothing kept nor in memory", *status, prepare=lambda: forget(store / "done"))
    os.environ["SWEEP_CACHE"] = str(cache)


def measure(num_cells: int) -> None:
    """Make a store of finished cells with two stages each, and time the verbs on it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "runs")
        os.environ |= {"SWEEP_STORE": str(store), "SWEEP_CACHE": f"{folder}/cache"}
        more = StageSpec(run="m:f", reads=("seed",), after=("count",))
        sweep = builders.sweep_of(num_cells, {"count": COUNT, "more": more}, name="counts")
        builders.seal(store, sweep)
        ledger = open_ledger(str(store))
        view = SweepState(ledger, sweep, 1, sealed=True)
        launch = build_request(view, "launch", list(sweep.cells), settings=builders.settings())
        ledger.add_request("counts", launch)
        for instance in sweep.stages.values():
            finish(ledger, store, instance, NUM_ROWS // num_cells if instance.stage == "more" else 0)
        print(f"{num_cells} finished cells of two stages, {NUM_ROWS // num_cells * num_cells} rows")
        timed("sweep --version", "-m", "orchestrator", "--version")
        timed("imports of sweep status", "-c", "import orchestrator.cli.main, orchestrator.cli.status")
        time.sleep(kept.SETTLED_S + 1)
        time_looks(store, Path(folder, "cache"))
        cells = "select state, count(*) as n from cells group by all"
        timed("sweep query, cells by state", "-m", "orchestrator", "query", cells)
        start_s = time.perf_counter()
        query.answer_of(ledger, GROUPING)
        print(f"  {'first query of the results, in this process':<52} {time.perf_counter() - start_s:6.2f} s")
        timed("sweep query, results by language", "-m", "orchestrator", "query", GROUPING)
        connection = duckdb.connect()
        table = query.query_of(ledger, "from results")
        connection.register("arrow", table)
        connection.execute("create table results as from arrow")
        best_s = min(_once(connection) for _ in range(5))
        print(f"  {f'the grouping of {table.num_rows} rows alone':<52} {best_s:6.3f} s")


def _once(connection: duckdb.DuckDBPyConnection) -> float:
    start_s = time.perf_counter()
    connection.execute(GROUPING).fetchall()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    for word in sys.argv[1:] or ("230", "10000"):
        measure(int(word))
