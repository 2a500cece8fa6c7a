"""`sweep guide` and `sweep completion`: the verbs for operators, agents and shells, by their own parsers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import orchestrator
from orchestrator.cli.main import VERBS, verb_of
from orchestrator.compose.files import shipped
from orchestrator.core.state import State
from orchestrator.errors import UserError, nearest
from orchestrator.store.opening import store_url

SHELLS = ("bash", "zsh", "fish")
"""Shells that there is a script for."""

HOW = """How to switch it on:
  bash:  echo 'source <(sweep completion bash)' >> ~/.bashrc
  zsh:   echo 'source <(sweep completion zsh)' >> ~/.zshrc
  fish:  sweep completion fish > ~/.config/fish/completions/sweep.fish
"""
"""The end of the verb's help."""


class _Verb(NamedTuple):
    """What may follow a verb on the command line.

    Attributes:
        name: of the verb.
        does: its description.
        options: such as ``--only``.
        values: option to its choices, empty if any value will do; "" to the choices of the positional
            argument.
    """

    name: str
    does: str
    options: tuple[str, ...]
    values: dict[str, tuple[str, ...]]


def configure_completion(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HOW
    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    parser.add_argument("--names", action="store_true", help="print the names of sweeps, for the scripts")


def run_completion(args: argparse.Namespace) -> int:
    """Print the script, or the names of sweeps for the script."""
    if args.names:
        print("\n".join(_names()))
    elif args.shell is None:
        raise UserError("completion for which shell?", allowed=", ".join(SHELLS), fix="sweep completion bash")
    elif args.shell == "fish":
        print(_fish(list(_verbs())), end="")
    else:
        print(_bash(list(_verbs()), is_zsh=args.shell == "zsh"), end="")
    return 0


def _verbs() -> Iterator[_Verb]:
    """Yield each verb with its options and choices, as its parser defines them."""
    for name, verb in VERBS.items():
        _, parser = verb_of(name)
        options: list[str] = []
        values: dict[str, tuple[str, ...]] = {}
        for action in parser._actions:
            options += action.option_strings
            if action.option_strings and action.nargs != 0:
                values.update(dict.fromkeys(action.option_strings, tuple(map(str, action.choices or ()))))
            elif not action.option_strings and action.choices:
                values[""] = tuple(map(str, action.choices))
        yield _Verb(name, verb.does, tuple(options), values)


def _names() -> list[str]:
    """Return the names of sweeps, from file and folder names alone.

    Nothing is parsed and no record is read, because a shell waits for this at every press of the tab key.
    """
    package = Path(orchestrator.__file__).parent
    shipped = package / "sweeps" if (package / "sweeps").is_dir() else package.parent / "sweeps"
    here = Path.cwd()
    names = [path.stem for folder in (here / "sweeps", shipped) for path in _yaml(folder)]
    names += [path.name for path in _yaml(here)]
    # A bucket would cost a request at every press of the key.
    url = store_url(None)
    if "://" not in url and (sweeps := Path(url) / "sweeps").is_dir():
        names += [entry.name for entry in os.scandir(sweeps) if entry.is_dir()]
    return sorted(set(names))


def _yaml(folder: Path) -> list[Path]:
    """Return the YAML files in a folder."""
    return [*folder.glob("*.yaml"), *folder.glob("*.yml")]


_BASH = """\
# completion of `sweep`, made by `sweep completion {shell}`
{preamble}_sweep() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}"
  local options="" choices=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs} help --help --version" -- "$word"))
    return
  fi
  case "$verb" in
    help) options="{verbs}" ;;
{cases}
  esac
  case "$verb $before" in
{values}
    *) choices="-" ;;
  esac
  if [ "$choices" = "" ]; then
    COMPREPLY=($(compgen -f -- "$word"))
  elif [ "$choices" != "-" ]; then
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
  elif [ "${{word#-}}" != "$word" ] || [ "$verb" = help ]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  elif [ "$COMP_CWORD" -eq 2 ]; then
    COMPREPLY=($(compgen -W "$(sweep completion --names 2>/dev/null)" -- "$word") $(compgen -f -- "$word"))
  fi
}}
complete -o default -F _sweep sweep
"""
"""Bash script. In `choices`, "-" means that the word before takes no value, "" that it takes a file name."""
_ZSH_PREAMBLE = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def _bash(verbs: list[_Verb], *, is_zsh: bool) -> str:
    """Return the script for bash, or for zsh, which runs it through its bash emulation."""
    cases = [f'    {verb.name}) options="{" ".join(verb.options)}" ;;' for verb in verbs]
    values = [
        f'    "{verb.name} {option or verb.name}") choices="{" ".join(choices)}" ;;'
        for verb in verbs
        for option, choices in verb.values.items()
    ]
    return _BASH.format(
        shell="zsh" if is_zsh else "bash",
        preamble=_ZSH_PREAMBLE if is_zsh else "",
        verbs=" ".join(verb.name for verb in verbs),
        cases="\n".join(cases),
        values="\n".join(values),
    )


def _fish(verbs: list[_Verb]) -> str:
    """Return the script for fish: one ``complete`` command for each option."""
    lines = ["# completion of `sweep`, made by `sweep completion fish`"]
    for verb in verbs:
        lines.append(f"complete -c sweep -n __fish_use_subcommand -f -a {verb.name} -d {_quoted(verb.does)}")
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        for option in verb.options:
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            choices = verb.values.get(option)
            takes = "" if choices is None else f" -x -a {_quoted(' '.join(choices))}" if choices else " -r"
            lines.append(f"complete -c sweep {seen} {flag}{takes}")
        named = _quoted(" ".join(verb.values[""])) if "" in verb.values else "'(sweep completion --names)'"
        lines.append(f"complete -c sweep {seen} -a {named}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a text in single quotes for fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


READS: Final = "reads"
RUNS: Final = "runs"
CHANGES: Final = "changes"
WRITES: Final = "writes files"
NOT_DONE: Final = "a cell is not done; of jobs that run on: one failed or is blocked"


class Effect(NamedTuple):
    """What a verb does to the store, and its exit codes beside 0, 2 and 3.

    Attributes:
        kind: whether it reads, runs stages, or changes the store in another way.
        one: what exit code 1 means; "" if it does not occur, except for an interrupted command.
        more: further exit codes; "" without any.
    """

    kind: str
    one: str = ""
    more: str = ""


EFFECTS: Final = {
    "list": Effect(READS),
    "import": Effect(CHANGES),
    "new": Effect(WRITES),
    "plan": Effect(READS),
    "simulate": Effect(READS),
    "prefetch": Effect("fetches models and data"),
    "launch": Effect(RUNS, NOT_DONE),
    "status": Effect(READS),
    "watch": Effect(READS),
    "failures": Effect(READS),
    "why": Effect(READS),
    "show": Effect(READS),
    "diff": Effect(READS),
    "logs": Effect(READS),
    "wait": Effect(READS, "it can no longer be reached", "4: the time ran out"),
    "events": Effect(READS),
    "decisions": Effect(READS, "a decision does not hold"),
    "rerun": Effect(RUNS, NOT_DONE),
    "work": Effect(RUNS, "", "4, 75, 76, 77: see its help"),
    "reconcile": Effect(RUNS, NOT_DONE),
    "discard": Effect(CHANGES),
    "cancel": Effect(CHANGES),
    "collect": Effect(READS),
    "report": Effect(WRITES),
    "serve": Effect(READS),
    "query": Effect(READS),
    "bundle": Effect(WRITES),
    "verify": Effect(READS, "a claim does not hold"),
    "sync": Effect("sends to trackers"),
    "best": Effect(READS),
    "data": Effect(WRITES, "`data check` found problems"),
    "completion": Effect(READS),
    "clean": Effect("deletes with `--yes`"),
    "nodes": Effect("reads; changes with `--clear`"),
    "doctor": Effect(READS, "a check failed"),
    "upgrade": Effect(CHANGES),
    "guide": Effect(READS),
}
"""Verb to its effect."""


def configure_guide(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--schema", metavar="VERB", help="print the JSON schema of what VERB prints with --json; or: error"
    )


def run_guide(args: argparse.Namespace) -> int:
    """Print the guide or a schema.

    Raises:
        UserError: there is no such schema.
    """
    if args.schema is None:
        print(guide_text(), end="")
        return 0
    folder = shipped("schema") / "json"
    known = sorted(path.stem for path in folder.glob("*.json"))
    if args.schema not in known:
        raise UserError(f"no schema of {args.schema!r}", allowed=nearest(args.schema, known, limit=40))
    print((folder / f"{args.schema}.json").read_text(encoding="utf-8"), end="")
    return 0


def guide_text() -> str:
    """Return the guide, with the verbs of this version."""
    text = Path(__file__).with_name("guide.md").read_text(encoding="utf-8")
    return text.replace("{states}", ", ".join(f"`{state}`" for state in State)).replace(
        "{verbs}", verbs_table()
    )


def verbs_table() -> str:
    """Return the verbs with their effects and exit codes, as a table in Markdown."""
    lines = ["| verb | | effect | `--json` | 1 means | more codes |", "|---|---|---|---|---|---|"]
    for name, verb in VERBS.items():
        _, parser = verb_of(name)
        has_json = any("--json" in action.option_strings for action in parser._actions)
        effect = EFFECTS.get(name, Effect("see its help"))
        fields = (f"`{name}`", verb.does, effect.kind, "yes" if has_json else "", effect.one, effect.more)
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)
