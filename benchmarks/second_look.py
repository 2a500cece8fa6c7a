"""Time and requests of `sweep status` over a bucket: a first look, a second one, and one after a discard.

Starts moto's S3 server on loopback, and puts a sweep of two kinds of stages into a bucket there. Usage:

    python benchmarks/second_look.py [CELLS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState
from orchestrator.core.sweep import ComposedSweep
from orchestrator.count import COUNT
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from tests.bucket.server import Proxy, start_server
from tests.store import builders


def fill(ledger: Ledger, sweep: ComposedSweep) -> None:
    """Give each stage instance a finished attempt and a product."""
    for number, instance in enumerate(sweep.stages.values()):
        if number < len(sweep.stages) - 5:
            ledger.claim(instance, 1, builders.claim())
            builders.make_product(ledger, instance)
            ledger.objects.upload(layout.output(instance, 1))
            ledger.end(instance, 1, builders.end("succeeded"))


def look(what: str, url: str, proxy: Proxy) -> None:
    """Run `sweep status` in a process of its own, and print its time and its requests."""
    proxy.seen.clear()
    start_s = time.perf_counter()
    words = [sys.executable, "-m", "orchestrator", "status", "counts", "--store", url]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start_s
    listings = [path for _, path in proxy.seen if "list-type" in path]
    pages = [path for path in listings if "continuation-token" in path]
    reads = len(proxy.seen) - len(listings)
    print(
        f"{what:<28} {seconds:6.2f} s  {len(listings) - len(pages):4} listings "
        f"({len(pages)} further pages)  {reads:5} other requests"
    )


def main() -> None:
    """Run the looks."""
    num_cells = int(sys.argv[1]) if len(sys.argv) > 1 else 230
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "log")
        proxy = Proxy(server.port)
        server.make_bucket("bench")
        os.environ |= {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "SWEEP_CACHE": f"{folder}/cache",
        }
        more = StageSpec(run="m:f", reads=("seed",), after=("count",))
        sweep = builders.sweep_of(num_cells, {"count": COUNT, "more": more}, name="counts")
        url = "s3://bench/runs"
        builders.seal(url, sweep)
        ledger = open_ledger(url)
        view = SweepState(ledger, sweep, 1, sealed=True)
        launch = build_request(view, "launch", list(sweep.cells), settings=builders.settings())
        ledger.add_request("counts", launch)
        try:
            fill(ledger, sweep)
            print(f"{num_cells} cells, 2 kinds of stages, neither wholly done")
            look("first look", url, proxy)
            look("second look", url, proxy)
            look("third look", url, proxy)
            ledger.void(next(iter(sweep.stages.values())), builders.void(1, "discarded"))
            look("after a discard", url, proxy)
            os.environ["SWEEP_CACHE"] = f"{folder}/other"
            look("another machine", url, proxy)
        finally:
            ledger.objects.close()  # type: ignore[attr-defined]
            proxy.close()
            server.process.kill()


if __name__ == "__main__":
    main()
