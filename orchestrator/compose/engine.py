"""The engine's settings: composed anew, or changed on top of those that a former launch ran under."""

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
"""Mappings whose keys no config lists: Hydra is told to add them."""

_WHERE = "the engine's settings"


def engine_settings(overrides: Sequence[str] = (), cwd: Path | None = None) -> RunSettings:
    """Composes the engine's settings alone, for verbs that only need to find the store.

    Raises:
        UserError: an unknown key or value.
    """
    url, texts = _engine_texts(
        overrides, "launcher, cluster, tracker, policy, hardware and store, such as store.url="
    )
    return composed_engine(texts, config_folders((cwd or Path.cwd()).resolve()), url)


def engine_with(settings: RunSettings, overrides: Sequence[str], cwd: Path | None = None) -> RunSettings:
    """Returns settings with some of them changed; a group choice replaces its whole section.

    Args:
        settings: what a former launch ran under.
        overrides: of the engine, in Hydra's grammar.
        cwd: the working folder, for its config groups.

    Raises:
        UserError: an unknown key or value, or an override of the cells' config.
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
    return kept(settings, _checked(engine_from(changed, where=_WHERE), url))


def composed_engine(overrides: Sequence[str], folders: Sequence[Path], store_url: str | None) -> RunSettings:
    """Composes the engine's settings.

    Args:
        overrides: of the engine alone.
        folders: the user's folders of config groups.
        store_url: outranks what is composed.

    Raises:
        UserError: an unknown key or value.
    """
    settings = engine_from(_tree(_root(folders), overrides), where=_WHERE)
    return _checked(settings, store_url)


def split_store(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``store.url=`` out of a command line: what follows is a place as it stands, not Hydra's grammar.

    Raises:
        UserError: nothing follows.
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
    """Returns resolved values such that resolving them again leaves a ``${`` in them as it is."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
        case list() | tuple():
            return [_escaped(item) for item in value]
        case _:
            return value


def _checked(settings: RunSettings, url: str | None) -> RunSettings:
    """Returns settings with the store at a URL, when they hold no credential."""
    if url is not None:
        settings = msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=url))
    refuse_secrets(msgspec.to_builtins(settings), where=_WHERE, shell=True)
    return settings


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]
