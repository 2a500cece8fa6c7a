"""The public names for type checkers; at run time `__init__.py` imports each when it is first used."""

from orchestrator.api.sweep import Store as Store
from orchestrator.api.sweep import Sweep as Sweep
from orchestrator.core.state import State as State
from orchestrator.errors import InfrastructureError as InfrastructureError
from orchestrator.errors import StageFailure as StageFailure
from orchestrator.errors import SweepError as SweepError
from orchestrator.errors import UserError as UserError
from orchestrator.spec import Config as Config
from orchestrator.spec import StageSpec as StageSpec
from orchestrator.stage import Checkpoint as Checkpoint
from orchestrator.stage import Context as Context

__version__: str
__all__: list[str]
