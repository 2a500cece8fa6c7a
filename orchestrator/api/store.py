"""A store as a value, with the sweeps in it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.api.state import store_url
from orchestrator.api.sweep import Sweep
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import following


class Store:
    """A store of sweeps: a folder or a bucket.

    Args:
        url: a path, ``s3://...`` or ``gs://...``. Without it, SWEEP_STORE is used, else the folder ``runs``.

    Raises:
        UserError: the place exists and is not a store.
        InfrastructureError: the store does not answer.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        place = store_url(None if url is None else str(url))
        with following(place):
            self._ledger = open_ledger(place)

    @property
    def url(self) -> str:
        """Where the store is: an absolute path, or the URL of a bucket."""
        return self._ledger.objects.url

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that were launched here, sorted."""
        return sorted(self._ledger.sweeps())

    def open(self, sweep: str) -> Sweep:
        """Return a sweep of the store.

        Args:
            sweep: ``smoke`` for the revision that was launched last, or ``smoke@2`` for revision 2.

        Raises:
            UserError: the store has no such sweep.
        """
        return Sweep.open(sweep, store=self.url)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"
