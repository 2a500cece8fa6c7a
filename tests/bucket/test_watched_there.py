"""A sweep in a bucket is looked at again and again, also while the bucket does not answer."""

from __future__ import annotations

import pytest

from orchestrator.api.logs import curve, log_tail
from orchestrator.api.overview import Watched
from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState
from orchestrator.errors import SweepError
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from tests.bucket.buckets import Bucket
from tests.store import builders


def test_a_look_sees_what_happened_and_goes_on_after_an_outage(bucket: Bucket) -> None:
    sweep = builders.sweep_of(3)
    builders.seal(bucket.url, sweep)
    ledger = open_ledger(bucket.url)
    bucket.opened.append(ledger.objects)  # type: ignore[arg-type]
    view = SweepState(ledger, sweep, 1, sealed=True)
    ledger.add_request(
        "counts", build_request(view, "launch", list(sweep.cells), settings=builders.settings())
    )
    watched = Watched("counts", bucket.url)
    assert watched.look().counts == {"pending": 3}
    instance = builders.instance_of(sweep)
    ledger.claim(instance, 1, builders.claim())
    folder = ledger.objects.workspace(layout.payload(instance, 1))
    (folder / layout.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (folder / layout.LOG).write_text("step 1\nstep 2\n")
    builders.make_product(ledger, instance)
    ledger.objects.upload(layout.payload(instance, 1))
    ledger.end(instance, 1, builders.end("succeeded"))
    assert watched.look().counts == {"done": 1, "pending": 2}
    cell = watched.view.cell("seed0")
    assert curve(watched.view, cell, watched.metrics).points == ((1, 2.0), (2, 1.0))
    assert log_tail(watched.view, cell).lines == ("step 1", "step 2")
    # A bucket is looked at less often, because its requests cost money.
    assert watched.pause_s(0.5) >= ledger.objects.poll_s > 0.5
    bucket.proxy.is_down = True
    with pytest.raises((SweepError, OSError)):
        watched.look()
    bucket.proxy.is_down = False
    assert watched.look().counts == {"done": 1, "pending": 2}
