"""A value that is another at every plan enters no identity."""

from __future__ import annotations

import pytest

from orchestrator.errors import UserError

SWEEP = """
config:
  {seed: 0, stamp: "STAMP", copy: "${stamp}", picked: "${oc.select:copy}", run: {name: "run-${copy}", lr: 1}}
axes: {seed: [0, 1]}
stages: {fit: {command: "echo {config.seed}", reads: [READS], uses: [USES]}}
"""


def digests(project, *, stamp, reads, uses="", overrides=()):
    text = SWEEP.replace("STAMP", stamp).replace("READS", reads).replace("USES", uses)
    return set(project.sweep(text, *overrides).sweep.stages)


@pytest.mark.parametrize("pattern", ["%Y-%m-%d", "%H", "%j", "%f", "%M%S", "%b", "%a", "%p", "week %W"])
def test_the_time_in_what_a_stage_reads_is_refused_with_the_way_out(project, pattern):
    with pytest.raises(UserError) as error:
        digests(project, stamp=f"${{now:{pattern}}}", reads="seed, picked")
    assert "stage 'fit' reads picked" in error.value.what
    assert "another value at every plan" in error.value.what
    assert "`uses`" in error.value.fix
    assert "own.yaml" in error.value.where


@pytest.mark.parametrize("reads", ["copy", "run", "run.name"])
def test_so_is_what_refers_to_it_at_any_distance(project, reads):
    with pytest.raises(UserError, match="at every plan"):
        digests(project, stamp="${now:%S}", reads=f"seed, {reads}")


def test_an_override_or_an_axis_may_not_bring_it_in(project):
    for override in ("stamp=${now:%Y}", "stamp=${now:%Y},x"):
        with pytest.raises(UserError, match="at every plan"):
            digests(project, stamp="x", reads="seed, stamp", overrides=[override])
    for key, reads in (("+new", "new"), ("run.name", "run")):
        axis = f'{{a: {{{key}: "${{now:%S}}"}}, b: {{{key}: x}}}}'
        with pytest.raises(UserError, match="at every plan"):
            text = SWEEP.replace("{seed: [0, 1]}", f"{{seed: [0, 1], v: {axis}}}")
            project.sweep(text.replace("STAMP", "x").replace("READS", f"seed, {reads}").replace("USES", ""))


def test_what_a_stage_uses_or_nobody_reads_may_vary(project):
    first = digests(project, stamp="${now:%f}", reads="seed", uses="stamp, copy")
    assert first == digests(project, stamp="${now:%f}", reads="seed", uses="stamp, copy")
    carved = digests(project, stamp="${now:%f}", reads="seed, run", uses="run.name")
    assert carved == digests(project, stamp="${now:%f}", reads="seed, run", uses="run.name")


def test_a_resolver_of_ones_own_that_draws_at_random_is_found_and_a_steady_one_is_not(project):
    project.write(
        "own_resolvers.py",
        """
        import uuid
        import msgspec
        from omegaconf import OmegaConf
        OmegaConf.register_new_resolver("own_uuid", lambda: uuid.uuid4().hex, replace=True)
        OmegaConf.register_new_resolver("own_twice", lambda x: 2 * x, replace=True)
        class Shape(msgspec.Struct):
            seed: int
            stamp: object
            copy: object
            picked: object
            run: dict
        """,
    )
    schema = 'schema: "own_resolvers:Shape"'
    text = (
        SWEEP.replace("{seed: 0,", f"{{seed: 0, {schema},")
        .replace("READS", "seed, stamp")
        .replace("USES", "")
    )
    steady = text.replace("STAMP", "${own_twice:4}")
    assert project.sweep(steady).sweep.cells[0].config["stamp"] == 8
    with pytest.raises(UserError, match="at every plan"):
        project.sweep(text.replace("STAMP", "${own_uuid:}"))


def test_the_environment_is_no_such_value(project, monkeypatch):
    monkeypatch.setenv("POLYSWEEP_TEST_VALUE", "seven")
    stamp = "${oc.env:POLYSWEEP_TEST_VALUE}"
    assert digests(project, stamp=stamp, reads="seed, stamp") == digests(
        project, stamp="seven", reads="seed, stamp"
    )
