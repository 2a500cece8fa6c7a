"""A store with a finished sweep, written by hand once, and an honest bundle of it with keys of its own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.api.state import open_view
from orchestrator.bundles.making import BundleOptions, make_bundle
from tests.bundles import graded


class Honest(NamedTuple):
    """A finished sweep: its store, a signed bundle of it, and the pair of keys."""

    store: Path
    bundle: Path
    key: Path
    public: Path


def write_keys(folder: Path) -> tuple[Path, Path]:
    """Writes a private key and its public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key.pem", folder / "public.pem"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    shape = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, shape))
    return private, public


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    """A signed bundle of the sweep that `graded` writes."""
    place = tmp_path_factory.mktemp("honest")
    store, bundle = place / "store", place / "honest.zip"
    graded.write_store(store)
    key, public = write_keys(place)
    make_bundle(open_view(graded.NAME, str(store)), bundle, BundleOptions(weights=True, key=key))
    return Honest(store, bundle, key, public)
