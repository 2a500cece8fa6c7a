from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.compose.main import Composition, compose


class Project:
    """A user's folder with a sweep file, config groups and whatever a test writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    def sweep(self, text: str, *overrides: str, name: str | None = None) -> Composition:
        self.write("own.yaml", text)
        return self.compose("own.yaml", overrides, name=name)

    def compose(self, sweep: str, overrides: Sequence[str] = (), *, name: str | None = None) -> Composition:
        return compose(sweep, overrides, name=name, cwd=self.folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def study(project: Project) -> Project:
    """A project with groups, and interpolations of every kind that a patch can reach."""
    project.write(
        "conf/config.yaml",
        """
        defaults: [{model: a}, {task: math}, {trainer: quick}, _self_]
        seed: 0
        languages: [en]
        extras: [fr, th]
        depth: 2
        data:
          root: store
          math: {name: math, size: "${depth}", folder: "${..root}/math"}
          calls:
            {name: calls, size: 3, folder: "${data.root}/calls", inner: {up: "${...root}", at: "${..size}"}}
        items: ${data.${task.name}}
        first: ${extras.0}
        label: "${model.name}-${trainer.lr}-${seed}"
        chained: "${label}!"
        listed: [a, "${seed}", {deep: "${depth}"}]
        mirror: ${model}
        mirrored: ${mirror.width}
        seen: ${oc.select:trainer.lr}
        plain: {one: 1, two: [1, 2]}
        """,
    )
    for name, width in (("a", 1), ("b", 2), ("c", 3)):
        project.write(
            f"conf/model/{name}.yaml", f"name: {name}\nwidth: {width}\ntwice: '${{.width}}${{.width}}'\n"
        )
    project.write("conf/task/math.yaml", "name: math\n")
    project.write("conf/task/calls.yaml", "name: calls\n")
    project.write(
        "conf/trainer/quick.yaml", "lr: 1e-3\nsteps: 10\nwarmup: {share: 0.1, of: '${trainer.steps}'}\n"
    )
    project.write(
        "conf/trainer/slow.yaml", "lr: 1e-5\nsteps: 100\nwarmup: {share: 0.1, of: '${trainer.steps}'}\n"
    )
    return project
