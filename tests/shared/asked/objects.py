"""Names of objects that are not there, plugins that do not fit, and reports, as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import plugins, reporting
from orchestrator.errors import UserError
from tests.recording import Answers, answer


class Launching:
    """Has some of what a launcher has."""

    def hardware(self) -> None: ...

    def gpus(self) -> None: ...

    def start(self, launch: object) -> None: ...


class Complete(Launching):
    """Has all that a launcher has."""

    def __init__(self, settings: object, num_cells: int, cluster: object = None) -> None:
        if num_cells == 7:
            raise ValueError("seven")
        if num_cells == 8:
            raise UserError("eight")

    def poll(self) -> int:
        return 0

    def stop(self, *, kill: bool = False) -> None: ...

    def refusal(self) -> str:
        return ""


def found_objects() -> Answers:
    """Names of objects that are not there, and plugins that do not fit."""
    for target in (
        "orchestrator.count:main",
        "orchestrator.count:mian",
        "orchestrator.cuont:main",
        "orchestrator:x",
        "nowhere.at.all:x",
        "os.path:join",
        "os:no_such_name",
        "json.decoder:JSONDecoder",
        "json:nothing",
        "math:sin",
        "",
        "tests.recording:compere",
        "tests:x",
        "orchestrator.count.more:x",
    ):
        yield (
            f"unfound {target}",
            tuple(text.replace(str(Path.cwd()), "HERE") for text in plugins.unfound(target)),
        )
    things: dict[str, Any] = {
        "class": Complete,
        "some": Launching,
        "object": 3,
        "function": lambda a, b, c: None,
        "of one": lambda a: None,
        "none": lambda: None,
    }
    for group, (name, made) in itertools.product(
        ("launchers", "schedulers", "trackers", "tasks", "reports", "stages", "other"), things.items()
    ):
        found = answer(
            lambda g=group, m=made: plugins.fitting(
                g, m, what="the plugin 'x'", where="entry point", fix="pip uninstall x"
            )
        )
        yield f"fitting {group} {name}", found if isinstance(found, str) else callable(found)
    make = plugins.fitting("launchers", Complete, what="the plugin 'x'", where="here", fix="fix it")
    for number in (1, 7, 8):
        yield f"made {number}", answer(lambda n=number: type(make({}, n, None)).__name__)
    yield "points", (sorted(plugins.points("no such group")), plugins.points("launchers", "nothing"))
    calls: list[object] = []

    def report(rows: Any, folder: Any, about: Any = None) -> list[Any]:
        calls.append((rows, folder, about))
        return []

    offers = {"about": lambda: "facts", "curves": lambda: 1 / 0}
    yield (
        "report",
        (
            reporting.call(report, [], None, offers),
            calls,
            reporting.wants_facts(report),
            reporting.wants_facts(print),
            reporting.wants_facts(dict),
        ),
    )  # type: ignore[arg-type]


ASKED: dict[str, Callable[[], Answers]] = {"found_objects": found_objects}
