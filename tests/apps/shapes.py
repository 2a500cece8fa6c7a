"""Small apps of the shapes that public Hydra apps have: a template project, a config store, a package."""

from __future__ import annotations

TEMPLATE = {
    # src/train.py with configs beside it, paths of an environment variable, groups that may be null, an
    # experiment group, hydra's own folders from a group, a checkpoint path, a metric that is returned.
    "src/train.py": """
        import os, sys, time
        from pathlib import Path
        import hydra
        from omegaconf import OmegaConf, open_dict

        ROOT = Path(__file__).resolve().parents[1]
        os.environ["PROJECT_ROOT"] = str(ROOT)
        sys.path.insert(0, str(ROOT))

        from src.models.net import Net


        def train(cfg):
            out = Path(cfg.paths.output_dir)
            net = hydra.utils.instantiate(cfg.model, _recursive_=False)
            callbacks = [hydra.utils.instantiate(each) for each in (cfg.get("callbacks") or {}).values()]
            start = step = int(Path(cfg.ckpt_path).read_text()) if cfg.get("ckpt_path") else 0
            (out / "checkpoints").mkdir(exist_ok=True)
            while step < cfg.trainer.max_epochs:
                step += 1
                print(f"step={step} val/acc={net.width * step}", flush=True)
                (out / "checkpoints" / "last.ckpt").write_text(str(step))
                if step == 2 and not start and cfg.get("dies"):
                    time.sleep(2.2)
                    sys.exit("the node failed")
            return {"val/acc": net.width * cfg.seed, "start": start}, {"net": net, "callbacks": callbacks}


        @hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
        def main(cfg):
            if cfg.extras.print_config:
                print(OmegaConf.to_yaml(cfg, resolve=True))
            metrics, _ = train(cfg)
            with open(Path(cfg.paths.output_dir, "metrics.json"), "w") as stream:
                stream.write('{"start": %d}' % metrics["start"])
            return metrics[cfg.optimized_metric]


        if __name__ == "__main__":
            main()
        """,
    "src/__init__.py": "",
    "src/models/__init__.py": "",
    "src/models/net.py": """
        class Net:
            def __init__(self, width, optimizer):
                self.width, self.optimizer = width, optimizer


        class Stop:
            def __init__(self, monitor, patience):
                self.monitor, self.patience = monitor, patience
        """,
    "configs/train.yaml": """
        # @package _global_
        defaults:
          - _self_
          - data: mnist
          - model: mnist
          - callbacks: default
          - logger: null
          - trainer: default
          - paths: default
          - extras: default
          - hydra: default
          - experiment: null
          - optional local: default
          - debug: null
        task_name: "train"
        tags: ["dev"]
        ckpt_path: null
        seed: null
        optimized_metric: val/acc
        """,
    "configs/data/mnist.yaml": "data_dir: ${paths.data_dir}\nbatch_size: 128\n",
    "configs/model/mnist.yaml": """
        _target_: src.models.net.Net
        width: 4
        optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.001}
        """,
    "configs/callbacks/default.yaml": """
        defaults: [early_stopping, _self_]
        early_stopping: {monitor: val/acc}
        """,
    "configs/callbacks/early_stopping.yaml": """
        early_stopping:
          _target_: src.models.net.Stop
          monitor: ???
          patience: 3
        """,
    "configs/logger/csv.yaml": 'csv: {save_dir: "${paths.output_dir}", name: csv/}\n',
    "configs/trainer/default.yaml": """
        default_root_dir: ${paths.output_dir}
        max_epochs: 3
        """,
    "configs/paths/default.yaml": """
        root_dir: ${oc.env:PROJECT_ROOT}
        data_dir: ${paths.root_dir}/data/
        log_dir: ${paths.root_dir}/logs/
        output_dir: ${hydra:runtime.output_dir}
        work_dir: ${hydra:runtime.cwd}
        """,
    "configs/extras/default.yaml": "print_config: true\n",
    "configs/hydra/default.yaml": """
        run: {dir: "${paths.log_dir}/${task_name}/runs/${now:%Y-%m-%d}_${now:%H-%M-%S}"}
        sweep:
          dir: ${paths.log_dir}/${task_name}/multiruns/${now:%Y-%m-%d}_${now:%H-%M-%S}
          subdir: ${hydra.job.num}
        job_logging:
          handlers: {file: {filename: "${hydra.runtime.output_dir}/${task_name}.log"}}
        """,
    "configs/experiment/wide.yaml": """
        # @package _global_
        defaults: [{override /logger: csv}]
        tags: ["wide"]
        seed: 12345
        model: {width: 16}
        """,
}
"""The shape of a template project for trainings."""

STORE = {
    # No config files at all: structured configs, and the working folder that older versions change.
    "app.py": """
        from dataclasses import dataclass, field
        from typing import Any, List
        import os
        import hydra
        from hydra.core.config_store import ConfigStore
        from omegaconf import MISSING


        @dataclass
        class Db:
            driver: str = MISSING
            port: int = 0


        @dataclass
        class MySQL(Db):
            driver: str = "mysql"
            port: int = 3306


        @dataclass
        class Postgres(Db):
            driver: str = "postgres"
            port: int = 5432


        @dataclass
        class Config:
            defaults: List[Any] = field(default_factory=lambda: ["_self_", {"db": "mysql"}])
            db: Db = MISSING
            timeout: float = 10


        store = ConfigStore.instance()
        store.store(name="config", node=Config)
        store.store(group="db", name="mysql", node=MySQL)
        store.store(group="db", name="postgres", node=Postgres)


        @hydra.main(version_base="1.1", config_path=None, config_name="config")
        def run(cfg: Config) -> dict:
            open("here.txt", "w").write(type(cfg.db).__name__)
            folder = os.path.basename(os.getcwd())
            return {"port": cfg.db.port, "time": {"out": cfg.timeout}, "folder": folder}


        run()
        """,
}
"""The shape of an app with structured configs alone, whose tasks run in their output folders."""

PACKAGE = {
    # A package that is run by -m, with its configs in it, a search path of its own, and a logger in the task.
    "tool/__init__.py": "",
    "tool/train.py": """
        import logging
        import hydra

        log = logging.getLogger(__name__)


        @hydra.main(version_base=None, config_path="conf", config_name="main")
        def cli(cfg):
            log.info("rate %s of %s", cfg.rate, cfg.data.name)
            return cfg.rate * cfg.data.size


        if __name__ == "__main__":
            cli()
        """,
    "tool/conf/__init__.py": "",
    "tool/conf/main.yaml": """
        defaults: [{data: small}, _self_]
        hydra: {searchpath: ["file://extra"], verbose: false}
        rate: 2
        launcher: {name: mine}
        """,
    "tool/conf/data/__init__.py": "",
    "tool/conf/data/small.yaml": "name: small\nsize: 3\n",
    "extra/data/large.yaml": "name: large\nsize: 30\n",
}
"""The shape of an installed package with a command of its own."""
