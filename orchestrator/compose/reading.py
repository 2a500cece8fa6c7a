"""The YAML loader for sweep files and for Hydra's config folders.

Unquoted words follow YAML 1.2's core schema (see `scalar`) instead of YAML 1.1, so ``no`` is text. Duplicate
keys are refused. The size after expansion of aliases is limited before OmegaConf copies the tree.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TextIO

import yaml  # type: ignore[import-untyped]
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import UserError

FIRST_CHARACTERS: Final = "~nNtTfF.+-0123456789"
"""First characters of words that are not text. The empty word is null and also no text."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# A number with a leading zero, such as 010, is text. YAML 1.1 took it for octal.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INF_OR_NAN = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

NO_TEXT: Final = re.compile(
    "(?:" + "|".join(p.pattern for p in (_NULL, _BOOL, _INT, _FLOAT, _INF_OR_NAN)) + r")\Z"
)
"""The form of words that are not text."""


def scalar(word: str) -> str | int | float | bool | None:
    """Return the value of an unquoted word.

    Args:
        word: as written, without space around it.

    Raises:
        UserError: the word is a number that is too large, and perhaps was meant as text.
    """
    if _NULL.fullmatch(word):
        return None
    if _BOOL.fullmatch(word):
        return word.lower() == "true"
    if _INT.fullmatch(word):
        try:
            return int(word, 0) if word[:2] in ("0o", "0x") else int(word)
        except ValueError:  # Python converts at most 4,300 digits
            raise _too_large(word) from None
    if _FLOAT.fullmatch(word):
        number = float(word)
        if math.isinf(number):
            raise _too_large(word)
        return number
    if _INF_OR_NAN.fullmatch(word):
        return float(word.replace(".", ""))
    return word


def _too_large(word: str) -> UserError:
    shown = word if len(word) <= 40 else f"{word[:20]}... of {len(word):,} characters"
    return UserError(f"{shown} is too large a number", fix="in quotes it is text")


SCHEME: Final = "polysweep"
"""URL scheme for config folders that Hydra reads with this loader: ``polysweep:///home/me/project/conf``."""

MAX_DEPTH: Final = 64
"""Maximum number of nested levels. OmegaConf, Hydra and JSON process trees by recursion."""

MAX_VALUES: Final = 1_000_000
"""Maximum number of values in a file after its aliases are expanded."""

_MAX_KEPT: Final = 2**16
"""Most characters of a file whose tree is kept for the next reading of the same text."""

_CORE, _MERGE = "tag:polysweep:core", "tag:yaml.org,2002:merge"

Names = list[str]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader for YAML 1.2's core schema. Merge keys (``<<``) work as in YAML 1.1."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def get_single_node(self) -> yaml.Node | None:
        """Return the root of the only document, after a check of its size with aliases expanded.

        In a file of ten lines, each list may contain the previous one ten times ("billion laughs"). This
        makes billions of values. The sizes are therefore computed on the nodes, where an alias costs nothing.
        """
        try:
            root = super().get_single_node()
            if root is not None:
                _measured(root, {})
        except RecursionError:
            raise UserError(f"the file nests more than {MAX_DEPTH} levels") from None
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping. Refuse a key that is given twice: PyYAML would silently keep the last value."""
        first: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE:
                key = self.construct_object(key_node)
                if key in first:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping",
                        node.start_mark,
                        f"the key {key_node.value!r} is given twice",
                        key_node.start_mark,
                    )
                first[key] = key_node
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        """Return the value of an unquoted word."""
        try:
            return scalar(str(self.construct_scalar(node)))
        except UserError as error:
            raise _at(error, node.start_mark) from None


_Loader.add_implicit_resolver(_CORE, NO_TEXT, [*FIRST_CHARACTERS, ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(_CORE, _Loader.construct_core)


# Types of YAML 1.1 whose words may be text now.
_FORMER: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))

# A context variable, because Hydra calls the loader and passes no argument through.
_seen: ContextVar[list[str] | None] = ContextVar("_seen", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
    """Collect notes on words that are text here and were something else in YAML 1.1.

    Their author may have meant the other value: ``use_ema: no`` used to be false, and non-empty text is true.

    Yields:
        A list, to which files that are read meanwhile add their notes.
    """
    notes: list[str] = []
    token = _seen.set(notes)
    try:
        yield notes
    finally:
        _seen.reset(token)


def _note(node: yaml.ScalarNode) -> None:
    notes = _seen.get()
    if notes is None or node.style is not None or node.tag != yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
        return
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(node.value[:1], ()):
        # The first pattern that matches decides, as in PyYAML itself.
        if pattern.match(node.value):
            if tag in _FORMER:
                place = f"{Path(str(node.start_mark.name)).name}, line {node.start_mark.line + 1}"
                notes.append(
                    f"{place}: {node.value} is text, as in YAML 1.2; in quotes nothing is said of it"
                )
            return


def _mend(node: yaml.ScalarNode) -> None:
    r"""Join the halves of characters that are written as in JSON, ``\\ud83d\\ude00``.

    Raises:
        UserError: a half is alone, so UTF-8 cannot hold the text.
    """
    try:
        node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        problem = f"{node.value!r} holds half a character: a surrogate without its other half"
        raise _at(UserError(problem), node.start_mark) from None


class _Size(NamedTuple):
    """The size of a node with aliases expanded.

    Attributes:
        num_values: all values in it, and itself.
        height: number of levels below it.
    """

    num_values: int
    height: int


def _measured(node: yaml.Node, known: dict[int, _Size | None]) -> _Size:
    """Return the size of a node with aliases expanded.

    Each node is visited once, however many aliases refer to it, so this is fast for every file.

    Args:
        node: of a tree in which an alias is the same object as the node it refers to.
        known: identity of a visited node to its size, or to None while the node is being visited.

    Raises:
        UserError: the node contains itself, is nested too deeply, or expands to too many values.
    """
    if isinstance(node, yaml.ScalarNode):
        if not node.value.isascii():
            _mend(node)
        _note(node)
        return _Size(1, 0)
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise _at(UserError("an alias names the mapping or list in which it stands"), node.start_mark)
        return size
    known[id(node)] = None
    is_list = isinstance(node, yaml.SequenceNode)
    children = node.value if is_list else [child for pair in node.value for child in pair]
    sizes = [_measured(child, known) for child in children]
    size = _Size(1 + sum(s.num_values for s in sizes), 1 + max((s.height for s in sizes), default=0))
    if size.height > MAX_DEPTH:
        raise _at(UserError(f"the file nests more than {MAX_DEPTH} levels"), node.start_mark)
    if size.num_values > MAX_VALUES:
        raise _at(UserError(f"the aliases expand to more than {MAX_VALUES:,} values"), node.start_mark)
    known[id(node)] = size
    return size


@lru_cache(maxsize=256)
def _read(text: str, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return the tree of a document, and notes on its words. Each compose of a sweep reads the same files.

    Args:
        text: the document.
        name: its file, for messages.
    """
    loader = _Loader(text)
    loader.name = name
    with noting() as notes:
        try:
            return loader.get_single_data(), tuple(notes)
        finally:
            loader.dispose()


