"""Verify a bundle from a stranger: its bytes, its records, and all that follows from them.

Nothing is executed, imported or unpickled from it, no network is used, and nothing is written outside of a
temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.bundles.content import CODE, STORE, is_text
from orchestrator.bundles.description import CRATE, MANIFEST, SIGNATURE, BundleManifest, crate_of
from orchestrator.bundles.recomputing import CLAIMS, Claims, Recomputed, TableClaim, recompute, state_of
from orchestrator.bundles.records import code_faults, record_faults
from orchestrator.bundles.zipped import Damaged, Zip
from orchestrator.core.sweep import is_name
from orchestrator.errors import SweepError, escaped, one_line, words_of

MAX_SHOWN = 20
"""Most faults of one kind that are listed; the rest are counted."""
MAX_JSON_BYTES = 200_000_000
"""Largest manifest or file of claims that is read."""


class VerifyOptions(NamedTuple):
    """What the reader of a bundle wants.

    Attributes:
        key: a public key by which the bundle must be signed, as PEM.
        certificates: certificates one of which must have issued that of the signature, as PEM.
        replay: number of training segments to compute again, by the code in the bundle.
    """

    key: Path | None = None
    certificates: Path | None = None
    replay: int = 0


class Verification(msgspec.Struct, kw_only=True):
    """The result of checking a bundle, as in the output of ``sweep verify --json``.

    Attributes:
        file: the zip.
        ok: whether all holds.
        faults: what does not hold, as lines.
        unchecked: what could not be checked here, as lines.
        sweep, revision, root: what the bundle says it is; "" and 0 for what is none.
        num_files, num_bytes: its files, and the size of the zip in bytes.
        num_rows, num_predicted: result rows, and those that were computed again from predictions.
        num_claims: numbers in tables that were computed again.
        replayed: segments of trainings that were computed again with the same bits, as lines.
        signature: ``none``, ``not checked`` without a key of the reader's, ``valid`` or ``invalid``.
    """

    file: str
    ok: bool = False
    faults: list[str] = []
    unchecked: list[str] = []
    sweep: str = ""
    revision: int = 0
    root: str = ""
    num_files: int = 0
    num_bytes: int = 0
    num_rows: int = 0
    num_predicted: int = 0
    num_claims: int = 0
    replayed: list[str] = []
    signature: str = "none"


def verify_bundle(path: Path, options: VerifyOptions) -> Verification:
    """Return what holds of a bundle and what does not.

    Args:
        path: the zip.
        options: what the reader wants.

    Raises:
        UserError: a key of the reader's is none.
        OSError: it cannot be read.
    """
    found = Verification(file=str(path), num_bytes=path.stat().st_size)
    with path.open("rb") as stream:
        try:
            opened = Zip(stream)
            found.num_files = len(opened.members)
            manifest = _manifest(opened)
            found.sweep, found.revision, found.root = manifest.sweep, manifest.revision, manifest.root
            found.faults += _shortened(_file_faults(opened, manifest))
            # What was changed is not worth reading: its records would only repeat the fault.
            if not found.faults:
                _verify_signature(opened, manifest, options, found)
                _verify_content(opened, manifest, options, found)
        except Damaged as damaged:
            found.faults.append(str(damaged))
    found.faults = [one_line(fault, 400) for fault in found.faults]
    found.ok = not found.faults
    return found


def _manifest(opened: Zip) -> BundleManifest:
    """Return the manifest of a bundle.

    Raises:
        Damaged: there is none, or it is not as this version writes it.
    """
    member = opened.members.get(MANIFEST)
    if member is None or member.size > MAX_JSON_BYTES:
        raise Damaged(f"there is no {MANIFEST}, or it is too large")
    data = opened.read(MANIFEST)
    try:
        manifest = msgspec.json.decode(data, type=BundleManifest)
        written = manifest.encoded()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is none: {escaped(str(error))}") from None
    if manifest.format != 1:
        raise Damaged(f"{MANIFEST} is of format {manifest.format}, and this version reads 1")
    if written != data:
        raise Damaged(f"{MANIFEST} is not written as a manifest is")
    if not is_name(manifest.sweep) or manifest.revision < 1:
        raise Damaged(f"{MANIFEST} names no revision of a sweep")
    return manifest


def _file_faults(opened: Zip, manifest: BundleManifest) -> Iterator[str]:
    """Yield each difference between the files and the manifest, and a root that is not the manifest's."""
    if manifest.closed().root != manifest.root:
        yield f"{MANIFEST} has another root digest than its content"
    listed = {file.path: file for file in manifest.files}
    if [file.path for file in manifest.files] != sorted(listed):
        yield f"{MANIFEST} lists a file twice, or not in the order of names"
    for name, member in opened.members.items():
        if name in (MANIFEST, SIGNATURE):
            continue
        file = listed.pop(name, None)
        if file is None:
            yield f"{name} is no file of the bundle"
        elif file.size != member.size:
            yield f"{name} has {member.size:,} bytes instead of {file.size:,}"
        else:
            try:
                if opened.digest(name) != file.sha256:
                    yield f"{name} has other content than the manifest"
            except Damaged as damaged:
                yield str(damaged)
    yield from (f"{name} is missing" for name in listed)
    for name in (MANIFEST, SIGNATURE):
        if name in opened.members:
            opened.digest(name)


