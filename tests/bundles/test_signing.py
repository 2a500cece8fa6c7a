"""Signatures of bundles: with keys and certificates, and the public cases of the format's own package."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.bundles.signing import Forged, Trust, kind_of, sign, verify_signature
from orchestrator.errors import UserError
from tests.bundles.conftest import write_keys

FILES = {"a.txt": hashlib.sha256(b"a").hexdigest(), "b/c.txt": hashlib.sha256(b"c").hexdigest()}


def refused(data: bytes, trust: Trust, files: dict[str, str] = FILES) -> str:
    with pytest.raises(Forged) as caught:
        verify_signature(data, files, trust)
    return str(caught.value)


def test_a_signature_is_of_one_key_and_of_exactly_these_files(tmp_path: Path) -> None:
    key, public = write_keys(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = write_keys(tmp_path / "other")
    data = sign(FILES, "two files", key)
    verify_signature(data, FILES, Trust(key=public))
    assert kind_of(data) == "key"
    assert "not by this key" in refused(data, Trust(key=other))
    for files in ({"a.txt": FILES["a.txt"]}, {**FILES, "d": "00"}, {**FILES, "a.txt": FILES["b/c.txt"]}):
        assert "of other content" in refused(data, Trust(key=public), files)
    bundle = json.loads(data)
    bundle["dsseEnvelope"]["payload"] = bundle["dsseEnvelope"]["payload"][:-8] + "fX19fQ=="
    assert "not by this key" in refused(json.dumps(bundle).encode(), Trust(key=public))
    for bad in (b"", b"[]", b"{}", b'{"mediaType": 1, "verificationMaterial": {}}', b"[" * 10_000):
        assert refused(bad, Trust(key=public))
    with pytest.raises(UserError, match="no private key"):
        sign(FILES, "two files", public)


def certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, ca: bool
) -> bytes:
    """A certificate, as PEM."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


def test_a_chain_of_certificates_must_end_at_one_that_the_reader_trusts(tmp_path: Path) -> None:
    path, _ = write_keys(tmp_path)
    own = serialization.load_pem_private_key(path.read_bytes(), None)
    root, between, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    leaf = certificate("maker", own.public_key(), "between", between, ca=False)
    middle = certificate("between", between.public_key(), "root", root, ca=True)
    (tmp_path / "chain.pem").write_bytes(leaf + middle)
    (tmp_path / "root.pem").write_bytes(certificate("root", root.public_key(), "root", root, ca=True))
    (tmp_path / "other.pem").write_bytes(certificate("root", other.public_key(), "root", other, ca=True))
    data = sign(FILES, "two files", path, tmp_path / "chain.pem")
    verify_signature(data, FILES, Trust(certificates=tmp_path / "root.pem"))
    assert "no certificate that you trust" in refused(data, Trust(certificates=tmp_path / "other.pem"))
    # Who was certified as a maker may certify nobody.
    leaf_of_leaf = certificate("maker", own.public_key(), "maker", own, ca=False)
    (tmp_path / "bad.pem").write_bytes(leaf_of_leaf + leaf + middle)
    forged = sign(FILES, "two files", path, tmp_path / "bad.pem")
    assert "no certificate that you trust" in refused(forged, Trust(certificates=tmp_path / "root.pem"))
    (tmp_path / "no-use.pem").write_bytes(certificate("m", own.public_key(), "root", root, ca=True))
    useless = sign(FILES, "two files", path, tmp_path / "no-use.pem")
    assert "not for signatures" in refused(useless, Trust(certificates=tmp_path / "root.pem"))


CASES = os.environ.get("POLYSWEEP_OMS_CASES", "")


@pytest.mark.long
@pytest.mark.skipif(
    not CASES, reason="POLYSWEEP_OMS_CASES names no folder scripts/tests of model-transparency"
)
def test_the_public_cases_with_bare_keys_and_certificates_hold_and_keyless_ones_are_not_checked() -> None:
    place, counts = Path(CASES), {"key": 0, "certificate": 0, "keyless": 0}
    trusted = Trust(certificates=place / "keys/certificate/ca-cert.pem")
    for folder in sorted(place.glob("v*-*")):
        data = (folder / "model.sig").read_bytes()
        kind = kind_of(data)
        trust = Trust(key=place / "keys/certificate/signing-key-pub.pem") if kind == "key" else trusted
        if kind == "keyless":
            assert "keyless" in refused(data, trusted)
        elif folder.name.startswith("v0.2.0"):
            assert refused(data, trust)  # before the format had its form of today
            continue
        else:
            signed = _digests(folder)
            try:
                verify_signature(data, signed, trust)
            except Forged:  # a signature of the one file alone
                verify_signature(data, {".": signed["signme-1"]}, trust)
        counts[kind] += 1
    assert counts["key"] >= 4 and counts["certificate"] >= 4 and counts["keyless"] >= 4


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.iterdir() if path.name not in ("model.sig", "ignore-me")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
