"""The literal tables from names to ``module:object``, and the import of such an object.

Most names are those of settings and sweep files: stages, tasks, launchers, trackers, generators, reports. The
other tables let the engine use the science without importing it, and a layer use a higher one: the functions
behind ``sweep data``, the stores in buckets, the writer of reports and the reader of tables.

An object's module is imported when its name is first used. A user's own object needs no entry: it is named
``module:object`` directly, see `lookup`. An installed distribution adds names to the tables in `PLUGGABLE` by
entry points. CONTRIBUTING.md lists what else an addition needs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from orchestrator.errors import UserError, nearest
from orchestrator.manifest import Stamp, stamps

STAGES: Mapping[str, str] = {
    "count": "orchestrator.count:COUNT",
    "tokenizer": "orchestrator.sft.stages:TOKENIZER",
    "base": "orchestrator.sft.stages:BASE",
    "prepare": "orchestrator.sft.stages:PREPARE",
    "train": "orchestrator.sft.stages:TRAIN",
    "evaluate": "orchestrator.sft.stages:EVALUATE",
    "rehearse": "orchestrator.sft.stages:REHEARSE",
    "translate": "orchestrator.translation.stages:TRANSLATE",
    "validate": "orchestrator.translation.stages:VALIDATE",
    "assemble": "orchestrator.translation.stages:ASSEMBLE",
}
"""Name of a stage to its `StageSpec`."""

FORMER: Mapping[str, tuple[str, str]] = {
    "evaluate": ("orchestrator.sft.stages:EVALUATE_BEFORE", "scored again from kept predictions"),
}
"""Name of a stage to the `StageSpec`s of its earlier versions, the latest first, and a phrase.

The stage's product can be made from theirs, see `orchestrator.stage.Context`; the phrase describes how.
"""

REMEDIES: Mapping[str, str] = {
    "train": "orchestrator.sft.stages:TRAINING_REMEDIES",
    "rehearse": "orchestrator.sft.stages:TRAINING_REMEDIES",
    "evaluate": "orchestrator.sft.stages:EVALUATION_REMEDIES",
}
"""Name of a stage to the fields `remedies` and `alike` of its `StageSpec`.

They stand apart from the spec because that is sealed, and stores of format 1 cannot hold them.
"""

TASKS: Mapping[str, str] = {
    "math": "orchestrator.tasks.math:MATH",
    "api_calling": "orchestrator.tasks.api_calling:API_CALLING",
}
"""Name of a task to its `Task`."""

DATA: Mapping[str, str] = {
    "describe": "orchestrator.tasks.dataset:describe",
    "check": "orchestrator.tasks.checking:check",
    "import": "orchestrator.sft.fetching:import_data",
    "measures": "orchestrator.sft.fetching:measures",
    "summary": "orchestrator.tasks.dataset:summary",
    "setting": "orchestrator.tasks.dataset:setting",
    "endpoint": "orchestrator.translation.endpoint:check_access",
}
"""Verb of `sweep data` to the function that does it."""

GENERATORS: Mapping[str, str] = {
    "transformers": "orchestrator.sft.generators.transformers:TransformersEngine",
    "vllm": "orchestrator.sft.generators.vllm:VllmEngine",
}
"""`evaluation.engine` to a class that is an `Engine`."""

BUCKETS: Mapping[str, str] = dict.fromkeys(("s3", "gs"), "orchestrator.store.bucket:RemoteStore")
"""Scheme of a store's address to a class that is an `ObjectStore` over a bucket."""

INDEXED = "orchestrator.store.looking:indexed"
"""A function ``(ledger) -> ledger`` for readers of a bucket, to read only once what cannot change."""

KEPT = "orchestrator.store.kept:plain_products"
"""A function that reads many products from a folder, each record only once on this machine."""

