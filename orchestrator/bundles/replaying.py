"""Compute segments of trainings again, by the code of a bundle: the only part that runs anything of it.

Bits repeat only on the same kind of machine with the same packages. Elsewhere a segment is not comparable,
which is no fault.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator import provenance
from orchestrator.api.state import SweepState
from orchestrator.bundles.content import CODE, STORE, products, segment_facts
from orchestrator.bundles.description import BundleManifest
from orchestrator.bundles.zipped import Zip
from orchestrator.core.records import Done
from orchestrator.core.sweep import StageInstance
from orchestrator.execution.audit import machine
from orchestrator.registry import REPLAYED
from orchestrator.store import layout
from orchestrator.store.code import python_path

LIMIT_S = 1800.0
"""Longest time that a segment may take, in seconds."""


class KeptSegment(NamedTuple):
    """A segment whose two checkpoints are in a bundle.

    Attributes:
        instance: the stage instance.
        done: the record of its product.
        steps: the steps after which the checkpoints were saved.
        facts: on what it ran: device, CPU, threads.
    """

    instance: StageInstance
    done: Done
    steps: tuple[int, int]
    facts: dict[str, Any]

    @property
    def folder(self) -> str:
        """Key of the kept checkpoints."""
        return f"{layout.payload(self.instance, self.done.attempt)}/{layout.AUDIT}"


class Replayed(NamedTuple):
    """The results of segments: those with the same bits, those with others, and those not compared."""

    same: list[str]
    faults: list[str]
    unchecked: list[str]


def segments_in(view: SweepState, names: set[str]) -> Iterator[KeptSegment]:
    """Yield the segments of a sweep whose checkpoints are in a bundle, or in a store.

    Args:
        view: the sweep.
        names: files, as keys of the store.
    """
    for instance, done in products(view):
        prefix = f"{layout.payload(instance, done.attempt)}/{layout.AUDIT}"
        data = view.ledger.objects.get(f"{prefix}/{layout.SEGMENTS}") if instance.stage in REPLAYED else None
        if data is None or (facts := segment_facts(data)) is None:
            continue
        for first, last in facts["segments"]:
            if all(f"{prefix}/{step:08d}/manifest.json" in names for step in (first, last)):
                yield KeptSegment(instance, done, (first, last), facts)


def replay_segments(opened: Zip, manifest: BundleManifest, view: SweepState, number: int) -> Replayed:
    """Compute some segments of a bundle again, chosen at random by its root digest.

    Args:
        opened: the zip, whose files were compared with the manifest.
        manifest: of the bundle.
        view: the sweep, as its records imply it.
        number: how many segments.
    """
    names = {name.removeprefix(f"{STORE}/") for name in opened.members if name.startswith(f"{STORE}/")}
    found = sorted(segments_in(view, names), key=lambda each: (each.instance.digest, each.steps))
    chosen = random.Random(manifest.root).sample(found, min(number, len(found)))
    result = Replayed([], [], [])
    if len(chosen) < number:
        result.unchecked.append(f"{number} segments wanted, and the bundle holds {len(found)}")
    for segment in chosen:
        name = f"{segment.instance.name} {segment.instance.digest[:8]}, steps {segment.steps[0]} to"
        name += f" {segment.steps[1]}"
        why = _not_comparable(segment, manifest, view)
        answer = {"not_comparable": why} if why else _replay(opened, manifest, view, segment)
        if "not_comparable" in answer:
            result.unchecked.append(f"{name}: not comparable: {answer['not_comparable']}")
        elif answer["differences"]:
            result.faults.append(f"{name} give other bits: {', '.join(answer['differences'][:5])}")
        else:
            result.same.append(f"{name} give the same bits")
    return result


def _not_comparable(segment: KeptSegment, manifest: BundleManifest, view: SweepState) -> str:
    """Return why a segment cannot be compared here, "" if it can."""
    attempt = view.ledger.attempt(segment.instance, segment.done.attempt)
    known = attempt.start.provenance if attempt is not None and attempt.start is not None else {}
    here = machine()
    if not manifest.code:
        return "the bundle holds no code"
    if known.get("packages_digest") != provenance.packages_digest():
        return "it ran with other packages"
    if known.get("python") != platform.python_version():
        return f"it ran with Python {known.get('python')}"
    for name in ("cpu", "system"):
        if segment.facts.get(name) != here[name]:
            return f"it ran on {segment.facts.get(name)}, and here is {here[name]}"
    return ""


def _replay(opened: Zip, manifest: BundleManifest, view: SweepState, segment: KeptSegment) -> dict[str, Any]:
    """Run a segment in a process of its own, and return what it printed."""
    attempt = view.ledger.attempt(segment.instance, segment.done.attempt)
    assert attempt is not None and attempt.start is not None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        code = f"{CODE}/{manifest.code}/{layout.CODE_PACKAGE}"
        inputs: dict[str, dict[str, str]] = {}
        wanted = [f"{code}/", *(f"{STORE}/{segment.folder}/{step:08d}/" for step in segment.steps)]
        for taken in segment.instance.inputs:
            made = view.reader.evidence(taken.digest).done
            if made is None:
                return {"not_comparable": f"the product of {taken.stage} is not recorded"}
            key = f"{STORE}/{layout.output(made, made.attempt)}"
            inputs.setdefault(taken.stage, {})[taken.label] = str(folder / key)
            wanted.append(f"{key}/")
        opened.extract([name for name in opened.members if name.startswith(tuple(wanted))], folder)
        kept = folder / STORE / segment.folder
        order = {
            "reads": segment.instance.reads,
            "uses": attempt.start.uses,
            "inputs": inputs,
            "segment": segment.steps,
            "start": str(kept / f"{segment.steps[0]:08d}"),
            "end": str(kept / f"{segment.steps[1]:08d}"),
            "num_threads": segment.facts["num_threads"],
            "device": segment.facts["device"],
            "folder": str(folder / "work"),
        }
        (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        return _run(folder, folder / code, REPLAYED[segment.instance.stage], order)


def _run(folder: Path, code: Path, module: str, order: dict[str, Any]) -> dict[str, Any]:
    path = python_path(code, os.environ)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(order["num_threads"])}
    if order["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    words = [sys.executable, "-P", "-m", module, str(folder / "order.json")]
    try:
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"not_comparable": f"it took more than {LIMIT_S:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"differences": [f"it fails: {re.sub(re.escape(str(folder)), '.', lines[-1])}"]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
