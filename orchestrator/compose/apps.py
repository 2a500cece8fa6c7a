"""Sweeps of a Hydra app: an unmodified ``@hydra.main`` program, composed by its own interpreter.

One process executes the app's script up to ``hydra.main`` and composes every cell there, see
`orchestrator.compose.hydra_app`. So the app's search path, structured configs and plugins are its own. What
it composed is sealed in the cell's config: its resolved values, which are the identity, and under ``hydra``
the sealed config that the task gets::

    {"lr": 0.1, "model": {...}, "hydra": {"set": {}, "sealed": "{...}"}}
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from orchestrator.compose import hydra_seal
from orchestrator.compose.app_process import AppProcess, AppRoot
from orchestrator.compose.axes import Axis, KeyValue, Label, cut, grammar, plain
from orchestrator.compose.given import app_words
from orchestrator.compose.interpolations import Overlaps
from orchestrator.compose.overrides import ENGINE_KEYS, Overrides, key_of, refuse_secrets
from orchestrator.compose.root import Root
from orchestrator.core.secrets import known_values
from orchestrator.core.sweep import SweepFile
from orchestrator.core.tree import convert, share_unchanged
from orchestrator.errors import UserError, nearest

STAGE = "app"
"""Name of the stage that runs the app."""

OWN_PREFIX = "polysweep."
"""Before a setting of the engine whose name the app has too: ``polysweep.launcher=slurm``."""

_RESUME = re.compile(r"(\+{0,2})([\w.@/-]+)=\{checkpoint\}")
# Text that Hydra's grammar reads as text without quotes.
_BARE = re.compile(r"[A-Za-z_][\w./:%@-]*")
_SPECIAL = re.compile(r"true|false|null|nan|inf", re.IGNORECASE)


class AppSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key ``app`` of a sweep file.

    Attributes:
        script: path of the script, or ``-m`` and a module; arguments such as ``--config-name`` may follow.
        python: the interpreter of the app; by default the first ``python`` in the PATH.
        volatile: further config keys to leave out of the identity, since no result depends on them.
        resume: ``KEY={checkpoint}``, set in an attempt that resumes from a checkpoint.
        checkpoints: pattern of the files in the output folder that are checkpoints.
    """

    script: str
    python: str | None = None
    volatile: tuple[str, ...] = ()
    resume: str | None = None
    checkpoints: str | None = None


class Hosted(NamedTuple):
    """A sweep of an app, ready to be composed.

    Attributes:
        overrides: of all cells, and the axes.
        configs: composes the cells.
        stages: the stage of the app, and the others of the sweep file.
    """

    overrides: AppOverrides
    configs: AppConfigs
    stages: dict[str, dict[str, Any] | None]


@contextlib.contextmanager
def hosted(
    file: SweepFile, axes: Mapping[str, Axis], words: Sequence[str], *, folder: Path, where: str
) -> Iterator[Hosted]:
    """Yield a sweep of an app. The app's process lives inside the context.

    Args:
        file: the sweep file, with `app`.
        axes: those of the file.
        words: of the command line, without ``store.url=``.
        folder: in which the app runs.
        where: the sweep file, for messages.

    Raises:
        UserError: the app cannot be executed up to ``hydra.main``, or an override is wrong.
    """
    tree = {"script": file.app} if isinstance(file.app, str) else file.app
    spec = convert(tree, AppSpec, where=where, key="app")
    program, arguments = _program(spec.script, folder, where)
    if file.config is not None:
        raise UserError("`config` is the app's own", where=where, allowed="`app` without `config`")
    with AppProcess.started([*program, *arguments], spec.python, folder, where) as process:
        root = AppRoot(process)
        own = process.ask("describe", names=sorted(ENGINE_KEYS))["own"]
        merged = AppOverrides(dict(axes), own=tuple(own))
        if spec.resume is not None and not merged.take_resume(spec.resume):
            raise UserError(f"app.resume is {spec.resume!r}", where=where, allowed="KEY={checkpoint}")
        merged.add_file(file.overrides, root, where=where)
        merged.num_of_file = len(merged.cell)
        merged.add_command_line(words, root)
        stages = _stages(file, spec, [*program, *_own_arguments(arguments)])
        yield Hosted(merged, AppConfigs(process, root, merged, spec.volatile, where), stages)


def base_texts(script: str, volatile: Sequence[str], *, folder: Path) -> dict[str, Any]:
    """Return the base of `hydra_seal.Identity` of an app.

    Args:
        script: as in `AppSpec`.
        volatile: keys to leave out of the identity.
        folder: in which the app runs.

    Raises:
        UserError: there is no such script, or it cannot be executed up to ``hydra.main``.
    """
    where = "the command line"
    program, arguments = _program(script, folder, where)
    with AppProcess.started([*program, *arguments], None, folder, where) as process:
        texts: dict[str, Any] = process.ask("base", volatile=list(volatile))["texts"]
        return texts