LAUNCHERS: Mapping[str, str] = {
    "local": "orchestrator.launchers.local:LocalLauncher",
    "slurm": "orchestrator.launchers.slurm.launcher:SlurmLauncher",
    "ray": "orchestrator.launchers.ray.launcher:RayLauncher",
    "external": "orchestrator.launchers.external:ExternalLauncher",
}
"""`launcher.name` to a class that is a `Launcher`, or a `Submitter`, whose workers start later."""

SCHEDULERS: Mapping[str, str] = {
    "slurm": "orchestrator.launchers.slurm.query:SlurmScheduler",
    "ray": "orchestrator.launchers.ray.scheduler:RayScheduler",
}
"""`Submission.launcher` to a class that is a `Scheduler`, which answers queries about its jobs."""

TRACKERS: Mapping[str, str] = {
    "store": "orchestrator.trackers.base:StoreTracker",
}
"""`tracker.name` to a class that is a `Tracker`, which runs in the process of a stage."""

MIRRORS: Mapping[str, str] = {
    "wandb": "orchestrator.trackers.wandb_mirror:WandbMirror",
    "mlflow": "orchestrator.trackers.mlflow_mirror:MlflowMirror",
    "tensorboard": "orchestrator.trackers.tensorboard_mirror:TensorboardMirror",
    "trackio": "orchestrator.trackers.trackio_mirror:TrackioMirror",
}
"""Names in `TrackerSettings.mirrors` to a class that is a `Mirror`, which follows the store, not a stage."""

REPORTS: Mapping[str, str] = {
    "accuracy": "orchestrator.study.summary:write",
    "general": "orchestrator.reports.general:write",
    "study": "orchestrator.study.report:write",
}
"""`report` of a sweep to a function ``(rows, folder) -> list[Path]``; see `orchestrator.reporting`."""

FITTING: Mapping[str, str] = {"study": "orchestrator.study.tables.results:fits"}
"""Report to a function ``(rows, *, about) -> bool``: whether it suits rows of sweeps that name no report."""

CLAIMS: Mapping[str, str] = {"study": "orchestrator.study.claims:weights"}
"""Report to a function ``(configs) -> dict | None``: how many of its rows and comparisons need each cell."""

FORMULAS: Mapping[str, str] = {
    "accuracy": "orchestrator.study.claims:ACCURACY_FORMULAS",
    "general": "orchestrator.reports.page:FORMULAS",
    "study": "orchestrator.study.claims:FORMULAS",
}
"""Report to a mapping from file or heading of a table to a sentence on how its numbers are computed."""

RESCORED: Mapping[str, str] = {"evaluate": "orchestrator.sft.predictions:rescored"}
REPLAYED: Mapping[str, str] = {"train": "orchestrator.sft.replay"}
"""Stage to the function that compares rows with predictions; and to the module that computes a part again."""

GENERAL = "general"
"""The report used when no other report fits."""

NOTIFIER = "orchestrator.trackers.notifier:Notifier"
"""The class that sends notices for a launch, in processes of its own."""

CHECK_NOTIFY = "orchestrator.trackers.notifier:check_notify"
"""A function ``(settings) -> None`` that refuses channels of notices that cannot work here."""

UNDELIVERED = "orchestrator.api.notices:undelivered"
"""A function ``(view) -> list`` of the notices that were not delivered."""

REPORT_WRITER = "orchestrator.api.reports:write_sweep_reports"
"""The function that writes the reports of a sweep. A launch imports it, and what it needs, at its end."""

GRID = "orchestrator.serving.drawing:fragment_of"
"""A function ``(view) -> Fragment``: the grid of a sweep state, for pages of reports."""

TABLE_READER = "orchestrator.study.tables.results:read_table"
"""A function ``(path) -> rows`` that reads a table made elsewhere."""

PLUGGABLE: Mapping[str, Mapping[str, str]] = {
    "stages": STAGES,
    "tasks": TASKS,
    "generators": GENERATORS,
    "launchers": LAUNCHERS,
    "schedulers": SCHEDULERS,
    "trackers": TRACKERS,
    "mirrors": MIRRORS,
    "reports": REPORTS,
}
"""Group of entry points, without ``polysweep.``, to the table that it extends; see docs/plugins.md."""

