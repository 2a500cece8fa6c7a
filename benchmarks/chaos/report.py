"""The page of figures of the campaign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import quantiles

from chaos.faults import Strike
from chaos.rounds import Kind, Result

HEAD = """# Chaos campaign

Real sweeps struck by real faults at random. Each round starts in an empty store and must end with the rows
of a calm run. `make chaos` adds rounds to `benchmarks/chaos/results.jsonl` until each kind has had its number
of faults; this page is `python benchmarks/chaos_campaign.py --report docs/chaos.md`.

*lost*: cells without the row of the calm run. *twice*: stages that succeeded twice. *stuck*: rounds that did
not end. *by itself*: faults after which nobody had to type a command. *recovery*: from a fault that hit an
attempt to the claim of the next attempt, in seconds. *goodput*: share of the workers' time that ended in
products.

"""
TABLE = """
| round | rounds | faults | of | lost | twice | stuck | by itself | recovery: p50, p90, max | goodput |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
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
    killed = Counter(strike.what for each in results for strike in each.strikes)
    lines += ["", "What was hit: " + ", ".join(f"{num} x {what}" for what, num in killed.most_common()) + "."]
    commits = Counter(each.commit for each in results)
    lines += ["", "Commits: " + ", ".join(f"{name} ({num})" for name, num in commits.items()) + "."]
    wrong = [each for each in results if not each.is_right]
    if wrong:
        lines += ["", "Rounds that went wrong:", ""]
        lines += [f"- {each.kind}, seed {each.seed}, {each.commit}: {_fault(each)}" for each in wrong]
    return HEAD + TABLE.lstrip() + "\n".join(lines) + "\n"


def _row(name: str, results: Sequence[Result], wanted: str) -> str:
    strikes = [strike for each in results for strike in each.strikes]
    more = sum(each.num_commands - _usual(each) for each in results)
    shares = [each.goodput for each in results if each.goodput is not None]
    columns = (
        name,
        str(len(results)),
        str(len(strikes)),
        wanted,
        str(sum(len(each.lost) for each in results)),
        str(sum(len(each.twice) for each in results)),
        str(sum(each.stuck for each in results)),
        f"{max(0.0, 1 - more / len(strikes)):.0%}" if strikes else "",
        _recoveries(strikes),
        f"{sum(shares) / len(shares):.0%}" if shares else "",
    )
    return "| " + " | ".join(columns) + " |"


def _usual(result: Result) -> int:
    return 2 if result.kind.startswith("two launches") else 1


def _recoveries(strikes: Iterable[Strike]) -> str:
    seconds = sorted(each.recovery_s for each in strikes if each.recovery_s is not None)
    if len(seconds) < 2:
        return ", ".join(f"{each:.1f}" for each in seconds)
    tenths = quantiles(seconds, n=10, method="inclusive")
    return f"{tenths[4]:.1f}, {tenths[8]:.1f}, {seconds[-1]:.1f}"


def _fault(result: Result) -> str:
    parts = [
        f"{len(result.lost)} rows differ" if result.lost else "",
        f"{', '.join(result.twice)} succeeded twice" if result.twice else "",
        f"not over after {result.seconds:.0f} s" if result.stuck else "",
    ]
    return "; ".join(part for part in parts if part)
