"""What a local launcher's fork server imports, and nothing else does: importing it sets the server up."""

from __future__ import annotations

from orchestrator.execution.keeper import serve

serve()