def program_of(script: str, *, folder: Path) -> list[str]:
    """Return the words that run an app in each cell: its script or module, and its own arguments.

    Args:
        script: as in `AppSpec`.
        folder: in which the app runs.

    Raises:
        UserError: there is no such script.
    """
    program, arguments = _program(script, folder, "the command line")
    return [*program, *_own_arguments(arguments)]


def _program(script: str, folder: Path, where: str) -> tuple[list[str], list[str]]:
    """Return the words that name the program, and the arguments that it gets while it is composed."""
    words = app_words(script, where=where)
    if not words or (words[0] == "-m" and not words[1:]):
        raise UserError("app names no script", where=where, allowed="train.py, or -m package.module")
    number = 2 if words[0] == "-m" else 1
    program, arguments = words[:number], words[number:]
    if number == 1 and (folder / program[0]).is_relative_to(folder):
        # ./train.py and its absolute path are the same script, and so the same cells.
        program = [os.path.relpath(folder / program[0], folder)]
    if number == 1 and not (folder / program[0]).is_file():
        beside = sorted(path.name for path in folder.glob("*.py"))
        raise UserError(f"no script {cut(program[0])!r}", where=where, allowed=nearest(program[0], beside))
    if any("=" in word and not word.startswith("-") for word in arguments):
        raise UserError(
            f"app is {cut(script)!r}",
            where=where,
            allowed="the script and options such as --config-name; overrides follow as words of their own",
        )
    return program, arguments


_HYDRAS = re.compile(r"--config-(?:name|path|dir)|-c[npd]")
"""Options of Hydra, which choose the config. The script itself reads all other arguments."""


def _own_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments that the script gets in each cell, besides the overrides."""
    is_value = False
    for word in arguments:
        name, equals, _ = word.partition("=")
        is_hydras = bool(_HYDRAS.fullmatch(name))
        if not is_hydras and not is_value:
            yield word
        is_value = is_hydras and not equals


def stage_fields(program: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the stage that runs an app.

    Args:
        program: the script, or ``-m`` and a module, and its own arguments.
    """
    return {
        "command": f"python {{hydra_app}} run {shlex.join(program)}",
        "reads": ["*"],
        "uses": ["hydra.sealed", "hydra.resume"],
        "results": hydra_seal.ROWS,
    }


def _stages(file: SweepFile, spec: AppSpec, program: list[str]) -> dict[str, dict[str, Any] | None]:
    others = file.stages if isinstance(file.stages, dict) else dict.fromkeys(file.stages)
    fields = stage_fields(program)
    if spec.python is not None:
        fields["python"] = spec.python
    if spec.checkpoints is not None:
        fields["checkpoints"] = spec.checkpoints
    return {STAGE: {**fields, **(others.get(STAGE) or {})}, **{k: v for k, v in others.items() if k != STAGE}}


class AppOverrides(Overrides):
    """Overrides of an app's config. They reach Hydra as they are written.

    Args:
        axes: those of the sweep file.
        own: names of engine settings that the app has too, which therefore mean the app's.

    Attributes:
        resume: keys that get the path of a checkpoint.
        num_of_file: number of overrides that come from the sweep file.
    """

    def __init__(self, axes: dict[str, Axis], *, own: tuple[str, ...]) -> None:
        super().__init__(axes)
        self.own, self.resume, self.num_of_file = own, list[str](), 0
        self._places: list[int] = []
        self._parser = OverridesParser.create()

    def parse(self, text: str, *, where: str = "") -> Override:
        """Return an override, read as Hydra reads it.

        Raises:
            UserError: the text is no override.
        """
        if text.startswith(OWN_PREFIX):
            return super().parse(text.removeprefix(OWN_PREFIX))
        try:
            (override,) = self._parser.parse_overrides([text])
        except HydraException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{cut(text)!r} is no override: {cut(reason)}", where=where) from None
        return override

    def is_engine(self, key: str) -> bool:
        """Return whether a key belongs to the engine: the app has none of this name."""
        return super().is_engine(key) and re.split(r"[./@]", key)[0] not in self.own

    def take_resume(self, text: str) -> bool:
        """Take ``KEY={checkpoint}``, and return whether the text has this form."""
        if match := _RESUME.fullmatch(text):
            self.resume.append(match[2])
        return match is not None

    def add_command_line(self, overrides: Sequence[str], root: Root) -> None:  # type: ignore[override]
        """Add the overrides of the command line; see `Overrides.add_command_line`."""
        mine = [text for text in overrides if text.startswith(OWN_PREFIX)]
        engine = Overrides({})
        engine.add_command_line([text.removeprefix(OWN_PREFIX) for text in mine], root)
        if engine.cell or engine.axes:
            raise UserError(
                f"{mine[0]!r} is no setting of the engine",
                allowed=f"{OWN_PREFIX} and one of {', '.join(sorted(ENGINE_KEYS))}",
            )
        self.engine += engine.engine
        rest = [text for text in overrides if not text.startswith(OWN_PREFIX) and not self.take_resume(text)]
        super().add_command_line(rest, root)

    def texts(self, labels: Sequence[Label], root: Root) -> list[str]:
        """Return the overrides of a point: those of the file, then the others as the command line has them.

        Args:
            labels: one of each axis.
            root: the app's config root.
        """
        settings = [[written(setting) for setting in label.settings] for label in labels]
        found = list(self.cell[: self.num_of_file])
        rest = self.cell[self.num_of_file :]
        places = self._places[self.num_of_file :]
        for index, texts in enumerate(settings):
            found += [text for place, text in zip(places, rest, strict=True) if place == index] + texts
        found += [text for place, text in zip(places, rest, strict=True) if place >= len(settings)]
        # Hydra refuses two choices of one group. The last one counts, as in other sweeps.
        last = {key_of(text): number for number, text in enumerate(found)}
        return [
            text
            for number, text in enumerate(found)
            if last[key_of(text)] == number or not root.is_group(key_of(text))
        ]

    def _fix(self, override: Override, text: str, root: Root, where: str) -> None:
        key = override.key_or_group
        if self.is_engine(key):
            super()._fix(override, text, root, where)
            return
        if not override.is_delete() and (value := plain(override._value)) is not None:
            refuse_secrets(value, key=key, where=where)
        self.cell.append(text)
        self._places.append(len(self.axes))


