"""Texts of stages that are huge, hostile or not to be had: each is one short line wherever it is shown."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from orchestrator.errors import MAX_LINE, one_line
from tests.cli.launches import records

STAGES = r"""
import sys

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

Strange = type("Red\x1b[31m\nerror: forged", (Exception,), {})

def act(config, inputs, context):
    match config.kind:
        case "exits":
            sys.exit("exit\n" + "x" * 3_000_000)
        case "leaves":
            sys.exit()
        case "exits with 1":
            print("no such table: items")
            sys.exit(1)
        case "exits in silence":
            sys.exit(3)
        case "raises":
            raise ValueError("value\n" + "y" * 3_000_000)
        case "mute":
            raise Mute()
        case "mute exit":
            sys.exit(Mute())
        case "escapes":
            raise ValueError("a\x1b[2J\x1b]0;title\x07b\r\nerror: failed\n\u202egnp.\u2069 \udce9 \x9b31m")
        case "strange class":
            raise Strange("of no name")
        case "bytes":
            import os
            open(os.fsencode(context.output) + b"/caf\xe9", "w").close()
        case "telling bytes":
            open(str(context.output) + "/caf\udce9/x")
    return []
"""
SWEEP = """
config: {kind: exits}
axes:
  kind: [exits, leaves, exits with 1, exits in silence, raises, mute, mute exit,
         escapes, strange class, bytes, telling bytes]
stages: {act: {run: "hostile:act", reads: [kind]}}
"""
SAID = {
    "exits": ("unknown", "the stage exited: exit x"),
    "leaves": ("code", "the stage exited with code 0 and returned no rows; return [] for none"),
    "exits with 1": ("unknown", "the stage exited with code 1, last line: no such table: items"),
    "exits in silence": ("unknown", "the stage exited with code 3"),
    "raises": ("code", "ValueError: value y"),
    "mute": ("unknown", "Mute: (its text cannot be had: __str__ raised RuntimeError)"),
    "mute exit": ("unknown", "the stage exited: (its text cannot be had: __str__ raised RuntimeError)"),
    "escapes": ("code", r"ValueError: a\x1b[2J\x1b]0;title\x07b error: failed \u202egnp."),
    "strange class": ("unknown", r"Red\x1b[31m error: forged: of no name"),
    "bytes": ("code", r"caf\udce9"),
    "telling bytes": ("data", r"caf\udce9/x"),
}


def test_each_message_is_kept_as_one_short_line_that_does_nothing(sweep: Any) -> None:
    (sweep.folder / "hostile.py").write_text(STAGES)
    (sweep.folder / "hostile.yaml").write_text(SWEEP)
    said = sweep("launch", "hostile.yaml", "policy.retries.unknown=0", code=1)
    for verb in (["status", "hostile"], ["why", "hostile", "kind=escapes"], ["logs", "hostile", "kind=mute"]):
        said += sweep(*verb)
    assert not any(line.startswith("error:") for line in said.splitlines())
    assert not any(ord(char) < 32 and char not in "\n\t" for char in said)
    ends = {}
    for end in records(sweep.store, "end.json"):
        kind = (
            (end["folder"].parent / "spec.json")
            .read_text(encoding="utf-8")
            .split('"kind":"')[1]
            .split('"')[0]
        )
        ends[kind] = (end["cause"], end["message"])
        assert (end["folder"] / "end.json").stat().st_size < 20_000
    assert {kind: cause for kind, (cause, _) in ends.items()} == {k: c for k, (c, _) in SAID.items()}
    for kind, (_, words) in SAID.items():
        assert words in ends[kind][1] and len(ends[kind][1]) <= MAX_LINE, ends[kind]
        assert ends[kind][1].isprintable()


def test_a_wrong_call_cannot_forge_a_line(sweep: Any) -> None:
    said = sweep("status", "x\nerror: forged \x1b[31m", code=2)
    assert [line for line in said.splitlines() if line.startswith("error:")] == said.splitlines()[:1]
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n\tb  c \r\n", "a b c"),
        ("ถูก 日本 كتاب 👩‍🔬 ಕ್ಷ", "ถูก 日本 كتاب 👩‍🔬 ಕ್ಷ"),
        ("\u2028\u202e\udc80\x85", r"\u2028\u202e\udc80\x85"),
        ("x" * 501, "x" * 497 + "..."),
        ("x" * 500, "x" * 500),
    ],
)
def test_one_line_of_a_text(text: str, line: str) -> None:
    assert one_line(text) == line


WRITES = """
import sys
for _ in range(2000):
    sys.stdout.write("x" * 100_000)
print("\\nend")
sys.exit(3)
"""


def test_a_long_log_is_shown_in_little_memory(sweep: Any) -> None:
    (sweep.folder / "writes.py").write_text(WRITES)
    (sweep.folder / "log.yaml").write_text(
        "config: {seed: 0}\naxes: {seed: 'range(0,1)'}\n"
        "stages: {act: {command: python writes.py, reads: [seed]}}\n"
    )
    sweep("launch", "log.yaml", "policy.retries.unknown=0", "policy.retries.code=0", code=1)
    limit = 350 << 20

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    for words, size in ((["logs", "log", "seed=0"], 200_000_000), (["logs", "log", "seed=0", "--json"], 1)):
        with subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=sweep.folder,
            env={**os.environ, "SWEEP_STORE": str(sweep.store)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=limited,
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            num_bytes, last = 0, b""
            while chunk := process.stdout.read(1 << 20):
                num_bytes, last = num_bytes + len(chunk), (last + chunk)[-100_000:]
            assert process.wait() == 0, process.stderr.read().decode()[-2000:]
        assert num_bytes >= size and b"end" in last
