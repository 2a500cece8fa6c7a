"""The page of figures of the campaign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import quantiles

from chaos.rounds import Kind, Result

HEAD = """# Chaos campaign

Real sweeps struck by real faults at random. Each round starts in an empty store and must end with the rows
of a calm run. `make chaos` adds rounds to `benchmarks/chaos/results.jsonl` until each kind has had its number
of faults; this page is `python benchmarks/chaos_campaign.py --report docs/chaos.md`.

*lost*: cells without the row of the calm run. *twice*: stages that succeeded twice. *stuck*: rounds that did
not end. *goodput*: share of the workers' time that ended in products.

*by itself*: faults after which nobody had to type a command. One fault in ten or so of those that kill hits
the launch at which a person waits, and then somebody has to type it again, by nature. (On Slurm and Ray the
jobs go on without it, but the campaign waits for its exit code, so it types it there too.) *but for launches*
leaves these out: of all other faults, the share after which no command was typed. Of the round that went
wrong, 60 commands count, which is why loss of Slurm's controller has 0%.

"""
TABLE = """
| round | rounds | faults | of | lost | twice | stuck | by itself | but for launches | goodput |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""
MENDED = "d86d32496d"
"""Commit before which most causes of needless commands, as the page lists them, were still there."""

RECOVERIES = """
## Recovery

Seconds from a fault that hit an attempt until the next attempt was claimed. Faults that hit no attempt, and
those that stop a whole node or a controller, are not in it.

| round | recoveries | p50 | p90 | p99 | longest |
|---|---:|---:|---:|---:|---:|
"""


def page(results: Sequence[Result], kinds: Iterable[Kind]) -> str:
    """Return the page.

    Args:
        results: the rounds.
        kinds: of rounds, in the order of the table.
    """
    lines = []
    for kind in kinds:
        own = [each for each in results if each.kind == kind.name]
        lines.append(_row(kind.name, own, str(kind.num_wanted)))
    lines.append(_row("**all**", results, str(sum(kind.num_wanted for kind in kinds))))
    since = next((i for i, each in enumerate(results) if each.commit.startswith(MENDED)), len(results))
    lines.append(_row(f"**since {MENDED}**", results[since:], ""))
    named = [(kind.name, [each for each in results if each.kind == kind.name]) for kind in kinds]
    times = [_recoveries(name, own) for name, own in [*named, ("**all**", list(results))]]
    lines += RECOVERIES.splitlines() + [line for line in times if line]
    killed = Counter(strike.what for each in results for strike in each.strikes)
    lines += ["", "## What was hit", ""]
    lines += ["; ".join(f"{num} x {what}" for what, num in killed.most_common()) + "."]
    commits = Counter(each.commit for each in results)
    lines += ["", "Commits: " + ", ".join(f"{name} ({num})" for name, num in commits.items()) + "."]
    reasons = Counter(
        (each.kind, each.commit, why) for each in results for why in each.again if why != "killed"
    )
    lines += ["", "## Commands that no killed launch explains", ""]
    lines += [f"- {kind}, {name}, {num} x: {why}" for (kind, name, why), num in reasons.items()]
    lines += [] if reasons else ["None in the rounds that recorded reasons."]
    old = sum(_num_again(each) - _num_launches_hit(each) for each in results if not _has_reasons(each))
    lines += ["", f"The oldest rounds recorded no reasons. They had {old} such commands."]
    printed = [(each, line) for each in results for line in each.tracebacks]
    if printed:
        lines += ["", "## Logs with a traceback", ""]
        lines += [
            "With its last line each. `log.txt` is the log of a stage, which shows the stage's own error.",
            "",
        ]
        lines += [f"- {each.kind}, seed {each.seed}, {each.commit}: {line}" for each, line in printed]
    wrong = [each for each in results if not each.is_right]
    if wrong:
        lines += ["", "## Rounds that went wrong", ""]
        lines += [f"- {each.kind}, seed {each.seed}, {each.commit}: {_fault(each)}" for each in wrong]
    return HEAD + TABLE.lstrip() + "\n".join(lines) + "\n"


def _row(name: str, results: Sequence[Result], wanted: str) -> str:
    strikes = [strike for each in results for strike in each.strikes]
    more = sum(_num_again(each) for each in results)
    hit = sum(_num_launches_hit(each) for each in results)
    shares = [each.goodput for each in results if each.goodput is not None]
    columns = (
        name,
        str(len(results)),
        str(len(strikes)),
        wanted,
        str(sum(len(each.lost) for each in results)),
        str(sum(len(each.twice) for each in results)),
        str(sum(each.stuck for each in results)),
        _share(more, len(strikes)),
        _share(max(0, more - hit), len(strikes) - hit),
        f"{sum(shares) / len(shares):.0%}" if shares else "",
    )
    return "| " + " | ".join(columns) + " |"


def _share(num_commands: int, num_faults: int) -> str:
    return f"{max(0.0, 1 - num_commands / num_faults):.0%}" if num_faults > 0 else ""


def _has_reasons(result: Result) -> bool:
    return len(result.again) == _num_again(result)


def _num_again(result: Result) -> int:
    """Return how many commands were typed after the first, or after the first two of two launches."""
    return result.num_commands - (2 if result.kind.startswith("two launches") else 1)


def _num_launches_hit(result: Result) -> int:
    """Return how many commands followed a launch that was killed."""
    if _has_reasons(result):
        return result.again.count("killed")
    return min(_num_again(result), sum(strike.what == "launch" for strike in result.strikes))


def _recoveries(name: str, results: Iterable[Result]) -> str:
    found = [strike.recovery_s for each in results for strike in each.strikes]
    seconds = sorted(each for each in found if each is not None)
    if len(seconds) < 2:
        return ""
    parts = quantiles(seconds, n=100, method="inclusive")
    columns = [f"{each:.1f}" for each in (parts[49], parts[89], parts[98], seconds[-1])]
    return f"| {name} | {len(seconds)} | {' | '.join(columns)} |"


def _fault(result: Result) -> str:
    parts = [
        f"{len(result.lost)} rows differ" if result.lost else "",
        f"{', '.join(result.twice)} succeeded twice" if result.twice else "",
        f"not over after {result.seconds:.0f} s" if result.stuck else "",
    ]
    return "; ".join(part for part in parts if part)
