"""A program that the interpreter of a Hydra app runs: it composes the app's cells, or runs one of them.

Only Hydra, OmegaConf and Python's library are used here, since the app's environment may have nothing else of
ours. The app's script is executed unchanged, as ``__main__``, up to the call of its ``@hydra.main`` function.
There `Hydra.run` is replaced::

    python hydra_app.py compose IN OUT train.py    answer requests, one JSON a line, until the input ends
    python hydra_app.py run train.py               run the sealed config that SWEEP_CONFIG holds

A cell is a job of Hydra's multirun: ``hydra.mode`` is MULTIRUN, and ``hydra.job.num`` is its number.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_REPLACED = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode")
_REPLACED_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")


def main(words: list[str]) -> None:
    """Compose an app's cells, or run one of them.

    Args:
        words: ``compose``, two file descriptors and the app; or ``run`` and the app.
    """
    if words[0] == "compose":
        requests = os.fdopen(int(words[1]), encoding="utf-8")
        answers = os.fdopen(int(words[2]), "w", encoding="utf-8")
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        execute(words[3:], lambda *args, **kwargs: Composer(*args, **kwargs).serve(requests, answers))
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra cuts the traceback that names the cause
    execute(words[1:], run)


def execute(words: list[str], replacement: Callable[..., Any]) -> None:
    """Execute a script as ``__main__``, with `Hydra.run` and `Hydra.multirun` replaced.

    Args:
        words: the script, or ``-m`` and a module, and the arguments that it gets.
        replacement: called as `Hydra.run` would be.
    """
    from hydra._internal.hydra import Hydra

    # In a class, a plain function becomes a method; a lambda does too.
    Hydra.run = Hydra.multirun = lambda *args, **kwargs: replacement(*args, **kwargs)  # type: ignore[method-assign]
    if hasattr(Hydra, "get_mode"):
        # It composes the whole config only to read `hydra.mode`, which is replaced here anyway.
        Hydra.get_mode = lambda *args, **kwargs: None  # type: ignore[method-assign]
    main = types.ModuleType("__main__")
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        spec = importlib.util.find_spec(words[1])
        if spec is not None and spec.submodule_search_locations:
            spec = importlib.util.find_spec(words[1] + ".__main__")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named " + repr(words[1]))
        main.__spec__, main.__package__, path = spec, spec.parent, spec.origin
        words = words[1:]
    else:
        path = os.path.abspath(words[0])  # noqa: PTH100 - links stay, as for Python itself
        sys.path.insert(0, str(Path(path).parent))
    main.__file__ = path
    sys.argv = [words[0] if main.__spec__ is None else path, *words[1:]]  # as for Python itself
    code = compile(Path(path).read_bytes(), path, "exec")
    # A process that multiprocessing spawns, and a pickle, find the app's classes under this name.
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - the user's own program


class Composer:
    """The app's config loader, which answers requests with composed cells.

    Args:
        hydra: the app's Hydra, with its search path.
        config_name: of the primary config.
        overrides: those that the script passes on by itself.
    """

    def __init__(
        self, hydra: Any, config_name: Any, task_function: Any, overrides: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._loader, self._config_name = hydra.config_loader, config_name
        # Those that the script itself adds to sys.argv. They come last, as where they are appended there.
        self._own = [each for each in overrides or () if not each.startswith("hydra.mode=")]
        self._repo = _parsed(self._loader, config_name, [])[1]
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}
        if hasattr(self._loader, "_parse_overrides_and_create_caching_repo"):  # not before Hydra 1.3
            _compose_groups_once(self._loader, self._repo)

    def serve(self, requests: Any, answers: Any) -> None:
        """Answer one request after another, and end the process at the end of the input."""
        for line in requests:
            request = json.loads(line)
            try:
                answer = getattr(self, request.pop("do"))(**request)
            except Exception as error:  # noqa: BLE001 - every error is the answer, in the user's words
                answer = {"error": _lines(error)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        os._exit(0)  # the script has not ended, and its exit handlers are of a run that never was

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Return which of some names are groups or keys of the app."""
        loaded = self._repo.load_config(self._config_name) if self._config_name else None
        keys = set(loaded.config) if loaded is not None else set()
        return {"own": [name for name in names if name in keys or self._repo.group_exists(name)]}

    def options(self, group: str) -> dict[str, Any]:
        """Return the options of a group; ``null`` for a key."""
        is_group = self._repo.group_exists(group)
        return {"options": self._repo.get_group_options(group) if is_group else None}

    def outline(self) -> dict[str, Any]:
        """Return the groups with their options, and the keys of the config as it is without overrides."""
        from hydra.core.object_type import ObjectType
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        groups: dict[str, list[str]] = {}
        todo = [""]
        while todo:
            parent = todo.pop(0)
            for name in self._repo.get_group_options(parent, results_filter=ObjectType.GROUP):
                full = parent + "/" + name if parent else name
                if full != "hydra" and not full.startswith("__"):
                    todo.append(full)
                    groups[full] = self._repo.get_group_options(full)
        config = self._loader.load_configuration(self._config_name, [], run_mode=RunMode.MULTIRUN)
        tree: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
        leaves = _leaves({key: value for key, value in tree.items() if key != "hydra"})
        return {"groups": {name: found for name, found in groups.items() if found}, "keys": dict(leaves)}

    def _composed(self, overrides: list[str]) -> Any:
        from hydra.conf import HydraConf
        from hydra.types import RunMode

        mode = ["hydra.mode=MULTIRUN"] if "mode" in HydraConf.__dataclass_fields__ else []  # not in 1.1
        every = [*mode, *overrides, *self._own]
        return self._loader.load_configuration(self._config_name, every, run_mode=RunMode.RUN)

    def base(self, volatile: list[str]) -> dict[str, Any]:
        """Return `Identity.texts` of the config without overrides: nothing if it needs an override."""
        from omegaconf import open_dict

        key = tuple(volatile)
        if key not in self._bases:
            seen = _seal().Identity(volatile, {})
            try:
                config = self._composed([])
            except Exception:  # noqa: BLE001 - a group must be chosen: Hydra's own errors
                config = None
            if config is not None:
                with open_dict(config), _seal().without_resolvers() as touched:
                    seen.touched = touched
                    del config["hydra"]
                    seen.tree(config)
            self._bases[key] = seen.texts
        return {"texts": self._bases[key]}

    def cell(self, number: int, overrides: list[str], volatile: list[str]) -> dict[str, Any]:
        """Return the sealed config of a cell, and the part of it that is its identity.

        Args:
            number: of the cell, from 0.
            overrides: in Hydra's grammar, each with one value.
            volatile: further keys to leave out of the identity.
        """
        from omegaconf import OmegaConf, open_dict

        parsed = _parsed(self._loader, self._config_name, [*overrides, *self._own])[0]
        config = self._composed(overrides)
        given = {}
        for each in parsed:
            is_key = not self._repo.group_exists(each.key_or_group) or isinstance(each.value(), dict)
            if is_key and not each.is_delete():
                given[each.key_or_group] = each.input_line
        with open_dict(config):
            hydra = config.hydra
            hydra.job.num = number
            hydra.job.id = str(number)
            hydra.sweep.subdir = "."
            for name in hydra.job.env_copy:  # values of variables stay out of the store
                del hydra.job.env_set[name]
            # Paths inside the project are sealed relative to it, so that each checkout seals the same.
            for source in hydra.runtime.config_sources:
                if (source.path + os.sep).startswith(hydra.runtime.cwd + os.sep):
                    source.path = os.path.relpath(source.path, hydra.runtime.cwd)
            hydra.runtime.cwd = "."
            seen = _seal().Identity(volatile, given, self.base(volatile)["texts"])
            with _seal().without_resolvers() as touched:
                seen.touched = touched
                del config["hydra"]
                tree = seen.tree(config)
                config.__dict__["_content"]["hydra"] = hydra._set_parent(config) or hydra
        OmegaConf.clear_cache(config)
        return {
            "tree": tree,
            "set": {
                key: text
                for key, text in given.items()
                if key.split(".")[0] == "hydra" and not _replaced(key)
            },
            "left_out": seen.left_out,
            "unused": sorted(set(_unused(hydra, [*overrides, *self._own]))),
            "sealed": json.dumps(_seal().seal(config), separators=(",", ":")),
        }