def load(stream: TextIO) -> DictConfig | ListConfig:
    """Read one YAML document, and leave interpolations as they are.

    Args:
        stream: the text.

    Raises:
        UserError: it is nested too deeply, expands to too many values, or contains too large a number.
        yaml.YAMLError: it is not valid YAML.
        OmegaConfBaseException: OmegaConf cannot represent it.
    """
    text = stream.read()
    read = _read if len(text) <= _MAX_KEPT else _read.__wrapped__
    tree, notes = read(text, str(getattr(stream, "name", "<unicode string>")))
    if (seen := _seen.get()) is not None:
        seen += notes
    if tree is not None and not isinstance(tree, dict | list):
        raise UserError(f"the file holds {type(tree).__name__}", allowed="a mapping")
    config: DictConfig | ListConfig = OmegaConf.create({} if tree is None else tree)
    return config


def read_yaml(path: Path, *, where: str = "") -> Any:
    """Read a YAML file with the loader of the config folders, and leave interpolations as they are.

    Args:
        path: the file.
        where: how errors name the file; its path by default.

    Raises:
        UserError: the file cannot be read or is not valid YAML. The message names file and line.
    """
    name = where or str(path)
    try:
        return OmegaConf.to_container(_open(path), resolve=False)
    except UserError as error:
        raise UserError(error.what, where=_place(name, error.where), fix=error.fix) from None
    except yaml.YAMLError as error:
        raise yaml_error(error, name) from None
    except (OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{name} cannot be read: {_reason(error)}") from None


def yaml_error(error: yaml.YAMLError, file: str = "") -> UserError:
    """Return the error for malformed YAML, with its file, line and column."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = file or str(getattr(mark, "name", ""))
    if mark is not None:
        place = _place(place, _line(mark))
    return UserError(f"YAML syntax error: {problem}", where=place)


class CoreSource(ConfigSource):
    """Hydra's access to a config folder: like its own source for ``file://``, but with the loader above."""

    @staticmethod
    def scheme() -> str:
        """Return the URL scheme of this source in Hydra's search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a config file.

        Args:
            config_path: relative to the folder.

        Raises:
            UserError: the file cannot be read, is not valid YAML, or is too large. The message names file and
                line.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        try:
            with path.open(encoding="utf-8-sig") as stream:
                # Hydra's directives, such as "# @package model", stand in the first lines.
                header = self._get_header_dict(stream.read(512))
            config = _open(path)
        except UserError as error:
            raise UserError(error.what, where=_place(str(path), error.where), fix=error.fix) from None
        except yaml.YAMLError as error:
            raise yaml_error(error, str(path)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {_reason(error)}") from None
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header=header)

    def available(self) -> bool:
        """Return whether the folder exists."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is a folder."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is a file."""
        return Path(self.path, self._normalize_file_name(config_path)).is_file()

    def list(self, config_path: str, results_filter: Any) -> Names:
        """Return the names of the configs or groups in a folder."""
        names: Names = []
        for file in Path(self.path, config_path).iterdir():
            inner = str(Path(config_path, file.name))
            self._list_add_result(names, inner, file.name, results_filter)
        return sorted(set(names))


def register() -> None:
    """Register the source with Hydra. Repeated calls have no effect."""
    Plugins.instance().register(CoreSource)


def _open(path: Path) -> DictConfig | ListConfig:
    with path.open(encoding="utf-8-sig") as stream:  # without a byte order mark
        return load(stream)


def _at(error: UserError, mark: yaml.Mark) -> UserError:
    return UserError(error.what, where=_line(mark), fix=error.fix)


def _line(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _place(file: str, line: str) -> str:
    return ", ".join(filter(None, (file, line)))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"it is no UTF-8 text (byte {error.start}); save it as UTF-8"
    key = getattr(error, "full_key", None)
    return f"{key}: {str(error).splitlines()[0]}" if key else str(error).splitlines()[0]