_POINTS, _IMPORTED, _FITTING = (f"orchestrator.plugins:{name}" for name in ("points", "imported", "fitting"))
"""Functions that find, import and check the objects of others, for names that no table has."""

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "slurm": ("submitit",),
    "s3": ("obstore",),
    "report": ("pyarrow", "jinja2", "matplotlib", "pandas", "scipy", "statsmodels", "xarray"),
    "query": ("duckdb", "pyarrow"),
    "sft": (
        *("torch", "transformers", "huggingface_hub", "httpx", "numpy", "accelerate", "datasets"),
        *("safetensors", "tokenizers", "babel", "pyarrow"),
    ),
    "ray": ("ray", "httpx"),
    "watch": ("textual",),
    "serve": ("starlette", "uvicorn", "jinja2"),
    "wandb": ("wandb",),
    "mlflow": ("httpx",),
    "trackio": ("httpx",),
    "tensorboard": ("tensorboard",),
    "notify": ("apprise",),
    "search": ("optuna",),
    "sign": ("cryptography",),
    "vllm": ("vllm",),
}
"""Extra of the distribution to the modules that it brings, as in pyproject.toml.

A module in several extras counts for the first. The engine itself needs none of them.
"""

NEEDS_EXTRA: Mapping[str, tuple[str, str]] = {
    LAUNCHERS["slurm"]: ("slurm", "launcher=slurm"),
    LAUNCHERS["ray"]: ("ray", "launcher=ray"),
    BUCKETS["s3"]: ("s3", "a store in a bucket"),
    **{target: (name, f"tracker={name}") for name, target in MIRRORS.items()},
}
"""Object, which imports its packages only after records exist, to its extra and to what the user wrote."""


def require(extra: str, *, what: str) -> None:
    """Raise unless the packages of an extra are installed. Nothing is imported.

    Args:
        extra: its name.
        what: what needs it, for the message.

    Raises:
        UserError: one is not installed.
    """
    for name in EXTRAS[extra]:
        if sys.modules.get(name) is None and importlib.util.find_spec(name) is None:
            raise _missing(name, extra, what)