def _leaves(tree: Any, root: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a tree and their values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, root + str(key) + ".")
        else:
            is_plain = value is None or isinstance(value, (int, float, list, dict))
            yield root + str(key), value if is_plain else str(value)


def _seal() -> Any:
    return _sibling("hydra_seal")


def _sibling(name: str) -> Any:
    """Import a file beside this one, of which the app's import path has nothing."""
    full = "_polysweep_" + name
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, str(Path(__file__).with_name(name + ".py")))
        assert spec is not None and spec.loader is not None
        sys.modules[full] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


def _replaced(key: str) -> bool:
    return key in _REPLACED or key.startswith(_REPLACED_GROUPS)


def _unused(hydra: Any, overrides: list[str]) -> Iterator[str]:
    """Yield in words the settings of Hydra that have no effect here."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if _replaced(key):
            yield text
    for group in ("launcher", "sweeper"):
        choice = hydra.runtime.choices.get("hydra/" + group)
        if choice not in (None, "basic"):
            yield "hydra/" + group + "=" + str(choice)
    if hydra.sweeper.get("params"):
        yield "hydra.sweeper.params"


def _lines(error: BaseException) -> list[str]:
    """Return the lines of an error and of what caused it."""
    found: list[str] = []
    each: BaseException | None = error
    while each is not None:
        text = str(each).strip() or type(each).__name__
        if isinstance(each, KeyError):  # its text is the key alone
            text = type(each).__name__ + ": " + text
        found += [line for line in text.splitlines() if line.strip() and line not in found]
        each = each.__cause__
    return found


def _parsed(loader: Any, config_name: Any, overrides: list[str]) -> Any:
    """Return parsed overrides, and a repository with the search path of the primary config."""
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if hasattr(loader, "_parse_overrides_and_create_caching_repo"):
        return loader._parse_overrides_and_create_caching_repo(config_name, overrides)
    parsed = OverridesParser.create().parse_overrides(overrides)
    repo = CachingConfigRepository(loader.repository)
    loader._process_config_searchpath(config_name, parsed, repo)
    return parsed, repo


def _compose_groups_once(loader: Any, shared: Any) -> None:
    """Let cells with the same choices of groups share what Hydra composes from files.

    Hydra takes 30 ms and more for each cell. Overrides of keys are applied to a copy of what the groups give.
    """
    import hydra._internal.config_loader_impl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    module: Any = hydra._internal.config_loader_impl
    inner_list, inner_compose = module.create_defaults_list, loader._compose_config_from_defaults_list
    inner_repo = loader._parse_overrides_and_create_caching_repo
    parser, parsed = OverridesParser.create(), {}
    lists: dict[Any, Any] = {}
    configs: dict[int, Any] = {}
    repos: dict[int, Any] = {}

    def parse(config_name: Any, overrides: list[str]) -> Any:
        for text in overrides:
            if text not in parsed:
                (parsed[text],) = parser.parse_overrides([text])
        if any(text.lstrip("+").startswith("hydra.searchpath") for text in overrides):
            return inner_repo(config_name, overrides)
        return [parsed[text] for text in overrides], shared

    def defaults_list(repo: Any, config_name: Any, overrides_list: Any, **rest: Any) -> Any:
        def is_key(each: Any) -> bool:
            return isinstance(each.value(), dict) or not repo.group_exists(each.key_or_group)

        keys = [each for each in overrides_list if is_key(each)]
        groups = (id(repo), config_name, *(each.input_line for each in overrides_list if not is_key(each)))
        if groups not in lists:
            # What Hydra caches of files is changed by composing, so each composition has its own.
            if repo is shared:
                repo = inner_repo(config_name, [])[1]
            lists[groups] = inner_list(
                repo=repo, config_name=config_name, overrides_list=overrides_list, **rest
            )
            repos[id(lists[groups].defaults)] = repo
        found = copy.copy(lists[groups])
        found.config_overrides = keys
        return found

    def compose(defaults: Any, repo: Any) -> Any:
        if id(defaults) not in configs:
            configs[id(defaults)] = inner_compose(defaults=defaults, repo=repos[id(defaults)])
        return copy.deepcopy(configs[id(defaults)])

    loader._parse_overrides_and_create_caching_repo = parse
    loader._compose_config_from_defaults_list = compose
    module.create_defaults_list = defaults_list


def run(hydra: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the task with the sealed config, in place of `Hydra.run`, and write its result rows.

    Args:
        hydra: the app's Hydra.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobRuntime, run_job
    from hydra.types import HydraContext
    from omegaconf import OmegaConf, open_dict

    bound = dict(zip(("config_name", "task_function", "overrides"), args))  # noqa: B905
    bound.update(kwargs)
    output = os.environ["SWEEP_OUTPUT"]
    given = json.loads(Path(os.environ["SWEEP_CONFIG"]).read_text(encoding="utf-8"))["uses"]["hydra"]
    config = _seal().unseal(json.loads(given["sealed"]))
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config):
        config.hydra.runtime.cwd = str(Path.cwd())
        for source in config.hydra.runtime.config_sources:
            if source.schema == "file":
                source.path = str(Path(source.path).absolute())
        config.hydra.run.dir = config.hydra.sweep.dir = output.replace("$", "\\$")
        for name in config.hydra.job.env_copy:
            # Hydra sets the value itself, and so writes it into .hydra/hydra.yaml, which the store keeps.
            config.hydra.job.env_set[name] = "${oc.env:" + name + "}"
        checkpoint = os.environ.get("SWEEP_CHECKPOINT")
        for key in given["resume"] if checkpoint else ():
            OmegaConf.update(config, key, checkpoint, merge=True, force_add=True)
    JobRuntime.instance().set("name", config.hydra.job.name)
    sys.argv[1:] = list(config.hydra.overrides.task)
    context = {"config_loader": hydra.config_loader}
    if "callbacks" in inspect.signature(HydraContext).parameters:
        context["callbacks"] = Callbacks(config)
    try:
        ended = run_job(
            hydra_context=HydraContext(**context),
            task_function=bound["task_function"],
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    except SystemExit as error:
        if error.code in (None, 0):  # the task ends the process by itself, and has returned nothing
            _seal().write_rows(Path(output), None)
        raise
    _seal().write_rows(Path(output), ended.return_value)  # raises what the task raised
    return ended


if __name__ == "__main__":
    # Imported again under its own name, so that `__main__` is free for the app's script.
    _sibling("hydra_app").main(sys.argv[1:])
