"""Identity: canonical JSON, the digests of stage instances, and the readable ids of cells. Pure.

A digest must be the same on every machine and after every restart. Values without a stable identity (NaN,
objects, absolute paths) are refused here, with the name of their key.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from orchestrator.core.sweep import ComposedSweep, Input, StageInstance
from orchestrator.core.tree import MISSING, dotted_keys, pick, place, without_key
from orchestrator.errors import InfrastructureError, UserError, is_utf8, nearest
from orchestrator.registry import FORMER, STAGES, load
from orchestrator.spec import StageSpec

ALL = "*"
"""In `reads`: the whole config."""

SEALED = "hydra.sealed"
"""Key of a cell's config with what a Hydra app's task gets: long, and of no use to people."""

_NUM_ID_DIGITS = 8
_MAX_NAME_BYTES = 160
"""Maximum length of the readable part of an id, in bytes.

Ids become file names. File systems commonly allow 255 bytes, which must also hold a digest and a suffix.
"""

_PATH = re.compile(r"(?:/[^/\s]+(?:/[^\n]*)?|~/[^\n]*|file://[^\n]*)\Z")
# A cheap test of the encoded text: some string in it begins like a path.
_MAYBE_PATH = re.compile(r'"(?:/|~/|file://)')
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def canonical(value: Any, *, where: str = "") -> str:
    """Return the one canonical JSON text of a value: sorted keys, no whitespace, NFC text, floats by `repr`.

    Args:
        value: a plain tree. ``1`` and ``1.0`` differ; tuples count as lists.
        where: what the tree belongs to, for the message.

    Raises:
        UserError: the value contains NaN, infinity, an object or an absolute path; the message names the key.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError):
        _normal(value, "", where)  # raises an error that names the key
        raise
    # Walking a tree in Python is slow. The encoder runs in C, so only a suspicious text is walked.
    if not text.isascii() and not (is_utf8(text) and unicodedata.is_normalized("NFC", text)):
        return _encode(_normal(value, "", where))
    if _MAYBE_PATH.search(text):
        _normal(value, "", where)
    return text


def digest_of(value: Any, *, where: str = "") -> str:
    """Return the SHA-256 of the canonical JSON, in hexadecimal.

    Args:
        value: a plain tree.
        where: what the tree belongs to, for the message.

    Raises:
        UserError: the value has no stable identity.
    """
    return hashlib.sha256(canonical(value, where=where).encode()).hexdigest()


def stage_digest(
    target: str, version: int, reads: Mapping[str, Any], inputs: Sequence[Input], *, where: str = ""
) -> str:
    """Return the identity of a stage instance. It needs no results, so it exists before anything runs.

    Since the digests of the inputs are included, a change early in a chain changes every later digest.

    Args:
        target: ``module:function``, the command template, or ``polysweep:NAME`` for a built-in stage.
        version: the stage's own version number.
        reads: the slice of config that the stage reads, without neutral keys.
        inputs: the products that it takes, in order.
        where: what to name in an error.

    Raises:
        UserError: a value has no stable identity.
    """
    what = {
        "target": target,
        "version": version,
        "reads": reads,
        "inputs": [(item.stage, item.label, item.digest) for item in inputs],
    }
    return digest_of(what, where=where)


def cell_ids(names: Sequence[str], chains: Sequence[Sequence[str]]) -> list[str]:
    """Return a unique id for each cell: its name and the first digits of the digest of its chain.

    Ids start with 8 digits. Only cells whose ids collide get more digits, so that the other ids stay short.

    Args:
        names: the joined labels of each cell's axes.
        chains: the digests of each cell's stages; no two chains are equal.
    """
    digests = [digest_of(list(chain)) for chain in chains]
    stems = [_stem(name) for name in names]
    ids = [f"{stem}-{digest[:_NUM_ID_DIGITS]}" for stem, digest in zip(stems, digests, strict=True)]
    num_digits = _NUM_ID_DIGITS
    while num_digits < len(digests[0] if digests else ""):
        seen = Counter(ids)
        if len(seen) == len(ids):
            break
        num_digits *= 2
        ids = [
            f"{stem}-{digest[:num_digits]}" if seen[old] > 1 else old
            for old, stem, digest in zip(ids, stems, digests, strict=True)
        ]
    return ids


