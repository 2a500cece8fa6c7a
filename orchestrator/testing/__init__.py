"""The suites that plugins pass, and ours: launchers, trackers, mirrors, tasks, generators, reports, stages.

Only this package imports pytest. A test of a plugin is a subclass of a suite::

    class TestPbs(LauncherContract):
        words = ("launcher=pbs", "--wait")

Write ``pytest.register_assert_rewrite("orchestrator.testing")`` into ``conftest.py``. Then pytest shows the
values of a failed assertion.
"""

from orchestrator.testing.commands import COUNT as COUNT
from orchestrator.testing.commands import SweepCommand as SweepCommand
from orchestrator.testing.commands import checkpoints as checkpoints
from orchestrator.testing.commands import counted as counted
from orchestrator.testing.commands import records as records
from orchestrator.testing.commands import running_heartbeats as running_heartbeats
from orchestrator.testing.commands import wait_for as wait_for
from orchestrator.testing.computing import GeneratorCase as GeneratorCase
from orchestrator.testing.computing import GeneratorContract as GeneratorContract
from orchestrator.testing.computing import ReportContract as ReportContract
from orchestrator.testing.computing import TaskContract as TaskContract
from orchestrator.testing.running import SHARED as SHARED
from orchestrator.testing.running import SHARED_MODULE as SHARED_MODULE
from orchestrator.testing.running import LauncherContract as LauncherContract
from orchestrator.testing.running import MirrorContract as MirrorContract
from orchestrator.testing.running import StageContract as StageContract
from orchestrator.testing.running import TrackerContract as TrackerContract
