"""`sweep data translate`: launch the sweep that translates a task's rows, and write the data set it makes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.api.exporting import export_product, refuse_existing
from orchestrator.api.launching import CheckedLaunch, composed_or_sealed, run_settings_of
from orchestrator.cli.attached import follow
from orchestrator.cli.output import LongStep, print_lines, print_table, print_warnings
from orchestrator.compose.axes import grammar
from orchestrator.core.settings import split_store
from orchestrator.entry import outlive_the_reader
from orchestrator.errors import UserError, counted, escaped, home_expanded
from orchestrator.registry import DATA, load

TRANSLATED = {"api_calling": "translate_api_calling"}
"""Task to the sweep that translates its rows."""
DATASET, MANIFEST = "dataset.json", "translation.json"
"""Files by which a data set, and the yields beside it, are known."""
ENDPOINT = "endpoint"


def translate(args: argparse.Namespace, task: str, source: str, overrides: Sequence[str]) -> int:
    """Check, launch and follow the sweep, and write the data set when it is done.

    Args:
        args: options of the verb.
        task: of the rows.
        source: file or folder of English rows.
        overrides: of the sweep, such as ``launcher=slurm``.

    Raises:
        UserError: an option, the source, the endpoint or the destination is wrong; nothing was recorded.
    """
    out = home_expanded(args.out)
    refuse_existing(out, replaces=DATASET if args.force else None)
    outlive_the_reader()
    sweep = TRANSLATED[task]
    words = [*_overrides(args, source), *overrides]
    with LongStep("composing") as step:
        view, composition = composed_or_sealed(sweep, words, progress=step)
    view.check()
    cells = view.sweep.cells
    settings, import_paths = run_settings_of(view, composition, split_store(words)[1])
    config = cells[0].config
    notes: list[str] = []
    if config["engine"] == ENDPOINT:
        endpoint = config["endpoint"]
        notes = load(DATA["endpoint"])(endpoint["url_env"], endpoint["key_env"], config["model"]["name"])
    checked = CheckedLaunch(
        verb="launch",
        view=view,
        cells=cells,
        settings=settings,
        import_paths=import_paths,
        composition=composition,
        overrides=words,
        names_cells=False,
        prefetch=f"sweep prefetch {sweep}",
    )
    if not checked.limits and checked.launcher.takes_snapshot:
        # A launch from a snapshot replaces this process, which would then write no data set.
        raise UserError(
            "launcher.snapshot=true does not go with sweep data translate",
            fix=f"sweep launch {sweep} with it, then this command without it",
        )
    sealed = checked.seal(print)
    print(f"{sealed.title}: {escaped(sealed.sweep.description)}")
    print_lines([f"note: {note}" for note in notes], indent=2)
    print_warnings(sealed)
    code = follow(checked, sealed, wait=True, is_detached=False).code
    if code:
        print(f"  {out} was not written; the same command goes on, and requests no reply twice")
        return code
    export_product(sealed.fresh(), "assemble", out, rename=_place)
    _print(out, task)
    return 0


def _place(path: str) -> str:
    """Return the path in the data set's folder of a file of the product."""
    parts = PurePosixPath(path).parts
    return str(PurePosixPath(*parts[1:])) if parts[0] == "dataset" else path


def _overrides(args: argparse.Namespace, source: str) -> list[str]:
    """Return the options as overrides of the sweep."""
    languages = [code for word in args.to for code in word.split(",") if code]
    if not languages:
        raise UserError("no language to translate to", fix="--to es,ja")
    path = home_expanded(source)
    if not path.exists():
        raise UserError(f"no file or folder {source!r}", fix="sweep data describe api_calling")
    engine = args.engine or ENDPOINT
    given: dict[str, Any] = {
        "source.path": str(path.resolve()),
        "model.name": args.model if engine == ENDPOINT else args.model.rstrip("/").rpartition("/")[2],
        "engine": engine,
        "to": languages,
        "sizes.num_train": args.num_train,
        "sizes.num_validation": args.num_validation,
        "sizes.num_test": args.num_test,
        "sizes.seed": args.seed,
    }
    if engine != ENDPOINT:
        folder = home_expanded(args.model)
        given["model.path"] = str(folder.resolve()) if folder.is_dir() else args.model
        given["model.revision"] = args.revision
    if args.overlay is not None:
        given["overlay.path"] = str(home_expanded(args.overlay).resolve())
    words = [f"{key}={grammar(value)}" for key, value in given.items() if value is not None]
    return [*words, f"language={','.join(map(grammar, (*languages, 'all')))}"]


def _print(out: Path, task: str) -> None:
    """Print the yields by language and the next commands."""
    found: Mapping[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    total = found["num_rows"]
    rows = [
        (
            language,
            f"{reasons.get('accepted', 0):,}",
            ", ".join(f"{reason} {number}" for reason, number in reasons.items() if reason != "accepted")
            or "-",
            found["flagged"][language],
            len(found["corrected"][language]),
            f"{found['without'][language]:,}",
        )
        for language, reasons in found["yields"].items()
    ]
    print_table(("language", "accepted", "refused", "flagged", "corrected", "rows without it"), rows)
    for language, refused in found["refused_corrections"].items():
        for one in refused:
            print(f"  correction of {one['id']} in {language} refused: {one['why']}")
    if unknown := found["unknown_corrections"]:
        print(f"  {counted(len(unknown), 'correction')} of rows or languages that are not here")
    print(f"{out}: {found['num_in_data_set']:,} of {total:,} rows in every language; to review: {out}/review")
    print(f"  sweep data check {out}\n  data=parallel data.{task}_dir={out}")