def _stem(name: str) -> str:
    kept = "".join(char if _is_kept(char) else "-" for char in unicodedata.normalize("NFC", name))
    stem = kept.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(".")
    # A leading "-" would look like an option on a command line, and "+" or "=" like an override.
    return stem if stem and stem[0] not in "-+=" else f"cell{stem}"


def _is_kept(char: str) -> bool:
    # Marks (M) include the vowel signs of scripts such as Bengali and Telugu; without them, words differ.
    return char.isalnum() or char in "_+=.-" or unicodedata.category(char).startswith("M")


def _normal(value: Any, key: str, where: str) -> Any:
    """Return the tree with NFC text. Raise `UserError` for a value without a stable identity."""
    match value:
        case str():
            if _PATH.match(value):
                what = "the command" if key == "target" else key or "a value"
                fix = f"move {key or 'it'} from `reads` to `uses` and read a fingerprint of it instead"
                raise UserError(
                    f"{what} is the absolute path {value!r}, which would be hashed",
                    where=where,
                    allowed="a path says where, not what: it may change while the content stays",
                    fix="begin it with a name in the PATH, such as python" if key == "target" else fix,
                )
            if is_utf8(value):
                # Unicode has several spellings of one text: "é" may be one code point or two.
                return unicodedata.normalize("NFC", value)
        case bool() | int() | None:
            return value
        case float():
            if math.isfinite(value):
                return value
        case Mapping() if all(isinstance(name, str) for name in value):
            items = ((name, _normal(item, _joined(key, name), where)) for name, item in value.items())
            found = {unicodedata.normalize("NFC", name): item for name, item in items}
            if len(found) == len(value) and all(map(is_utf8, found)):
                return found
        case list() | tuple():
            return [_normal(item, f"{key}[{index}]", where) for index, item in enumerate(value)]
    raise UserError(
        f"{key or 'a value'} is {value!r}, which has no stable identity",
        where=where,
        allowed="text, whole and finite numbers, true, false, null, lists and mappings of them",
    )


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def slice_of(
    config: Mapping[str, Any],
    keys: Collection[str],
    *,
    carve: Iterable[str] = (),
    what: str = "the stage reads",
) -> dict[str, Any]:
    """Return the part of a config that some dotted keys name.

    Args:
        config: the resolved tree.
        keys: dotted keys of values or sections; `ALL` for the whole config.
        carve: keys to leave out although a section of `keys` contains them.
        what: the beginning of an error message.

    Raises:
        UserError: the config lacks one of `keys`.
    """
    part: dict[str, Any] = dict(config) if ALL in keys else {}
    for key in sorted(sorted(set(keys) - {ALL}), key=len):  # shorter keys first: a section, then its values
        value = pick(config, key)
        if value is MISSING:
            raise UserError(f"{what} the unknown key {key!r}", allowed=nearest(key, dotted_keys(config)))
        if pick(part, key) is MISSING:
            place(part, key, value)
    for key in carve:
        if pick(part, key) is not MISSING:
            part = without_key(part, key)
    return part


