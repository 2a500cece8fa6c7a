"""Standard streams that are closed or full, and locales without UTF-8, change nothing that is done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

WORDS = """
description: zählen 数える
config: {word: 日本, kind: a}
axes: {kind: [a, b]}
stages: {say: {command: "python say.py {output} {config.word}", reads: [word, kind], results: r.jsonl}}
"""
SAY = """
import json, sys
with open(sys.argv[1] + "/" + sys.argv[2] + ".txt", "w") as stream:
    stream.write(sys.argv[2])
print("say", sys.argv[2])
json.dump({"word": sys.argv[2]}, open(sys.argv[1] + "/r.jsonl", "w"), ensure_ascii=False)
"""


class Shell:
    """Runs ``sweep`` by a shell, for what only a shell can do to its streams."""

    def __init__(self, sweep: Any) -> None:
        self.folder, self.store = sweep.folder, sweep.store
        (self.folder / "words.yaml").write_text(WORDS, encoding="utf-8")
        (self.folder / "say.py").write_text(SAY)

    def __call__(self, line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """Runs a line in which ``sweep`` is the command."""
        return subprocess.run(
            ["bash", "-c", f'sweep() {{ "$PY" -m orchestrator "$@"; }}; {line}'],
            cwd=self.folder,
            env={**os.environ, "SWEEP_STORE": str(self.store), "PY": sys.executable, **environment},
            capture_output=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def shell(sweep: Any) -> Shell:
    """A folder with a sweep whose texts are no ASCII."""
    return Shell(sweep)


NOT_UTF_8 = {
    "an ASCII stream": {"PYTHONIOENCODING": "ascii"},
    "a stream of one byte a character": {"PYTHONIOENCODING": "latin-1"},
    "an ASCII locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a Latin-1 locale": {"LC_ALL": "de_DE.latin1"},
}


def some_long(cases: Any, usual: set[str]) -> list[Any]:
    return [name if name in usual else pytest.param(name, marks=pytest.mark.long) for name in cases]


@pytest.mark.parametrize("name", some_long(NOT_UTF_8, {"an ASCII stream", "a Latin-1 locale"}))
def test_a_launch_is_the_same_under_any_locale(shell: Shell, tmp_path: Path, name: str) -> None:
    environment = {**NOT_UTF_8[name], "LOCPATH": str(tmp_path)}
    if "latin1" in environment.get("LC_ALL", ""):
        made = [*["localedef", "-i", "de_DE", "-f", "ISO-8859-1"], str(tmp_path / environment["LC_ALL"])]
        if subprocess.run(made, capture_output=True, check=False).returncode:
            pytest.skip("localedef does not make that locale here")
    done = shell("sweep launch words.yaml && sweep collect words && sweep status words", **environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and b"Traceback" not in said, said.decode(errors="replace")
    product, _ = shell.store.glob("payload/say/*/1/output/*.txt")
    assert product.name == "日本.txt" and product.read_text(encoding="utf-8") == "日本"
    log = product.parents[1] / "log.txt"
    assert "say" in log.read_text(encoding="utf-8", errors="replace")


STREAMS = {
    "closed output": ">&-",
    "closed error": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "full output": ">/dev/full",
    "full error": "2>/dev/full",
    "output that nobody reads": "| true",
}


@pytest.mark.parametrize("name", some_long(STREAMS, {"all closed", "full output"}))
def test_a_launch_finishes_whatever_becomes_of_its_streams(shell: Shell, name: str) -> None:
    done = shell(f"set -o pipefail; sweep launch words.yaml {STREAMS[name]}")
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert len(list(shell.store.glob("done/*/*.json"))) == 2
    for record in shell.store.glob("records/*/*/*/*.json"):
        assert record.read_bytes().startswith(b"{"), record


@pytest.mark.long
def test_reading_verbs_end_with_their_reader_and_name_what_they_cannot_write(shell: Shell) -> None:
    shell("sweep launch words.yaml")
    full = shell("sweep launch words.yaml --json >/dev/full")
    assert full.returncode == 3 and b"error: cannot write standard output" in full.stderr
    assert shell("set -o pipefail; sweep launch words.yaml --json | true").returncode == 0
    for verb in ("status words", "status --help"):
        left = shell(f"set -o pipefail; sweep {verb} | true")
        assert (left.returncode, left.stderr) == (0, b""), (verb, left.stderr.decode())
        full = shell(f"sweep {verb} >/dev/full")
        assert full.returncode == 3, verb
        assert full.stderr.decode().splitlines() == [
            "error: cannot write standard output: No space left on device"
        ]
        assert shell(f"sweep {verb} <&- >&- 2>&-").returncode == 0, verb
    began = time.monotonic()
    assert shell("set -o pipefail; sweep events words --follow | head -1").returncode == 0
    assert time.monotonic() - began < 20  # nothing more happens, so no further write ends it
    wrong = shell("sweep status nothing 2>/dev/full")
    assert wrong.returncode == 2 and not wrong.stdout


def test_all_that_is_opened_as_text_names_its_encoding() -> None:
    root = Path(__file__).parents[2]
    words = ["--preview", "--select", "PLW1514", "--quiet", "orchestrator"]
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *words], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
