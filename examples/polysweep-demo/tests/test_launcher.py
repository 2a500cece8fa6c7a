"""The launcher passes the suite of all launchers."""

from __future__ import annotations

from orchestrator.testing import LauncherContract


class TestCommandLauncher(LauncherContract):
    """See `orchestrator.testing`."""

    words = ("launcher=command", "launcher.workers=2")