def reads_of(spec: StageSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slice of the config that a stage reads.

    A stage may read a section and use a key inside it (reads ``training``, uses ``training.devices``). The
    more specific key wins: it is removed from the slice, and so from the digest.

    Raises:
        UserError: the config lacks one of the keys.
    """
    carve = [
        key for key in spec.uses if any(read == ALL or key.startswith(f"{read}.") for read in spec.reads)
    ]
    # The `each` variables are no config keys: their values come from the lists that `each` names.
    keys = [key for key in spec.reads if key not in spec.each]
    return slice_of(config, keys, carve=carve)


def former_instance(former: StageSpec, instance: StageInstance) -> StageInstance | None:
    """Return the instance that a stage was under an earlier version of its spec, with the same inputs.

    Its digest leads to the product of the earlier version, which today's version may start from.

    Args:
        former: the earlier spec. Only keys that today's stage reads too can be resolved.
        instance: today's stage instance.

    Returns:
        The earlier instance, or None if the earlier version read a key that today's stage does not read.
    """
    try:
        reads = reads_of(former, instance.reads)
    except UserError:
        return None
    given = {name: instance.reads[name] for name in former.each if name in instance.reads}
    digest = stage_digest(
        target_of(former), former.version, {**hashed_of(former, reads), **given}, instance.inputs
    )
    return StageInstance(
        stage=instance.stage,
        label=instance.label,
        digest=digest,
        reads={**reads, **given},
        inputs=instance.inputs,
    )


def hashed_of(spec: StageSpec, reads: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a stage's slice that enters its digest: all but keys at their neutral value.

    A new config field whose neutral value is the old behaviour therefore changes no existing digest.
    """
    for key, neutral in spec.neutral.items():
        value = pick(reads, key)
        # Compare canonical text, because in Python 1 == 1.0 == True.
        if value is not MISSING and canonical([value]) == canonical([neutral]):
            reads = without_key(reads, key)
    return reads


def uses_of(spec: StageSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slice of the config that a stage uses: passed to the stage, but never part of its identity.

    Raises:
        UserError: the config lacks one of the keys.
    """
    return slice_of(config, spec.uses, what="the stage uses")


def check_digests(sweep: ComposedSweep, title: str) -> None:
    """Refuse a sealed sweep in which a stage's digest is not the digest of what the stage would run.

    Products are found by digest. With a forged digest, a stage could pass its product off as another stage's.

    Args:
        sweep: the sealed sweep.
        title: the name of the revision, for the message.

    Raises:
        InfrastructureError: there is such a stage.
    """
    if problem := _misnamed(sweep):
        raise InfrastructureError(f"{title} cannot be trusted: {problem}")


def _misnamed(sweep: ComposedSweep) -> str:
    for digest, instance in sweep.stages.items():
        spec = sweep.specs.get(instance.stage)
        if spec is None:
            return f"there is no stage {instance.stage!r}"
        reads = {key: value for key, value in instance.reads.items() if key not in spec.each}
        given = {key: value for key, value in instance.reads.items() if key in spec.each}
        hashed = hashed_of(spec, reads)
        try:
            found = stage_digest(target_of(spec), spec.version, {**hashed, **given}, instance.inputs)
        except UserError as error:
            return f"{instance.name}: {error.what}"
        if not digest == instance.digest == found:
            return f"{instance.name} is not what its digest {digest[:12]} names"
    return ""


def target_of(spec: StageSpec) -> str:
    """Return what a stage runs, as its digest covers it."""
    if spec.name:
        return f"polysweep:{spec.name}"
    # A shell interprets the command, so the same text is other work; the mark makes the digest another.
    return spec.run or f"{'shell: ' if spec.shell else ''}{spec.command}"


def formers(spec: StageSpec, instance: StageInstance) -> list[StageInstance]:
    """Return the stage instance under its earlier versions, the latest first.

    Raising a stage's version changes its digest, so all of its products would be made again. A stage of this
    package may be able to use the product of an earlier version. For example, `evaluate` scores predictions
    again that were generated before.

    A stage whose version the sweep file sets has none: its user wants every product to be made again.
    """
    if spec.name is None or spec.name not in FORMER or spec.version != load(STAGES[spec.name]).version:
        return []
    # The earlier digest follows from the earlier spec and today's inputs, so nothing needs to be searched.
    found = (former_instance(former, instance) for former in load(FORMER[spec.name][0]))
    return [former for former in found if former is not None]


def use_of(spec: StageSpec) -> str:
    """Return, for people, how a stage that has `formers` uses an earlier product."""
    return FORMER[spec.name or ""][1]
