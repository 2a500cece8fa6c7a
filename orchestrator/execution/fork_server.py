"""Setup of the local launcher's fork server, which imports this module for that side effect."""

from __future__ import annotations

from orchestrator.execution.keeper import serve
from orchestrator.formats import inspect_records
from orchestrator.store.checkout import Checkout

serve()
Checkout({}, ()).digest()  # read this package's files once for all workers
inspect_records()
