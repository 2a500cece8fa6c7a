"""Setup of the local launcher's fork server, which imports this module for that side effect."""

from __future__ import annotations

from orchestrator.execution.keeper import serve

serve()
