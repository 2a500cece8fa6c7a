"""The files that describe a bundle: ``manifest.json``, and ``ro-crate-metadata.json`` for other tools."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.bundles.content import CODE, STORE, Omission
from orchestrator.core.records import Request
from orchestrator.manifest import File
from orchestrator.store import layout

CRATE = "ro-crate-metadata.json"
_SPEC, _RUNS = "https://w3id.org/ro/crate/1.3", "https://w3id.org/ro/wfrun"
_PROFILES = {
    f"{_RUNS}/process/0.5": "Process Run Crate",
    f"{_RUNS}/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_FORMATS = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".py": "text/x-python",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
}
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"

Entity = dict[str, Any]


def crate_of(view: SweepState, files: Sequence[File]) -> bytes:
    """Return the description of a bundle as RO-Crate 1.3.

    It follows Workflow Run Crate 0.5 too: the sealed sweep is the workflow, and its launches are the actions.

    Args:
        view: the sweep, as its records imply it.
        files: all files of the bundle but this one, the manifest and a signature.
    """
    workflow = f"{STORE}/{layout.revision(view.sweep.name, view.number)}"
    launches = [each for each in view.requests if each.verb in ("launch", "rerun")]
    results = [file.path for file in files if not file.path.startswith((f"{STORE}/", f"{CODE}/"))]
    parts = [_file(file, view, workflow) for file in files]
    actions = [_action(each, workflow, results) for each in launches if each.revision == view.number]
    people = {each["agent"]["@id"]: each["agent"]["@id"].removeprefix("#by-") for each in actions}
    graph = [
        _descriptor(),
        _root(view, parts, actions, workflow),
        {
            "@id": "#licence",
            "@type": "CreativeWork",
            "name": "No licence is granted by this file",
            "description": "Ask whoever made the sweep; code and data sets have licences of their own.",
        },
        {
            "@id": "#polysweep",
            "@type": ["ComputerLanguage", "SoftwareApplication"],
            "name": "Polysweep",
            "url": "https://pypi.org/project/polysweep/",
            "version": next(
                (str(v) for each in launches if (v := each.provenance.get("polysweep"))), "unknown"
            ),
        },
        *({"@id": each, "@type": ["CreativeWork", "Profile"], "name": n} for each, n in _PROFILES.items()),
        *({"@id": each, "@type": "Person", "name": name} for each, name in people.items()),
        *actions,
        *parts,
    ]
    tree = {"@context": f"{_SPEC}/context", "@graph": graph}
    return msgspec.json.format(msgspec.json.encode(tree), indent=1) + b"\n"


def _descriptor() -> Entity:
    return {
        "@id": CRATE,
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": _SPEC},
    }


def _root(view: SweepState, parts: Sequence[Entity], actions: Sequence[Entity], workflow: str) -> Entity:
    sealed = view.ledger.revision(view.sweep.name, view.number).at
    asked = next((each.at for each in view.requests if each.at), "")
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{view.sweep.name}, revision {view.number}",
        "description": view.sweep.description or f"The sweep {view.sweep.name}: records, rows and tables",
        "datePublished": sealed or asked or _UNKNOWN_DATE,
        "license": {"@id": "#licence"},
        "conformsTo": [{"@id": each} for each in _PROFILES],
        "mainEntity": {"@id": workflow},
        "mentions": [{"@id": each["@id"]} for each in actions],
        "hasPart": [{"@id": each["@id"]} for each in parts],
    }


def _file(file: File, view: SweepState, workflow: str) -> Entity:
    found: Entity = {
        "@id": file.path,
        "@type": "File",
        "name": file.path,
        "contentSize": str(file.size),
        "sha256": file.sha256,
        "encodingFormat": _FORMATS.get(PurePosixPath(file.path).suffix, "application/octet-stream"),
    }
    if file.path == workflow:
        found |= {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            "name": f"The sealed sweep {view.sweep.name}@{view.number}",
            "programmingLanguage": {"@id": "#polysweep"},
        }
    return found


def _action(request: Request, workflow: str, results: Sequence[str]) -> Entity:
    """Return a launch as an action that ran the workflow."""
    return {
        "@id": f"#{request.verb}-{request.number}",
        "@type": "CreateAction",
        "name": f"{request.verb} {request.number}",
        "description": str(request.provenance.get("command") or request.verb),
        "instrument": {"@id": workflow},
        "startTime": request.at or _UNKNOWN_DATE,
        "endTime": request.at or _UNKNOWN_DATE,
        "agent": {"@id": f"#by-{request.by or 'unknown'}"},
        "object": {"@id": workflow},
        "result": [{"@id": path} for path in results],
    }


MANIFEST, SIGNATURE = "manifest.json", "model.sig"
"""The two files that the manifest does not list: itself, and a signature of all others."""


class BundleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``manifest.json``.

    Attributes:
        format: of bundles; always 1.
        sweep, revision: what the bundle holds.
        made_by: the version of Polysweep that made it.
        partial: whether some cells were not done.
        weights: whether all files of products that were still there are in it.
        segments: number of training segments that can be computed again.
        code: digest of the code snapshot; "" without one.
        left_out: what a reader may miss, and why.
        files: all other files, sorted by path, except a signature.
        root: SHA-256 of this manifest with an empty root.
    """

    format: int = 1
    sweep: str
    revision: int
    made_by: str
    partial: bool = False
    weights: bool = False
    segments: int = 0
    code: str = ""
    left_out: tuple[Omission, ...] = ()
    files: tuple[File, ...]
    root: str = ""

    def encoded(self) -> bytes:
        """Return the only bytes that this manifest may have."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def closed(self) -> BundleManifest:
        """Return the manifest with its root digest."""
        open_ = msgspec.structs.replace(self, root="")
        return msgspec.structs.replace(self, root=hashlib.sha256(open_.encoded()).hexdigest())
