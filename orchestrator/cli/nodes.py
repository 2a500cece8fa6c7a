"""`sweep nodes`: the nodes on which work failed at once, with the evidence; and freeing one."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.api.state import open_view
from orchestrator.cli.output import existing_store, print_json, print_table
from orchestrator.core.nodes import NodeReport
from orchestrator.core.settings import Policy, split_store
from orchestrator.errors import UserError, counted, nearest, one_line
from orchestrator.jobs.nodes import NodeReports


def configure_nodes(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("sweep", nargs="?", help="only what was reported for it; default: for all sweeps")
    parser.add_argument("words", nargs="*", default=[], metavar="store.url=URL", help="the store")
    parser.add_argument("--clear", metavar="NODE", help="have a node be used again at once")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run_nodes(args: argparse.Namespace) -> int:
    """Print the nodes with their reports, or free one.

    Raises:
        UserError: nothing was reported about the node that is to be freed.
    """
    words = [word for word in (args.sweep, *args.words) if word is not None]
    url, names = split_store(words)
    if len(names) > 1:
        raise UserError(f"{names[1]!r}: one sweep at most", fix="sweep nodes [SWEEP] [store.url=URL]")
    ledger = existing_store([word for word in words if word not in names])
    policy, sweep = Policy(), ""
    if names:
        view = open_view(names[0], url)
        policy, sweep = view.policy, view.sweep.name
    nodes = NodeReports(ledger, policy.quarantine_s, is_reader=True)
    reports = nodes.read()
    if args.clear is not None:
        places = dict.fromkeys((report.cluster, report.node) for report in reports)
        found = [place for place in places if place[1] == args.clear]
        if not found:
            known = [node for _, node in places]
            raise UserError(f"nothing was reported about {args.clear!r}", allowed=nearest(args.clear, known))
        for place in found:
            nodes.clear(*place)
        print(f"{args.clear} is used again")
        return 0
    out = nodes.left_out() if reports else {}
    rows = _rows(reports, out, sweep)
    if args.json:
        print_json(rows)
        return 0
    print(f"{counted(len(out), 'node')} left out (policy.quarantine_s={policy.quarantine_s:g})")
    for row in rows:
        left = f"left out for {row['left_s'] / 60:.0f} more minutes" if row["left_s"] else "used"
        print(f"\n{row['node']} of {row['cluster']}: {left}")
        shown = [
            (
                each["kind"],
                each["cause"] or "-",
                each["attempt"] or "-",
                each["at"],
                one_line(each["why"], 90),
            )
            for each in row["reports"]
        ]
        print_table(("what", "cause", "attempt", "at", "why"), shown)
    return 0


def _rows(reports: list[NodeReport], out: Any, sweep: str) -> list[dict[str, Any]]:
    """Return each node with its reports, for scripts; those of one sweep, if it is named."""
    places: dict[tuple[str, str], list[NodeReport]] = {}
    for report in reports:
        if not sweep or report.sweep in (sweep, ""):
            places.setdefault((report.cluster, report.node), []).append(report)
    return [
        {
            "node": node,
            "cluster": cluster,
            "left_out": (cluster, node) in out,
            "left_s": round(out[cluster, node].left_s) if (cluster, node) in out else 0,
            "reports": [
                {
                    "kind": each.kind,
                    "cause": each.cause,
                    "sweep": each.sweep,
                    "attempt": each.attempt,
                    "why": each.why,
                    "by": each.by,
                    "at": each.at,
                }
                for each in found
            ],
        }
        for (cluster, node), found in places.items()
        if any(each.kind != "cleared" for each in found)
    ]
