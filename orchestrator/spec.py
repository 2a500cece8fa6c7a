"""How a sweep file declares a stage, and the part of a cell's config that the stage receives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from orchestrator.errors import StageFailure, UserError
from orchestrator.formats import SINCE_2, Settings


class StageSpec(Settings, frozen=True, kw_only=True):
    """One stage in a sweep file: what runs, what it reads and what it waits for.

    Attributes:
        run: ``module:function`` of the stage; exactly one of `run` and `command` is set.
        command: a command line with ``{inputs.NAME}``, ``{output}``, ``{config.KEY}`` and ``{uses.KEY}``.
        name: a fixed name that stands for the target in the digest; stages that ship and plugins' have one.
        version: raised by hand when the stage's meaning changes.
        reads: config keys that the stage receives and that enter its digest.
        uses: config keys that it receives but that never enter the digest (paths, micro-batch).
        after: the stages whose products it takes as inputs.
        each: variable to config key of a list: one instance of the stage for each of its values.
        skip: a selector; cells that match it do not have this stage.
        results: for commands: a file of JSON or CSV in the output folder, with the result rows.
        metric: for commands: column to a regular expression, whose last match in the log is the value.
        checkpoints: for commands: pattern of files in the output or work folder that are checkpoints.
        neutral: config keys to values at which the key is left out of the digest.
        preload: modules that the fork server imports before it forks children.
        limit_s: seconds after which an attempt is stopped as hanging; None for no limit.
        estimate: ``module:function`` that returns the cost of an instance, see `orchestrator.costs`.
        needs: ``module:function`` that lists what must exist before it can run, see `orchestrator.costs`.
        finished: for commands: a file in the output or work folder that marks the end, wanted after a stop.
        keep: patterns of files in the work folder that become part of the product.
        shell: for commands: whether ``bash -e -o pipefail`` runs the line. Part of the identity if true.
        python: for commands: the interpreter that ``python`` and ``{python}`` mean.
        remedies: failure cause to changes to `uses`, which later attempts try one after another; see
            `orchestrator.core.remedies`. Not part of the identity.
        alike: config keys; instances that agree on them need the same remedies; by default on all `reads`.
        gated_by: stages that must be done before this one may start, although it takes nothing of theirs.
    """

    run: str | None = None
    command: str | None = None
    name: str | None = None
    version: int = 1
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    each: dict[str, str] = {}
    skip: str | None = None
    results: str | None = None
    metric: Annotated[dict[str, str], SINCE_2] = {}
    checkpoints: Annotated[str | None, SINCE_2] = None
    neutral: dict[str, Any] = {}
    preload: tuple[str, ...] = ()
    limit_s: float | None = None
    estimate: str | None = None
    needs: str | None = None
    finished: Annotated[str | None, SINCE_2] = None
    keep: Annotated[tuple[str, ...], SINCE_2] = ()
    shell: Annotated[bool, SINCE_2] = False
    python: Annotated[str | None, SINCE_2] = None
    remedies: Annotated[dict[str, tuple[dict[str, Any], ...]], SINCE_2] = {}
    alike: Annotated[tuple[str, ...], SINCE_2] = ()
    gated_by: Annotated[tuple[str, ...], SINCE_2] = ()


class Config(Mapping[str, Any]):
    """A frozen slice of a cell's config, by attribute (``config.trainer.seed``) or by item.

    A read of a key that the stage declared neither in `reads` nor in `uses` fails the stage with cause
    ``config``. Otherwise a stage could depend on a value that is not part of its digest.
    """

    def __init__(self, tree: Mapping[str, Any], *, path: str = "", declared: str = "reads") -> None:
        self._tree, self._path, self._declared = tree, path, declared

    def __getitem__(self, key: str) -> Any:
        if key not in self._tree:
            what = f"the stage does not declare {self._path + key!r} in its `{self._declared}`"
            hint = "; what it `uses` is in context.uses" if self._declared == "reads" else ""
            raise StageFailure("config", f"{what}{hint}")
        value = self._tree[key]
        if isinstance(value, Mapping):
            return Config(value, path=f"{self._path}{key}.", declared=self._declared)
        return tuple(value) if isinstance(value, list) else value

    def __getattr__(self, key: str) -> Any:
        # Copying and pickling look for special methods; those are never config keys.
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]

    def __contains__(self, key: object) -> bool:
        return key in self._tree

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"Config({self._tree!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return a deep copy in plain types, ready for a schema."""
        copy: dict[str, Any] = json.loads(json.dumps(self._tree))
        return copy


def plain(config: Config) -> Mapping[str, Any]:
    """Return the tree that a config wraps, for hooks that are called often. It must not be changed."""
    return config._tree


def refuse_zero_bytes(value: Any, key: str, where: str) -> None:
    """Refuse a text with a zero byte anywhere in a value that a command is given as an argument.

    Raises:
        UserError: there is one.
    """
    if isinstance(value, str) and "\0" in value:
        what = f"{key} is {value!r}, which no command can be given"
        raise UserError(what, where=where, allowed="text without zero bytes")
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            refuse_zero_bytes(item, f"{key}.{name}".lstrip("."), where)
