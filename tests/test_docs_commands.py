"""The commands of README and docs: each is run by a test, accepted by its parser, or listed with a reason."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from orchestrator.cli.main import VERBS, parsed, verb_of
from orchestrator.errors import UserError
from tests import test_readme

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "orchestrator/cli/guide.md",
]

RUN = {
    "README.md": ("tests/test_readme.py", test_readme.shown_by_readme()),
    "docs/tutorial.md": ("tests/test_readme.py", test_readme.COMMANDS),
}
"""Page to the test that runs its commands, and these commands."""

ELSEWHERE = {
    "cd": "changes the reader's shell",
    "source": "changes the reader's shell",
    "export": "changes the reader's shell",
    "cp": "a program of the system's",
    "kill": "a program of the system's",
    "grep": "a program of the system's",
    "sinfo": "a program of Slurm's",
    "sbatch": "a program of Slurm's",
}
"""Programs that are not of this project, each with the reason why no command of it is checked."""

SKIPPED = {}
"""Commands that are not checked, each with the reason."""

NO_SETTINGS = {"store.json": "a file"}
"""Words that look like settings, each with what it is."""


class Command(NamedTuple):
    """A command as it stands in a page."""

    page: str
    line: int
    text: str
    is_whole: bool  # it stands in a code block, so nothing is left out

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("console", "sh", "bash", "")
PROGRAM = r"(?:[A-Z_]+=\S+ +)*(?:[\w./-]+/)?(?:sweep|make|python) +\S"
AT_START = re.compile(rf"^\s*(?:.*: +)?({PROGRAM}.*)")
WITHIN = re.compile(rf"(?:&&|\|\||;|\|) +({PROGRAM}.*)")


def commands_of(path: Path) -> Iterator[Command]:
    """Yield the commands in the code blocks of a page, then those in its sentences."""
    page, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block[1] not in SHELLS:
            continue
        first = text[: block.start(2)].count("\n") + 1
        for number, line in enumerate(block[2].splitlines(), first):
            if block[1] == "console" and re.match(r"[$#] ", line):
                yield Command(page, number, line[2:], True)
            elif found := AT_START.match(line) or WITHIN.search(line):
                yield Command(page, number, found[1], True)
    prose = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(prose.splitlines(), 1):
        for span in re.finditer(r"`((?:sweep|make|python) [^`]+)`", line):
            yield Command(page, number, span[1], False)


def simple_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each program in a shell line, without assignments, redirections and comments."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)


def targets() -> set[str]:
    return set(re.findall(r"^([\w/-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser and of the parsers below it."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(options_of, action.choices.values()))
    return found


def problem_of(words: list[str], *, is_whole: bool) -> str:
    """Return what is wrong with a command, "" if nothing is."""
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program == "sweep":
        return sweep_problem(rest, is_whole=is_whole)
    if program == "make":
        named = [word for word in rest if word[0] not in "-[" and "=" not in word]
        missing = set(named) - targets()
        return f"no such target: {', '.join(sorted(missing))}" if missing else ""
    if program == "python":
        name = rest[0] if rest[0] != "-m" else f"{rest[1].replace('.', '/')}.py"
        ours = name.startswith(("benchmarks/", "docs/", "orchestrator/", "tests/"))
        return "" if not ours or (ROOT / name).is_file() else f"no such file: {name}"
    if (ROOT / words[0]).is_file() or words[0] in ELSEWHERE:
        return ""
    return "neither a program of this project nor listed in ELSEWHERE"


def sweep_problem(words: list[str], *, is_whole: bool) -> str:
    if words[0] in ("--help", "--version", "help"):
        words = [*words[1:], "--help"]
        return "" if len(words) == 1 or words[0] in VERBS else f"no such verb: {words[0]}"
    try:
        _, parser = verb_of(words[0])
        if is_whole:
            parsed(parser, _without_redirection(words[1:]))
    except UserError as error:
        return str(error)
    named = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    unknown = named - options_of(parser)
    return f"no such option: {', '.join(sorted(unknown))}" if unknown else ""


def _without_redirection(words: list[str]) -> list[str]:
    ends = [number for number, word in enumerate(words) if set(word) <= set("<>")]
    return words[: ends[0]] if ends else words


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def test_commands_are_found_in_every_kind_of_place() -> None:
    texts = {(command.page, command.text.partition("  ")[0]) for command in COMMANDS}
    assert ("README.md", "make smoke") in texts  # a prompt
    assert ("README.md", "sweep rerun curve") in texts  # what a command prints
    assert ("docs/gpu.md", "make gpu-check") in texts  # a sentence
    assert any(page == "docs/slurm.md" and "/sweep reconcile" in text for page, text in texts)  # a crontab


@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS}))
def test_every_command_of_a_page_is_run_parsed_or_listed(page: str) -> None:
    _, run = RUN.get(page, ("", []))
    for command in COMMANDS:
        if command.page != page or command.text in SKIPPED or command.text in run:
            continue
        for words in simple_commands(command.text):
            problem = problem_of(words, is_whole=command.is_whole)
            assert not problem, f"{command}\n{problem}"


def test_nothing_is_listed_in_vain() -> None:
    assert set(SKIPPED) <= {command.text for command in COMMANDS}
    programs = {words[0] for command in COMMANDS for words in simple_commands(command.text)}
    assert set(ELSEWHERE) <= programs
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(word in text for word in NO_SETTINGS)


@pytest.mark.parametrize("page", RUN)
def test_what_a_test_runs_stands_in_the_page(page: str) -> None:
    test, run = RUN[page]
    assert run and (ROOT / test).is_file()
    assert set(run) <= {command.text for command in COMMANDS if command.page == page}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sweep lanuch smoke", "unknown verb 'lanuch'"),
        ("sweep launch smoke --dryrun", "--dryrun"),
        ("sweep plan", "the following arguments are required"),
        ("sweep data describ math", "describ"),
        ("make smokes", "no such target: smokes"),
        ("python benchmarks/nothing.py", "no such file"),
        ("X=1 .venv/bin/sweep statsu smoke | head", "unknown verb"),
        ("ls", "neither a program of this project"),
    ],
)
def test_a_misspelt_command_is_found(text: str, problem: str) -> None:
    problems = [problem_of(words, is_whole=True) for words in simple_commands(text)]
    assert problem in problems[0]


def keys_of(tree: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}.{key}"
        yield from keys_of(value, f"{prefix}.{key}")


def test_every_setting_that_a_page_names_exists() -> None:
    groups = ("launcher", "cluster", "policy", "store", "tracker", "hardware")
    known = {
        key
        for group in groups
        for path in (ROOT / "conf" / group).glob("*.yaml")
        for key in keys_of(yaml.safe_load(path.read_text(encoding="utf-8")), group)
    }
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(
            rf"(?<![\w./-])(?:{'|'.join(groups)})\.(?!yaml|py)[a-z_]\w*(?=\b[^(/])", text
        ):
            if match[0] not in NO_SETTINGS:
                line = text[: match.start()].count("\n") + 1
                assert match[0] in known, f"{page.relative_to(ROOT)}:{line}: no setting {match[0]}"


LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))]:
        for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page.relative_to(ROOT)}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{page.relative_to(ROOT)}: {target}#{anchor}"
