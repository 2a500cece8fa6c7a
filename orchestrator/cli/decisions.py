"""`sweep decisions`: which cells of a sweep go on, or which points follow; the evidence, and a replay."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from orchestrator.api.cell_outputs import DecisionFacts
from orchestrator.api.state import SweepState, open_view
from orchestrator.api.waiting import decision_line, next_decision
from orchestrator.cli.output import add_store, add_sweep, no_overrides, print_json, print_table
from orchestrator.core.decisions import SweepQuestion, answer, unfold, valued
from orchestrator.core.sealed import Decision, SeenCell
from orchestrator.core.search import trials_of
from orchestrator.core.tree import scalar_text
from orchestrator.errors import one_line
from orchestrator.registry import load
from orchestrator.results import number_text

_DIFFERENCE = "orchestrator.store.proposals:difference"


def configure_decisions(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="make each decision again from the products in the store; exit code 1 if anything differs",
    )
    add_store(parser)


def run_decisions(args: argparse.Namespace) -> int:
    """Print the decisions of a sweep, oldest first, and why the next one is still open."""
    view = open_view(args.sweep, no_overrides(args.words))
    facts, differences, num_incomparable = [], 0, 0
    decisions: tuple[Decision, ...] = view.decisions.unfolded.decisions if view.decisions else ()
    for place, decision in enumerate(decisions):
        question = unfold(view.whole, decisions[:place]).question
        assert question is not None  # it was read as the answer to one
        problems = list(_differences(view, question, decision)) if args.verify else []
        why = ""
        if args.verify and view.whole.search is not None:
            trials = trials_of(view.whole, view.whole.search, decisions[:place], decision.seen)
            # Loaded by name: only searches need it.
            text, is_comparable = load(_DIFFERENCE)(view.whole.search, trials, decision)
            problems += [text] if text and is_comparable else []
            why = "" if is_comparable else text
            num_incomparable += not is_comparable
        differences += len(problems)
        facts.append(_facts(question, decision, problems, why))
    if (left := next_decision(view)) is not None:
        facts.append(left)
    # What cannot be read was not verified.
    differences += bool(args.verify and view.decisions and view.decisions.damage)
    if args.json:
        print_json(facts)
        return 1 if differences else 0
    for each in facts:
        _print(each)
    if not facts:
        print(f"{view.title}: no decisions: the sweep has no phases, rungs or search")
    if args.verify:
        more = f", {num_incomparable} not comparable" if num_incomparable else ""
        print(f"\n{len(decisions)} made again, {differences} differences{more}")
    return 1 if differences else 0


def _facts(question: SweepQuestion, decision: Decision, problems: list[str], why: str) -> DecisionFacts:
    points = [" ".join(f"{n}={scalar_text(v)}" for n, v in point.items()) for point in decision.proposed]
    return {
        "number": decision.number,
        "title": question.title,
        "state": "made",
        "metric": question.select.metric,
        "mode": question.select.mode,
        "rule": question.rule,
        "chosen": points if question.is_search else decision.chosen,
        "sampler": decision.sampler,
        "seen": [
            {"cell": each.cell, "value": each.value, "why": each.why, "products": each.products}
            for each in decision.seen
        ],
        "why": why,
        "waits_for": (),
        "of": len(decision.seen),
        "since": "",
        "by": decision.by,
        "at": decision.at,
        "differences": problems,
    }


def _print(facts: DecisionFacts) -> None:
    if facts["state"] != "made":
        print(decision_line(facts))
        return
    what = f"{facts['number']}. {facts['title']}: {facts['mode']} {facts['metric']}"
    print(f"{what}: {', '.join(facts['chosen'])} ({facts['by']}, {facts['at']})")
    rows = [
        (
            each["cell"],
            "-" if each["value"] is None else number_text(each["value"]),
            one_line(each["why"], 90),
        )
        for each in facts["seen"]
    ]
    print_table(("cell", facts["metric"], "why it has no value"), rows)
    if facts["why"]:
        print(f"  {facts['why']}")
    for line in facts["differences"]:
        print(f"  differs: {line}")


def _differences(view: SweepState, question: SweepQuestion, decision: Decision) -> Iterator[str]:
    """Yield what of a decision does not follow from the seal and the products in the store."""
    if [each.cell for each in decision.seen] != [cell.id for cell in question.cells]:
        yield "it saw other cells than those that it was about"
        return
    for cell, seen in zip(question.cells, decision.seen, strict=True):
        found = _seen_again(view, question, seen, cell.stage_digests)
        if found is None:
            yield f"{cell.id}: a product that it saw is not there any more"
        # Of a cell that failed, only the products of the stages before are listed.
        elif set(seen.products) == set(cell.stage_digests) and found.value != seen.value:
            yield f"{cell.id}: {question.select.metric} is {found.value}, and was {seen.value}"
    if (chosen := answer(question, decision.seen)) != decision.chosen:
        yield f"{', '.join(chosen)} follows from what it saw, and not {', '.join(decision.chosen)}"


def _seen_again(
    view: SweepState, question: SweepQuestion, seen: SeenCell, chain: tuple[str, ...]
) -> SeenCell | None:
    """Return what is seen of a cell in the very products that a decision lists; None without one of them."""
    cell = next(cell for cell in question.cells if cell.id == seen.cell)
    rows, stages = [], {**view.whole.stages, **view.sweep.stages}
    for digest in (each for each in chain if each in seen.products):
        instance, generation = stages[digest], seen.products[digest]
        done, _ = view.ledger.product(instance, generation)
        if done is None or view.ledger.is_discarded(instance, generation):
            return None
        rows.append((instance, done.rows))
    return valued(question, cell, seen.products, rows)
