"""``manifest.json`` of a bundle: each file with size and digest, closed by the manifest's own digest."""

from __future__ import annotations

import hashlib

import msgspec

from orchestrator.bundles.content import Omission
from orchestrator.manifest import File

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