def written(setting: KeyValue) -> str:
    """Return a setting as one would write it: without quotes where Hydra reads the text as text anyway."""
    value = setting.value
    is_bare = isinstance(value, str) and _BARE.fullmatch(value) and not _SPECIAL.fullmatch(value)
    return f"{setting.prefix}{setting.key}={value if is_bare else grammar(value)}"


class AppConfigs:
    """Composer of the configs of an app's cells.

    Args:
        process: of the app.
        root: the app's config groups.
        overrides: the settings for all cells, and the axes.
        volatile: keys to leave out of the identity.
        where: the sweep file.

    Attributes:
        left_out: key to the reason why it is no part of the identity, of all cells so far.
        numbers: of the jobs of Hydra that the next points are.
    """

    def __init__(
        self, process: AppProcess, root: Root, overrides: AppOverrides, volatile: Sequence[str], where: str
    ) -> None:
        self._process = process
        self._root = root
        self._overrides = overrides
        self._volatile = list(volatile)
        self._overlaps = Overlaps(list(overrides.axes.values()), self._root.is_group, where=where)
        self._before: dict[str, Any] = {}
        self._sealed: Any = {}
        self._known = known_values(os.environ)
        self.numbers: Iterator[int] = itertools.count()
        self.left_out: dict[str, str] = {}
        self._unused: dict[str, None] = {}

    def config(self, labels: Sequence[Label], *, where: str) -> dict[str, Any]:
        """Return the config of one point.

        Args:
            labels: one of each axis.
            where: the cell, for messages.

        Raises:
            UserError: two axes set one key, the config contains a credential, or Hydra refuses it.
        """
        self._overlaps.check(labels)
        self._process.where = where
        texts = self._overrides.texts(labels, self._root)
        try:
            answer = self._process.ask(
                "cell", number=next(self.numbers), overrides=texts, volatile=self._volatile
            )
        except UserError as error:
            own = [name for name in self._overrides.own if re.search(f"'{name}['/]", error.what)]
            if own:
                error.fix = f"the app has {own[0]} too; the setting of Polysweep is {OWN_PREFIX}{own[0]}=..."
            raise
        self.left_out |= answer["left_out"]
        self._unused |= dict.fromkeys(answer["unused"])
        tree = share_unchanged({**answer["tree"], "hydra": {"set": answer["set"]}}, self._before)
        refuse_secrets(tree, where=where, checked=self._before, known=self._known)
        self._before = tree
        sealed = share_unchanged(_plain(json.loads(answer["sealed"])), self._sealed)
        refuse_secrets(sealed, where=where, checked=self._sealed, known=self._known)
        self._sealed = sealed
        hydra = {**tree["hydra"], "sealed": answer["sealed"], "resume": list(self._overrides.resume)}
        return {**tree, "hydra": hydra}

    def varying(self, sections: Sequence[str]) -> Iterator[str]:
        """Yield nothing: an app's identity has no sections of which only a part varies."""
        return iter(())

    def shown(self, labels: Sequence[Label], config: Mapping[str, Any], *, where: str) -> Sequence[Label]:
        """Return the labels unchanged: Hydra applies overrides last, so each label is the value that ran."""
        return labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user: what is left out of the identity, and settings of Hydra without effect."""
        by_reason: dict[str, list[str]] = {}
        for key, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(key)
        notes = [f"left out of the identity ({why}): {', '.join(keys)}" for why, keys in by_reason.items()]
        if self._unused:
            names = ", ".join(self._unused)
            notes.append(f"of no effect here, for cells run as attempts of this sweep: {names}")
        if own := self._overrides.own:
            notes.append(f"the app has its own {', '.join(own)}: {OWN_PREFIX}{own[0]}=... is Polysweep's")
        return tuple(notes)


def _plain(value: Any) -> Any:
    """Return a sealed config without the forms of its nodes, to look for credentials in it."""
    if isinstance(value, dict):
        if "$" in value:
            return _plain(value["$"][2])
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
