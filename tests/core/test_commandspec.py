"""What a command stage may say is checked before anything runs."""

from __future__ import annotations

import pytest

from orchestrator.core.sweep import parse, stage_specs
from orchestrator.errors import UserError
from orchestrator.stage import StageSpec


def spec_of(**fields: object) -> StageSpec:
    file = parse({"stages": {"fit": fields}}, where="s.yaml")
    return stage_specs(file, lambda name: None, known=[], where="s.yaml")["fit"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"command": "a | b"}, "shell: true"),
        ({"command": "a && b"}, "shell: true"),
        ({"command": "a > {output}/x"}, "shell: true"),
        ({"command": "a 2>&1"}, "shell: true"),
        ({"command": "a --x={args}"}, "by itself"),
        ({"command": "a '--x {args}'"}, "by itself"),
        ({"command": 'echo "{args}"', "shell": True}, "by itself"),
        ({"command": "a {ouput}", "shell": True}, "unknown {ouput}"),
        ({"command": "a {config.lr}", "shell": True}, "`reads` lacks"),
        ({"command": "a 'b"}, "cannot be split"),
        ({"command": " ", "shell": True}, "is empty"),
        ({"command": "a", "finished": "/tmp/x"}, "a path inside"),
        ({"command": "a", "finished": "../x"}, "a path inside"),
        ({"command": "a", "finished": ""}, "a path inside"),
        ({"command": "a {work}", "keep": ["../*"]}, "a path inside"),
        ({"command": "a {work}", "keep": ["/etc/passwd"]}, "a path inside"),
        ({"command": "a {work}", "keep": "*.pt"}, "keep"),
        ({"command": "a", "keep": ["*.pt"]}, "does not use {work}"),
        ({"command": "a", "python": " "}, "an interpreter"),
        ({"run": "m:f", "finished": "x"}, "for commands"),
        ({"run": "m:f", "shell": True}, "for commands"),
        ({"run": "m:f", "python": "p"}, "for commands"),
        ({"command": "a", "finnished": "x"}, "finished"),
    ],
)
def test_a_command_that_contradicts_itself_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        spec_of(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "a '|' \"&&\" 'x > y' {args}"},
        {"command": "awk -F';' '{print $1}' {output}"},
        {"command": "tool '{{x}}' '{\"a\": {\"b\": {{lr}}}}' {output}"},
        {"command": "for i in 1 2; do a ${HOME} ${i} {args} | b; done > {output}/x", "shell": True},
        {"command": "cat <<END\nit's {output}\nEND", "shell": True},
        {
            "command": "a {work}",
            "keep": ["*.pt", "best/**"],
            "finished": "done/ok",
            "python": "~/env/bin/python",
        },
        {"run": "m:f", "keep": ["*"]},
    ],
)
def test_a_command_that_makes_sense_is_taken(fields: dict[str, object]) -> None:
    assert spec_of(**fields).version == 1
