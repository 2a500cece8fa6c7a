"""Whether the records of a bundle agree with each other, and whether there are only those of its sweep."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import msgspec

from orchestrator import formats
from orchestrator.api.state import SweepState
from orchestrator.bundles.content import CODE, PREDICTIONS, STORE, is_small, products
from orchestrator.bundles.description import BundleManifest
from orchestrator.core.evidence import remaining_files
from orchestrator.core.identity import check_digests
from orchestrator.core.records import CodeManifest, Done
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.manifest import File
from orchestrator.store import layout
from orchestrator.store.code import digest_of

_RECORD = r"(?:[0-9]+/(?:claim|start|heartbeat|end)|spec)\.json"


def record_faults(view: SweepState, manifest: BundleManifest) -> Iterator[str]:
    """Yield each contradiction between the records of a bundle, and each file that belongs to none.

    Args:
        view: the sweep, as its records imply it.
        manifest: of the bundle, whose files were compared with it.
    """
    files = {file.path: file for file in manifest.files}
    try:
        check_digests(view.sweep, view.title)
    except InfrastructureError as error:
        yield error.what
    for cell in view.sweep.cells:
        status = view.cells[cell.id]
        if status.state is not State.DONE and not manifest.partial:
            yield f"cell {cell.id} is {status.state}, and the bundle is not partial"
    if (left := view.open_decision) is not None and not manifest.partial:
        yield f"{left.title} is not decided, and the bundle is not partial"
    yield from view.warnings()
    known = {"store.json"}
    for instance, done in products(view):
        known |= {f"{layout.output(instance, done.attempt)}/{file.path}" for file in done.files}
        known.add(layout.metrics(instance, done.attempt))
        audit = f"{STORE}/{layout.payload(instance, done.attempt)}/{layout.AUDIT}/"
        own = {file.path: file.sha256 for file in done.files}
        for path in [path for path in files if path.startswith(audit)]:
            known.add(path.removeprefix(f"{STORE}/"))
            # What a checkpoint holds of the product, such as the weights of an epoch, is the product's.
            inner = path.removeprefix(audit).partition("/")[2]
            if files[path].sha256 != own.get(inner, files[path].sha256):
                yield f"{path} is not the file of the product"
        yield from _of_product(view, instance, done, files, manifest)
    yield from _strays(view, files, known)


def _of_product(
    view: SweepState,
    instance: StageInstance,
    done: Done,
    files: dict[str, File],
    manifest: BundleManifest,
) -> Iterator[str]:
    """Yield what is wrong with the records of one product, and with its files that are in the bundle."""
    name = f"{instance.name} {instance.digest[:8]}"
    attempt = view.ledger.attempt(instance, done.attempt)
    if attempt is None or attempt.claim is None or attempt.claim.generation != done.generation:
        yield f"{name}: no attempt claimed the product that is recorded"
    elif attempt.end is not None and attempt.end.outcome == "failed":
        yield f"{name}: the attempt that is recorded as done failed"
    spec = view.ledger.objects.get(layout.stage_spec(instance))
    if spec is not None and _tree(spec) != _tree(formats.encode(instance)):
        yield f"{name}: spec.json is not what was sealed"
    for taken in instance.inputs:
        made = view.reader.evidence(taken.digest).done
        if made is not None and done.inputs.get(taken.digest) != made.generation:
            yield f"{name}: it was made from another product of {taken.stage}"
    there = remaining_files(done.files, view.ledger.retired(instance, done.generation))
    for file in there:
        held = files.get(f"{STORE}/{layout.output(instance, done.attempt)}/{file.path}")
        if held is None:
            if is_small(file) or manifest.weights:
                yield f"{name}: {file.path} is not in the bundle"
        elif (held.size, held.sha256) != (file.size, file.sha256):
            yield f"{name}: {file.path} is not the file that is recorded"
    if instance.stage == "evaluate" and PREDICTIONS not in {file.path for file in there}:
        yield f"{name}: its predictions are not recorded"


def _tree(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None


def _strays(view: SweepState, files: Collection[str], known: Collection[str]) -> Iterator[str]:
    """Yield the files under ``store/`` that no sweep of this name has."""
    instances = dict(view.instances)
    for number in view.ledger.revision_numbers(view.sweep.name):
        instances |= view.ledger.revision(view.sweep.name, number).sweep.stages
    name = re.escape(view.sweep.name)
    own = re.compile(rf"sweeps/{name}/(?:[0-9]+|(?:requests|workers|submissions|decisions)/[\w./-]+)\.json")
    for path in files:
        key = path.removeprefix(f"{STORE}/")
        if key == path or key in known or own.fullmatch(key):
            continue
        parts = key.split("/")
        digest = parts[2].partition(".")[0] if parts[0] in ("done", "void", "records") and parts[2:] else ""
        digest = parts[-1].partition(".")[0] if parts[0] == "retired" else digest
        instance = instances.get(digest)
        is_own = instance is not None and instance.stage == parts[1]
        if is_own and parts[0] == "records":
            is_own = re.fullmatch(_RECORD, "/".join(parts[3:])) is not None
        if not is_own:
            yield f"{path} belongs to no record of {view.sweep.name}"


def code_faults(manifest: BundleManifest, record: bytes | None) -> Iterator[str]:
    """Yield what is wrong with the code snapshot of a bundle. Nothing of it is imported.

    Args:
        manifest: of the bundle.
        record: content of the snapshot's record; None if it is not there.
    """
    prefix = f"{CODE}/{manifest.code}"
    there = {f.path.removeprefix(f"{prefix}/"): f for f in manifest.files if f.path.startswith(f"{CODE}/")}
    there.pop(f"{prefix}.json", None)
    if not manifest.code:
        yield from (f"{path} belongs to no code snapshot" for path in there)
        return
    try:
        recorded = msgspec.json.decode(record or b"", type=CodeManifest).files
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield f"{prefix}.json is not there, or no record of code"
        return
    if digest_of(recorded) != manifest.code:
        yield f"{prefix}.json is of other code than its name"
    left_out = {each.what.removeprefix(f"{prefix}/") for each in manifest.left_out}
    for file in recorded:
        held = there.pop(file.path, None)
        if held is None:
            if file.kind != "folder" and file.path not in left_out:
                yield f"{prefix}/{file.path} is not in the bundle"
        elif held.sha256 != file.sha256:
            yield f"{prefix}/{file.path} is not the file that is recorded"
    yield from (f"{path} belongs to no code snapshot" for path in there)