def _verify_signature(
    opened: Zip, manifest: BundleManifest, options: VerifyOptions, found: Verification
) -> None:
    """Compare the signature of a bundle with its files, if the reader has a key."""
    is_wanted = options.key is not None or options.certificates is not None
    if SIGNATURE not in opened.members:
        if is_wanted:
            found.faults.append("the bundle has no signature")
        return
    if not is_wanted:
        found.signature = "not checked"
        found.unchecked.append("the signature: --key or --certificate names whom you trust")
        return
    from orchestrator.bundles.signing import Forged, Trust, verify_signature  # needs an extra

    digests = {file.path: file.sha256 for file in manifest.files}
    digests[MANIFEST] = opened.digest(MANIFEST)
    try:
        if opened.members[SIGNATURE].size > MAX_JSON_BYTES:
            raise Forged("the signature is too large")
        verify_signature(opened.read(SIGNATURE), digests, Trust(options.key, options.certificates))
        found.signature = "valid"
    except Forged as forged:
        found.signature = "invalid"
        found.faults.append(str(forged))


def _verify_content(
    opened: Zip, manifest: BundleManifest, options: VerifyOptions, found: Verification
) -> None:
    """Compare the records of a bundle with each other, and its other files with what follows from them."""
    code = f"{CODE}/{manifest.code}.json"
    record = opened.read(code) if code in opened.members else None
    found.faults += _shortened(code_faults(manifest, record))
    with tempfile.TemporaryDirectory() as place:
        texts = [n for n in opened.members if n.startswith(f"{STORE}/") and is_text(n)]
        opened.extract(texts, Path(place))
        try:
            view = state_of(Path(place, STORE), manifest.sweep, manifest.revision)
            found.faults += _shortened(record_faults(view, manifest))
            again = recompute(view)
            described = [file for file in manifest.files if file.path != CRATE]
            again.files[CRATE] = crate_of(view, described)
        except Exception as error:  # noqa: BLE001 - whatever its records do to a reader is their fault
            what = (
                error.what if isinstance(error, SweepError) else f"{type(error).__name__}: {words_of(error)}"
            )
            found.faults.append(f"the records of the bundle cannot be read: {escaped(what)}")
            return
        if options.replay and not found.faults:
            from orchestrator.bundles.replaying import replay_segments  # runs code of the bundle

            replayed = replay_segments(opened, manifest, view, options.replay)
            found.replayed += replayed.same
            found.faults += replayed.faults
            found.unchecked += replayed.unchecked
    found.faults += _shortened(iter(again.faults))
    found.unchecked += again.unchecked
    found.num_rows, found.num_predicted = again.num_rows, again.num_predicted
    found.num_claims = again.num_claims
    found.faults += _differences(opened, again)


def _differences(opened: Zip, again: Recomputed) -> Iterator[str]:
    """Yield each difference between files of a bundle and what follows from its records."""
    for name in opened.members:
        is_record = name.startswith((f"{STORE}/", f"{CODE}/"))
        if not is_record and name not in (MANIFEST, SIGNATURE) and name not in again.files:
            yield f"{name} does not follow from the records"
    for name, data in again.files.items():
        if name not in opened.members:
            yield f"{name} is missing"
        elif opened.members[name].size > MAX_JSON_BYTES:
            yield f"{name} is too large"
        elif (held := opened.read(name)) != data:
            yield from _shortened(_COMPARED.get(name, _in_lines)(name, held, data))


def _in_lines(name: str, held: bytes, made: bytes) -> Iterator[str]:
    """Yield the lines of a text that are not those which follow from the records."""
    ours, theirs = (data.decode(errors="replace").split("\n") for data in (made, held))
    both = enumerate(zip_longest(theirs, ours, fillvalue=""), start=1)
    pairs = [(number, there, here) for number, (there, here) in both if there != here]
    if len(theirs) != len(ours):
        pairs = pairs[:1]  # after a line too many, all others differ too
    for number, there, here in pairs:
        yield f"{name}, line {number}: {_apart(there, here)}"
    if not pairs:
        yield f"{name} is not the text that follows from the records"


def _apart(there: str, here: str) -> str:
    """Return where two lines differ: what stands in the bundle, and what follows from the records."""
    start = next((n for n, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
    start = max(0, start - 30)
    return f"{there[start : start + 80]!r} in the bundle, and the records give {here[start : start + 80]!r}"


def _in_claims(name: str, held: bytes, made: bytes) -> Iterator[str]:
    """Yield the claims that do not follow from the records."""
    try:
        theirs = {_place(claim): claim for claim in msgspec.json.decode(held, type=Claims).claims}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        yield f"{name} holds no claims"
        return
    ours = {_place(claim): claim for claim in msgspec.json.decode(made, type=Claims).claims}
    named = False
    for place in {**ours, **theirs}:
        there, here = theirs.get(place), ours.get(place)
        if there == here:
            continue
        named = True
        shown = ", ".join(place)
        if there is None or here is None:
            yield f"{name}: {shown}: {'it is missing' if there is None else 'no table has it'}"
            continue
        for field in TableClaim.__struct_fields__:
            claimed, follows = getattr(there, field), getattr(here, field)
            if claimed != follows:
                yield f"{name}: {shown}: {field} is {claimed!r}, and the records give {follows!r}"
    if not named:
        yield from _in_lines(name, held, made)


def _place(claim: TableClaim) -> tuple[str, str, str]:
    return claim.table, claim.row, claim.column


_COMPARED: Mapping[str, Callable[[str, bytes, bytes], Iterator[str]]] = {CLAIMS: _in_claims}


def _shortened(faults: Iterator[str]) -> Iterator[str]:
    """Yield the first faults of a kind, and then how many more there are."""
    more = 0
    for number, fault in enumerate(faults):
        if number < MAX_SHOWN:
            yield fault
        else:
            more += 1
    if more:
        yield f"and {more:,} more of this kind"
