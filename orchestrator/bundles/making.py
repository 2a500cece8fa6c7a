"""Make a bundle: its files, what follows from them, and the zip."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

import orchestrator
from orchestrator.api.state import SweepState
from orchestrator.bundles.content import STORE, Content, content_of
from orchestrator.bundles.description import CRATE, MANIFEST, SIGNATURE, BundleManifest, crate_of
from orchestrator.bundles.recomputing import Recomputed, recompute, state_of
from orchestrator.bundles.zipped import write_zip
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.manifest import File, file_digest
from orchestrator.registry import require
from orchestrator.store.opening import as_usual


class BundleOptions(NamedTuple):
    """What the user wants in a bundle.

    Attributes:
        weights: all files of products that are still there.
        replayable: what the segments need that can be computed again.
        partial: a sweep that is not finished is no error.
        key: private key that signs the bundle, as PEM; None for no signature.
        certificates: of the key, and those that issued it, as PEM; None for a bare key.
    """

    weights: bool = False
    replayable: bool = False
    partial: bool = False
    key: Path | None = None
    certificates: Path | None = None


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was made, as ``sweep bundle --json`` prints it.

    Attributes:
        file: the zip.
        sweep, revision: what it holds.
        root: root digest of its manifest.
        num_files, num_bytes: its files, and the size of the zip in bytes.
        num_rows, num_predicted: result rows, and those that follow from kept predictions.
        num_claims: numbers in tables.
        num_segments: training segments that can be computed again.
        is_signed: whether a signature is in it.
        left_out: what a reader may miss, as lines.
        unchecked: what a reader cannot compute again, as lines.
    """

    file: str
    sweep: str
    revision: int
    root: str
    num_files: int
    num_bytes: int
    num_rows: int
    num_predicted: int
    num_claims: int
    num_segments: int = 0
    is_signed: bool = False
    left_out: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def check_bundle(view: SweepState, out: Path, options: BundleOptions) -> None:
    """Raise unless a sweep can be bundled into a file.

    Raises:
        UserError: the sweep was never launched or is not finished, or the file exists or has no folder.
    """
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    if out.suffix != ".zip":
        raise UserError(f"--out {out} is no name of a zip", fix=f"--out {out}.zip")
    is_taken = os.path.lexists(out)  # also a link that leads nowhere
    if is_taken or not out.absolute().parent.is_dir():
        what = "there is a file already" if is_taken else f"no folder {out.absolute().parent}"
        raise UserError(what, where=f"--out {out}")
    if options.key is not None:
        require("sign", what="--sign")
        from orchestrator.bundles.signing import check_signer

        check_signer(options.key, options.certificates)
    view.check_decisions()
    states = Counter(str(view.cells[cell.id].state) for cell in view.sweep.cells)
    if set(states) != {str(State.DONE)} and not options.partial:
        counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        raise UserError(
            f"{view.title} is not finished: {counts}",
            allowed="a bundle of cells that are all done",
            fix=f"sweep launch {view.sweep.name}, or --partial",
        )
    if (left := view.open_decision) is not None and not options.partial:
        raise UserError(
            f"{view.title} is not finished: {left.title} is not decided: {left.reason}",
            fix=f"sweep launch {view.sweep.name}, or --partial",
        )


def make_bundle(view: SweepState, out: Path, options: BundleOptions) -> BundleFacts:
    """Write a bundle of a sweep.

    Args:
        view: the revision, which `check_bundle` found fit.
        out: the zip, which must not exist.
        options: what to put into it.

    Raises:
        UserError: a record holds a credential.
        InfrastructureError: the records contradict each other, so no honest reader would accept the bundle.
    """
    held = content_of(view, weights=options.weights, replayable=options.replayable)
    found, crate = _follows(view, held.content)
    if found.faults:
        raise InfrastructureError(
            f"the records of {view.title} contradict each other: {found.faults[0]}",
            allowed=f"{len(found.faults)} such lines; a bundle with them verifies nowhere",
        )
    content: Content = {**held.content, **found.files, CRATE: crate}
    manifest = BundleManifest(
        sweep=view.sweep.name,
        revision=view.number,
        made_by=f"polysweep {orchestrator.__version__}",
        partial=options.partial,
        weights=options.weights,
        segments=held.num_segments,
        code=held.code,
        left_out=tuple(sorted(held.left_out, key=lambda each: each.what)),
        files=tuple(_file(name, content[name]) for name in sorted(content)),
    ).closed()
    content[MANIFEST] = manifest.encoded()
    if options.key is not None:
        content[SIGNATURE] = _signature(content, manifest, options.key, options.certificates)
    _write(out, content)
    return BundleFacts(
        file=str(out),
        sweep=manifest.sweep,
        revision=manifest.revision,
        root=manifest.root,
        num_files=len(content),
        num_bytes=out.stat().st_size,
        num_rows=found.num_rows,
        num_predicted=found.num_predicted,
        num_claims=found.num_claims,
        num_segments=held.num_segments,
        is_signed=SIGNATURE in content,
        left_out=tuple(f"{each.what}: {each.why}" for each in manifest.left_out),
        unchecked=tuple(found.unchecked),
    )


def _signature(content: Content, manifest: BundleManifest, key: Path, certificates: Path | None) -> bytes:
    from orchestrator.bundles.signing import sign  # needs an extra

    digests = {file.path: file.sha256 for file in manifest.files}
    digests[MANIFEST] = _file(MANIFEST, content[MANIFEST]).sha256
    return sign(digests, f"{manifest.sweep}@{manifest.revision}", key, certificates)


def _follows(view: SweepState, content: Content) -> tuple[Recomputed, bytes]:
    """Return what follows from the files of a bundle as a stranger reads them, and their description."""
    with tempfile.TemporaryDirectory() as place:
        for name, held in content.items():
            if name.startswith(f"{STORE}/"):
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(held, bytes):
                    path.write_bytes(held)
                elif not _is_linked(held, path):
                    shutil.copyfile(held, path)
        read = state_of(Path(place, STORE), view.sweep.name, view.number)
        if read.sweep.cells != view.sweep.cells:
            raise InfrastructureError(
                f"other cells follow from the records of {view.title} than the sweep has",
                allowed="records that no launch or worker changes meanwhile",
                fix="run it again when nothing runs",
            )
        found = recompute(read)
        described = {**content, **found.files}
        return found, crate_of(read, [_file(name, described[name]) for name in sorted(described)])


def _is_linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _file(name: str, held: Path | bytes) -> File:
    if isinstance(held, bytes):
        return File(name, len(held), hashlib.sha256(held).hexdigest())
    return File(name, held.stat().st_size, file_digest(held))


def _write(out: Path, content: Content) -> None:
    """Write the zip under another name first, so that a bundle that is there is whole.

    Raises:
        UserError: a file of this name has appeared meanwhile; it stays as it is.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with as_usual():
            write_zip(part, content)
        if not _is_linked(part, out):  # linking replaces nothing, but not every file system links
            out.open("xb").close()
            part.replace(out)
    except FileExistsError:
        raise UserError("there is a file already", where=f"--out {out}") from None
    finally:
        part.unlink(missing_ok=True)
