"""A Hydra app of a usual shape, in a folder of the user's, as the tests of apps run it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from orchestrator.compose.given import given
from orchestrator.compose.main import Composition, compose

SCRIPT = '''
import dataclasses, enum, json, os, pathlib, typing
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf

OmegaConf.register_new_resolver("twice", lambda number: 2 * number)


class Kind(enum.Enum):
    SGD = 1
    ADAM = 2


@dataclasses.dataclass
class Optimizer:
    kind: Kind = Kind.SGD
    lr: float = 0.1
    betas: typing.List[float] = dataclasses.field(default_factory=lambda: [0.9, 0.99])
    folder: typing.Optional[pathlib.Path] = None
    extra: typing.Dict[str, int] = dataclasses.field(default_factory=dict)
    steps: typing.Union[int, str] = 3
    name: str = "${seed}-${opt.lr}"


ConfigStore.instance().store(group="opt", name="base", node=Optimizer)


class Model:
    def __init__(self, width, depth=1):
        self.width, self.depth = width, depth


def forms(node, path=""):
    """Yield the path, class, types, flags and raw value of each node."""
    data = node._metadata
    names = ("ref_type", "object_type", "optional", "key_type", "element_type", "flags")
    content = node.__dict__.get("_content", node.__dict__.get("_val"))
    is_tree = isinstance(content, (dict, list))
    kinds = [repr(getattr(data, name, None)) for name in names]
    yield [path, type(node).__name__, *kinds, "" if is_tree else repr(content)]
    for key in content if isinstance(content, dict) else range(len(content)) if is_tree else ():
        yield from forms(node._get_node(key), f"{path}/{key}")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    out = pathlib.Path(HydraConfig.get().runtime.output_dir)
    model = instantiate(cfg.model)
    seen = {
        "forms": list(forms(cfg)),
        "hydra": list(forms(HydraConfig.get())),
        "resolved": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": [type(model).__name__, model.width],
        "cwd": os.getcwd(),
        "token": HydraConfig.get().job.env_set.APP_TOKEN,
    }
    (out / "seen.json").write_text(json.dumps(seen, default=str))
    (out / "metrics.json").write_text(json.dumps({"width": model.width}))
    return cfg.opt.lr * model.width + cfg.seed


if __name__ == "__main__":
    main()
'''

FILES = {
    "train.py": SCRIPT,
    "conf/config.yaml": """
        defaults:
          - _self_
          - model: small
          - opt: adam
          - optional local: here
          - experiment: null
          - override hydra/job_logging: plain
        seed: 0
        double: ${twice:${seed}}
        home: ${oc.env:APP_HOME}
        output_dir: ${hydra:runtime.output_dir}/sub
        log_dir: logs
        started: ${now:%Y}
        data: {root: /data/there, inside: "${data.root}/x", rows: 10}
        name: run-${seed}-${model.width}
        list: [1, "${seed}", {deep: "${oc.env:APP_HOME}"}]
        required: ???
        hydra:
          run: {dir: "here/${now:%H-%M-%S}"}
          sweep: {dir: multi, subdir: "${hydra.job.num}"}
          job: {env_set: {APP_SET: "1"}, env_copy: [APP_TOKEN]}
        """,
    "conf/model/small.yaml": "_target_: __main__.Model\nwidth: 2\n",
    "conf/model/wide.yaml": "_target_: __main__.Model\nwidth: 8\ndepth: ${seed}\n",
    "conf/opt/adam.yaml": "defaults: [base]\nkind: ADAM\nextra: {warmup: 5}\n",
    "conf/experiment/best.yaml": """
        # @package _global_
        defaults: [{override /model: wide}]
        seed: 7
        opt: {lr: 0.5}
        """,
    "conf/hydra/job_logging/plain.yaml": """
        version: 1
        handlers:
          file:
            class: logging.FileHandler
            filename: ${hydra.runtime.output_dir}/own.log
        root: {level: INFO, handlers: [file]}
        disable_existing_loggers: false
        """,
}

ENVIRONMENT = {"APP_HOME": "/home/of/app", "APP_TOKEN": "a-token-of-the-app-12345678"}


def write(folder: Path, files: dict[str, str] = FILES) -> None:
    """Write the files of an app."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))


def plainly(folder: Path, *words: str) -> str:
    """Run the app by Hydra alone."""
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment of a user whose PATH leads to this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **ENVIRONMENT, "PATH": path}


class Composed:
    """Composes the app in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, script: str = "train.py", **options: list[str]) -> Composition:
        """Compose sweeps as ``sweep plan --app train.py WORD ...`` does."""
        every = ("python", "volatile", "checkpoints", "results", "metric", "keep", "shell")
        name, tree = given(script, None, words, {**{name: [] for name in every}, **options})
        return compose(name, words, cwd=self.folder, given=tree)

    def config(self, *words: str, **options: list[str]) -> dict[str, Any]:
        """Return the config of the only cell."""
        (cell,) = self(*words, **options).sweep.cells
        return cell.config

    def digest(self, *words: str, **options: list[str]) -> str:
        """Return the identity of the only cell."""
        (digest,) = self(*words, **options).sweep.stages
        return digest
