"""The engine's settings: composed from scratch, or derived from the settings of an earlier launch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from orchestrator.compose.commandline import Overrides, is_engine_key, refuse_secrets
from orchestrator.compose.files import config_folders, shipped
from orchestrator.compose.root import Root, translated
from orchestrator.core.settings import RunSettings, engine_from
from orchestrator.errors import UserError
from orchestrator.formats import kept

_STORE = "store.url="
_OPEN = (
    "policy.limits_s.",
    "cluster.partitions.",
    "cluster.environment.",
    "cluster.sbatch.",
    "launcher.environment.",
)
"""Mappings with free keys. Their overrides get Hydra's ``++``, since the config does not list the keys."""

_WHERE = "the engine's settings"


def engine_settings(overrides: Sequence[str] = (), cwd: Path | None = None) -> RunSettings:
    """Return the engine's settings, composed without a sweep. Commands that only need the store use this.

    Args:
        overrides: of engine settings, in Hydra's grammar.
        cwd: the working folder; the current one by default.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    url, texts = _engine_texts(
        overrides, "launcher, cluster, tracker, policy, hardware and store, such as store.url="
    )
    return composed_engine(texts, config_folders((cwd or Path.cwd()).resolve()), url)


def engine_with(settings: RunSettings, overrides: Sequence[str], cwd: Path | None = None) -> RunSettings:
    """Return settings with some of them changed. A new choice for a group replaces its whole section.

    For example, ``launcher=slurm`` drops all settings of the earlier launcher, and ``launcher.workers=4``
    changes one of them.

    Args:
        settings: of an earlier launch.
        overrides: of engine settings, in Hydra's grammar.
        cwd: the working folder, for its config groups; the current one by default.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    allowed = "only engine settings may be changed here, such as launcher.workers="
    url, texts = _engine_texts(overrides, allowed)
    root = _root(config_folders((cwd or Path.cwd()).resolve()))
    choices = [text for text in texts if root.is_group(_key(text))]
    tree = msgspec.to_builtins(settings)
    if choices:
        composed = _tree(root, choices)
        for section in {_key(text).partition("/")[0] for text in choices}:
            tree.pop(section, None)
            tree.update({section: composed[section]} if section in composed else {})
    changed = _tree(Root.inline(_escaped(tree), ()), [text for text in texts if text not in choices])
    # Fields that a later version wrote into the settings are unknown here, and kept.
    return kept(settings, _checked(engine_from(changed, where=_WHERE), url))


def composed_engine(overrides: Sequence[str], folders: Sequence[Path], store_url: str | None) -> RunSettings:
    """Return the engine's settings, composed from config groups and overrides.

    Args:
        overrides: of engine settings alone.
        folders: the user's folders of config groups.
        store_url: replaces the composed URL of the store, unless None.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    settings = engine_from(_tree(_root(folders), overrides), where=_WHERE)
    return _checked(settings, store_url)


def split_store(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the last ``store.url=`` of a command line, or None, and the other overrides.

    Its value is taken literally, since a path may contain characters that Hydra's grammar interprets.

    Args:
        overrides: of the command line.

    Raises:
        UserError: the value is empty.
    """
    urls = [text.removeprefix(_STORE) for text in overrides if text.startswith(_STORE)]
    if not all(urls):
        raise UserError(f"{_STORE} names no store", fix=f"{_STORE}FOLDER")
    return (urls[-1] if urls else None), [text for text in overrides if not text.startswith(_STORE)]


def _engine_texts(overrides: Sequence[str], allowed: str) -> tuple[str | None, list[str]]:
    for text in overrides:
        if not is_engine_key(_key(text)):
            raise UserError(f"{_key(text)!r} is no engine setting", allowed=allowed)
    url, words = split_store(overrides)
    merged = Overrides({})
    merged.add_command_line(words, Root("engine", ()))
    return url, merged.engine


def _root(folders: Sequence[Path]) -> Root:
    return Root("engine", [*folders, shipped("conf")])


def _tree(root: Root, overrides: Sequence[str]) -> dict[str, Any]:
    merged = Overrides({})
    merged.cell = [f"++{text}" if text.startswith(_OPEN) else text for text in overrides]
    for text in overrides:
        option = text.partition("=")[2]
        if root.is_group(_key(text)) and option:
            root.check_option(_key(text), option.strip("'\""))
    config = root.compose(merged.fixed(root, ()))
    with translated(_WHERE):
        tree: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return dict(tree)


def _escaped(value: Any) -> Any:
    """Return resolved values with each ``${`` escaped, so that a second resolution leaves it as it is."""
    match value:
        case str():
            # OmegaConf halves the backslashes before "${", so they are doubled, and one more escapes the
            # "${".
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
        case list() | tuple():
            return [_escaped(item) for item in value]
        case _:
            return value


def _checked(settings: RunSettings, url: str | None) -> RunSettings:
    """Return settings with the store at a URL. Refuse settings that contain a credential."""
    if url is not None:
        settings = msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=url))
    refuse_secrets(msgspec.to_builtins(settings), where=_WHERE, shell=True)
    return settings


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]
