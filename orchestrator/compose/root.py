"""Config roots, composed by Hydra's public API, and the schemas that resolved configs must match.

Errors of Hydra and OmegaConf are translated into the user's terms.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from orchestrator.compose.axes import cut
from orchestrator.compose.files import config_folders, known_keys, shipped, unknown_key
from orchestrator.compose.reading import SCHEME, register, yaml_error
from orchestrator.core.sweep import SweepFile
from orchestrator.core.tree import convert, pick
from orchestrator.errors import UserError, nearest
from orchestrator.registry import importable, load

_INLINE = "polysweep_inline_config"
_VERSION_BASE = "1.3"
_COMPOSING = threading.Lock()
_CONF_FOLDERS = "orchestrator.plugins:conf_folders"  # imported only for a file that no other folder has


class Root:
    """A primary config, and the folders of its config groups.

    Args:
        primary: the name of the primary config, for example ``config``.
        folders: the search path. The first folder that contains a file is used.
        where: what to name in errors.
        also: further names that an unknown key may be a misspelling of, such as axes.
    """

    def __init__(
        self, primary: str, folders: Sequence[Path], *, where: str = "", also: Sequence[str] = ()
    ) -> None:
        self.primary, self.folders, self.where, self.also = primary, tuple(folders), where, tuple(also)
        self._tree: DictConfig | None = None
        self._has_plugins, self._unusable = False, ""

    @classmethod
    def inline(
        cls, tree: dict[str, Any], folders: Sequence[Path], *, where: str = "", also: Sequence[str] = ()
    ) -> Root:
        """Return a root whose primary config is a tree instead of a file.

        Args:
            tree: the primary config.
            folders: the search path, used only if the tree has a defaults list.
            where: what to name in errors.
            also: further names that an unknown key may be a misspelling of.
        """
        root = cls(_INLINE, folders if "defaults" in tree else (), where=where, also=also)
        root._tree = OmegaConf.create(tree)
        return root

    @classmethod
    def of_cells(cls, file: SweepFile, cwd: Path, folder: Path, *, where: str) -> Root:
        """Return the root of a sweep's cells: the config in its file, or the primary config of the folders.

        Args:
            file: the sweep file.
            cwd: the working folder.
            folder: of the sweep file.
            where: the sweep file, for messages.
        """
        folders = config_folders(cwd, folder)
        search = (f"search.{key}" for key in file.search or ())
        also = [*file.axes, *(axis for phase in file.phases for axis in phase.axes), *search]
        if file.config is not None:
            return cls.inline(file.config, folders, where=where, also=also)
        return cls("config", [*folders, shipped("conf")], where=where, also=also)

    def options(self, group: str) -> list[str]:
        """Return the options of a config group. For a name that is no group the list is empty."""
        found = (path.stem for folder in self.folders for path in (folder / group).glob("*.yaml"))
        return sorted(set(found)) if re.fullmatch(r"[\w/-]+", group) else []

    def is_group(self, key: str) -> bool:
        """Return whether a key is a config group, not a value."""
        # model@teacher chooses an option of `model` for the section `teacher`.
        group = key.partition("@")[0]
        return bool(re.fullmatch(r"[\w/-]+", group)) and any((f / group).is_dir() for f in self.folders)

    def check_option(self, key: str, option: Any, *, where: str = "") -> None:
        """Refuse an option that a group does not have.

        Args:
            key: the group.
            option: a name, or a list of names.
            where: what to name in errors.

        Raises:
            UserError: with the nearest options.
        """
        group = key.partition("@")[0]
        for name in option if isinstance(option, list) else [option]:
            if name is None:
                raise UserError(
                    f"{group} is null",
                    where=where or self.where,
                    allowed="an option of the group; ~KEY on the command line takes a group away",
                )
            # The option depends on other keys; Hydra checks it when it composes.
            if "${" in str(name):
                continue
            inner, _, last = str(name).rpartition("/")
            place = f"{group}/{inner}" if inner else group
            options = self.options(place)
            if last not in options and self._add_plugins():
                options = self.options(place)
            if last not in options:
                raise UserError(
                    f"unknown {group} {str(name)!r}",
                    where=where or self.where,
                    allowed=nearest(last, options),
                    fix=self._unusable,
                )

    def several(self, group: str, options: Sequence[str]) -> str:
        """Return the override that chooses several trackers at once, such as ``tracker=[wandb,mlflow]``.

        Raises:
            UserError: the group is another one, or the trackers do not go together.
        """
        text = f"{group}=[{','.join(options)}]"
        if group != "tracker":
            raise UserError(f"{text}: of {group} one option is chosen", allowed="only trackers go together")
        if "none" in options and len(set(options)) > 1:
            raise UserError(f"{text}: none goes with no other tracker", fix="tracker=none")
        # The store's own is always open. In Hydra's merge, the last file that sets a name would win.
        chosen = [option for option in dict.fromkeys(options) if option != "store"] or ["store"]
        named = [one for one in chosen if self.compose([f"tracker={one}"]).tracker.get("name")]
        if len(named) > 1:
            raise UserError(f"{text}: {' and '.join(named)} both set tracker.name", allowed="one of them")
        return f"{group}=[{','.join(chosen)}]"

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the composed config, unresolved, in struct mode.

        Args:
            overrides: in Hydra's grammar.

        Raises:
            UserError: Hydra refuses the config or an override.
        """
        try:
            try:
                return self._compose(overrides)
            except MissingConfigException:
                if not self._add_plugins():
                    raise
                return self._compose(overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises all three
            raise self._explained(error, overrides) from None
        except yaml.YAMLError as error:
            raise yaml_error(error) from None
        except OSError as error:
            raise UserError(
                f"the config cannot be read: {error.strerror or error}",
                where=cut(str(error.filename or self.where)),
            ) from None

    def _add_plugins(self) -> bool:
        """Add the config folders of plugins to the end of the search path; return whether there are new ones.

        Only for a file that is in no other folder: a sweep without plugins need not look for them.
        """
        if self._has_plugins:
            return False
        self._has_plugins = True
        more, self._unusable = load(_CONF_FOLDERS)()
        self.folders += more
        return bool(more)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        with _searching(self.folders):
            if self._tree is not None:
                # The name is one of the whole process, and another root may have used it since.
                ConfigStore.instance().store(_INLINE, self._tree)
            return _composed(self.primary, list(overrides))

    def _explained(self, error: Exception, overrides: Sequence[str]) -> UserError:
        text = str(error)
        # Hydra has no error codes, so its messages are recognised by their beginnings.
        if isinstance(error, ValueError) and text.startswith("invalid literal for int()"):
            return self._not_a_mapping(overrides)
        if match := re.search(r"Could not (?:override|delete|append)[^']*'\+?([^'@]+)", text):
            inner = re.search(r"full_key: (\S+)", f"{text}\n{error.__cause__}")
            if inner and inner[1].startswith(f"{match[1]}."):  # a key inside a section
                return unknown_key(inner[1], self._keys(overrides), where=self.where)
            append = re.search(r"use (\+\S+)", text)
            fix = f"{append[1]} adds a key that is not there" if append else ""
            return unknown_key(match[1], self._keys(overrides), where=self.where, fix=fix)
        first, *rest = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        cause = error.__cause__
        if cause is not None and "rror merging override" in first:
            rest = [str(cause).splitlines()[0]]
        return UserError(first, where=self.where, allowed=" ".join(rest)[:300], fix=self._unusable)

    def _not_a_mapping(self, overrides: Sequence[str]) -> UserError:
        """Return the error for a key inside a list. OmegaConf takes the key for the number of an item."""
        choices = [text for text in overrides if self.is_group(_bare(text).partition("=")[0])]
        tree: Any = OmegaConf.to_container(self._compose(choices), resolve=False)
        pairs = [_bare(text).partition("=") for text in overrides]
        lists = [
            prefix
            for key, _, _ in pairs
            for prefix in itertools.accumulate(key.split("."), "{}.{}".format)
            if prefix != key and isinstance(pick(tree, prefix), list)
        ]
        key = lists[0] if lists else "the value"
        items = [
            f"{name.removeprefix(f'{key}.')}: {value}"
            for name, _, value in pairs
            if name.startswith(f"{key}.")
        ]
        return UserError(
            f"{key} is a list, and not a mapping",
            where=self.where,
            allowed="a list, also of one item",
            fix=f"{key}=[{{{', '.join(items)}}}]" if lists else "",
        )

    def _keys(self, overrides: Sequence[str]) -> Iterable[str]:
        """Return what an unknown key may be a misspelling of."""
        groups = [text for text in overrides if self.is_group(_bare(text).partition("=")[0])]
        with contextlib.suppress(HydraException, OmegaConfBaseException, yaml.YAMLError):
            return [*self.also, *known_keys(self._compose(groups))]
        return self.also


def _bare(text: str) -> str:
    """Return an override without the signs that add or delete a key."""
    return text.lstrip("+~")


def _not_set(key: str, where: str) -> UserError:
    is_place = key.endswith(("dir", "path", "file"))
    return UserError(f"{key} is not set", where=where, fix=f"{key}={'PATH' if is_place else 'VALUE'}")


class _SearchPath(SearchPathPlugin):
    """Hydra plugin that adds the folders to the search path. Hydra has no public argument for several."""

    folders: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append("polysweep", f"{SCHEME}://{folder}")


@contextlib.contextmanager
def _searching(folders: tuple[Path, ...]) -> Iterator[None]:
    """Set Hydra's search path, and put aside a Hydra application that may be running in this process.

    One thread at a time composes, because Hydra's state is that of the whole process.
    """
    with _COMPOSING:
        Plugins.instance().register(_SearchPath)
        register()
        state = GlobalHydra.instance()
        # Hydra allows one initialisation in a process, and a user's program may already have its own.
        before, state.hydra = state.hydra, None
        _SearchPath.folders = folders
        version.setbase(_VERSION_BASE)
        try:
            # As `hydra.initialize` does, which first looks for its caller in all modules that are loaded.
            Hydra.create_main_hydra2("polysweep", create_config_search_path(None))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about deprecated styles in the user's files
                yield
        finally:
            GlobalHydra.instance().hydra = before
            _SearchPath.folders = ()


def _composed(primary: str, overrides: list[str]) -> DictConfig:
    """Return what `hydra.compose` returns, without the section `hydra`, which it makes and then removes.

    That section, with its own groups for logging, launchers and sweepers, takes two thirds of the time. It
    has an effect only on what names it. So whatever names it, or fails, is composed by `hydra.compose`, and
    all errors are its own. These are its steps; Hydra has no public name for them.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    with contextlib.suppress(Exception):
        parsed, repository = loader._parse_overrides_and_create_caching_repo(primary, overrides)
        loader.validate_sweep_overrides_legal(parsed, run_mode=RunMode.RUN, from_shell=False)
        found = create_defaults_list(repository, primary, parsed, prepend_hydra=False, skip_missing=False)
        config: DictConfig = loader._compose_config_from_defaults_list(found.defaults, repository)
        OmegaConf.set_struct(config, True)
        loader._apply_overrides_to_config(found.config_overrides, config)
        if "hydra" not in [*config]:  # a DictConfig has no key whose value is ??? or cannot be resolved
            return config
    return hydra_compose(primary, overrides)


@contextlib.contextmanager
def translated(where: str = "") -> Iterator[None]:
    """Translate OmegaConf's errors while resolving and patching into errors for the user.

    Args:
        where: what to name in errors.

    Raises:
        UserError: a value is not set, an interpolation refers to nothing, or a key is unknown.
    """
    try:
        yield
    except MissingMandatoryValue as error:
        key = error.full_key or str(error).rpartition(":")[2].strip()
        raise _not_set(key, where) from None
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise UserError(f"unknown key {error.full_key or str(error.key)!r}", where=where) from None
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        missing = re.search(r"Missing mandatory value: (\S+)", what)
        if isinstance(error, InterpolationResolutionError) and missing:
            raise _not_set(missing[1], where) from None
        raise UserError(what, where=f"{error.full_key}, {where}" if error.full_key else where) from None


class Schema:
    """A converter that applies a schema to resolved trees.

    Args:
        target: ``module:Struct``, a `msgspec.Struct`.
        import_paths: folders from which it, and what its checks load, may be imported, besides `sys.path`.
        where: what to name in errors.

    Raises:
        UserError: there is no such struct.
    """

    def __init__(self, target: Any, *, import_paths: Sequence[str] = (), where: str = "") -> None:
        if not isinstance(target, str):
            raise UserError(f"schema is {target!r}", where=where, allowed="module:Struct")
        self._import_paths = import_paths
        with importable(import_paths):
            self._struct = load(target, where=f"schema, {where}")
        if not (isinstance(self._struct, type) and issubclass(self._struct, msgspec.Struct)):
            raise UserError(f"schema {target!r} is no msgspec.Struct", where=where)

    def __call__(self, tree: dict[str, Any], *, where: str = "") -> dict[str, Any]:
        """Return the tree with converted values and defaults.

        Args:
            tree: the resolved config.
            where: the cell, for messages.

        Raises:
            UserError: a key is unknown, a type is wrong, or the struct's own `check` refuses the config.
        """
        config = convert(tree, self._struct, where=where)
        check = getattr(config, "check", None)
        if callable(check):
            try:
                with importable(self._import_paths):
                    check()
            except UserError as error:
                raise UserError(
                    error.what, where=error.where or where, allowed=error.allowed, fix=error.fix
                ) from None
        # Identities are digests of plain trees, so the struct itself is not kept.
        plain: dict[str, Any] = msgspec.to_builtins(config)
        return plain
