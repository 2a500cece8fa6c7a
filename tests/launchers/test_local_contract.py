"""The local launcher passes the suite of all launchers."""

from __future__ import annotations

from tests.launchers.contract import LauncherContract


class TestLocal(LauncherContract):
    words = ("launcher=local", "launcher.workers=2")