def missing_extra(error: ModuleNotFoundError, *, what: str) -> UserError | None:
    """Return the error to show if an import failed because of an extra, else None.

    Args:
        error: of the import.
        what: what needs the module, for the message.
    """
    name = (error.name or "").partition(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
    return None if extra is None else _missing(name, extra, what)


def _missing(name: str, extra: str, what: str) -> UserError:
    return UserError(f"{what} needs the package {name}, which is not installed", fix=install(extra))


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'polysweep[{extra}]'"


def load(target: str, *, where: str = "") -> Any:
    """Import ``module:object``.

    Args:
        target: the object's path.
        where: where the path was found, for the message.

    Raises:
        UserError: the target is malformed, or the module or object does not exist.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{target!r} is not of the form module:object", where=where)
    if target in NEEDS_EXTRA:
        extra, what = NEEDS_EXTRA[target]
        require(extra, what=what)
    ours = module_name.startswith("orchestrator.")
    try:
        # What the module of a user prints must not mix with the JSON or the table of a verb.
        with contextlib.nullcontext() if ours else contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # An error about another module is one inside the found module: its own traceback helps more.
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(f"no module {module_name!r} can be imported", where=where) from error
        if ours and (absent := missing_extra(error, what=where or target)):
            raise absent from error
        raise
    except SystemExit as error:  # a script that runs whenever it is imported
        what, fix = f"module {module_name!r} exits when imported", 'if __name__ == "__main__": around its end'
        raise UserError(what, where=where, fix=fix) from error
    if not hasattr(module, attribute):
        names = nearest(attribute, (name for name in vars(module) if name[:2] != "__"))
        raise UserError(f"module {module_name!r} has no {attribute!r}", where=where, allowed=names)
    return getattr(module, attribute)


def known(table: Mapping[str, str]) -> list[str]:
    """Return the names of a table, then those of plugins."""
    return [*table, *(name for name in load(_POINTS)(_group(table)) if name not in table)]


def is_known(table: Mapping[str, str], name: str) -> bool:
    """Return whether a table or an installed plugin has a name. The table's own come first.

    Raises:
        UserError: several distributions have plugins of this name.
    """
    return name in table or name in load(_POINTS)(_group(table), name)


def _group(table: Mapping[str, str]) -> str:
    return next((group for group, each in PLUGGABLE.items() if each is table), "")


def lookup(table: Mapping[str, str], name: str, *, kind: str) -> Any:
    """Load the object that a name stands for; a ``module:object`` outside the table is loaded directly.

    Args:
        table: names to targets.
        name: the name.
        kind: what it names, for the message.

    Raises:
        UserError: the name is neither in the table nor a plugin's nor a ``module:object``, or the plugin
            cannot be imported.
    """
    # A name of ours comes first. A colon marks an object of the user's, which needs no entry.
    if name in table:
        return load(table[name])
    if ":" in name:
        return load(_FITTING)(_group(table), load(name, where=kind), what=f"the {kind} {name!r}", where=kind)
    if is_known(table, name):
        return load(_IMPORTED)(_group(table), name)
    raise UserError(f"unknown {kind} {name!r}", allowed=nearest(name, known(table)))


def check_trackers(name: str, mirrors: Mapping[str, Mapping[str, Any]], *, here: bool = False) -> None:
    """Raise unless a launch's trackers exist and their options are right.

    Args:
        name: `tracker.name`.
        mirrors: each mirror's options.
        here: whether mirrors must also have what they need on this machine.

    Raises:
        UserError: there is no such tracker, its options are wrong, or it lacks something here.
    """
    if name not in mirrors and ":" not in name:  # only stages import a user's own tracker
        lookup(TRACKERS, name, kind="tracker")
    for mirror, options in mirrors.items():
        made = lookup(MIRRORS, mirror, kind="mirror")(options)
        if here:
            made.check()


@contextlib.contextmanager
def importable(folders: Sequence[str]) -> Iterator[None]:
    """Put folders at the front of `sys.path` for a while.

    A notebook composes sweeps of several folders, and edits their code meanwhile. Two folders may have a
    module of the same name. So modules that were imported here before are imported again if the file of one
    has changed, or if another file has its name now.
    """
    before = list(sys.path)
    sys.path[:0] = [folder for folder in folders if folder not in before]
    _forget_stale()
    known = {*sys.modules}
    try:
        yield
    finally:
        sys.path[:] = before
        _remember(sys.modules.keys() - known, folders)


class _Imported(NamedTuple):
    """A module that was imported from one of the user's folders, and its file as it was then."""

    module: ModuleType
    file: str
    stamps: tuple[Stamp, ...]


_imported: dict[str, _Imported] = {}


def _remember(names: Iterable[str], folders: Sequence[str]) -> None:
    """Remember those of some new modules that lie in the folders, but not in an environment inside them."""
    for name in names:
        module, top = sys.modules[name], sys.modules.get(name.partition(".")[0])
        file, first = getattr(module, "__file__", None), getattr(top, "__file__", None)
        if file and first:
            place = Path(first).parent.parent if hasattr(top, "__path__") else Path(first).parent
            if str(place) in folders:
                _imported[name] = _Imported(module, file, stamps(Path(file)))


def _forget_stale() -> None:
    """Have all remembered modules imported again if one of them is stale, since others may have used it."""
    importlib.invalidate_caches()
    if any(each.stamps != stamps(Path(each.file)) or _is_hidden(name) for name, each in _imported.items()):
        for name, each in _imported.items():
            if sys.modules.get(name) is each.module:
                del sys.modules[name]
        _imported.clear()


def _is_hidden(name: str) -> bool:
    """Return whether an import of a top-level module would find another file now."""
    spec = PathFinder.find_spec(name) if "." not in name else None
    return spec is not None and spec.origin != _imported[name].file
