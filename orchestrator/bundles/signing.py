"""Signatures in the format of OpenSSF Model Signing 1.0: with a bare key, or with certificates.

A signature is a Sigstore bundle (media type v0.3) with a DSSE envelope around an in-toto statement, which
lists the digest of each file. `model_signing verify` of the package ``model-signing`` reads the signature of
an unpacked bundle, and this module reads signatures of that package. Keyless signatures need Sigstore's
network, so they are recognised and not checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from orchestrator.errors import UserError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"
MAX_CHAIN = 8
"""Most certificates between a signature and a certificate that the reader trusts (ours)."""

_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
"""Curve of a key to the hash with which it signs, as in Sigstore's specification."""
_IGNORED = ("model.sig", ".git", ".gitattributes", ".github", ".gitignore")
"""Paths that no signature covers: itself, and what `model_signing` leaves out by default."""


_MALFORMED = (
    *(ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
    UnsupportedAlgorithm,
)
"""What `cryptography` raises for certificates that are none."""


class Forged(Exception):
    """Raised where a signature does not hold; the message is the fault."""


class Trust(NamedTuple):
    """What the reader trusts: a public key, or certificates."""

    key: Path | None = None
    certificates: Path | None = None


def check_signer(key: Path, certificates: Path | None) -> None:
    """Raise unless a key can sign, and is that of the first certificate.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    private = _private_key(key)
    if certificates is not None and _chain(certificates)[0].public_key() != private.public_key():
        raise UserError(f"the first certificate of {certificates} is not of the key {key}")


def sign(files: Mapping[str, str], name: str, key: Path, certificates: Path | None = None) -> bytes:
    """Return a signature of files.

    Args:
        files: path to SHA-256 in hexadecimal.
        name: of what is signed.
        key: a private key of an elliptic curve, as PEM.
        certificates: of the key, then those that issued it, as PEM; None for a bare key.

    Raises:
        UserError: as `check_signer`.
    """
    check_signer(key, certificates)
    private = _private_key(key)
    resources = [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in sorted(files)]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement, ensure_ascii=False).encode()
    signature = private.sign(_pre_authentication(payload), ec.ECDSA(_HASHES[private.curve.name]))
    material: dict[str, Any] = {"publicKey": {"hint": _hint(private.public_key())}, "tlogEntries": []}
    if certificates is not None:
        ders = [each.public_bytes(serialization.Encoding.DER) for each in _chain(certificates)]
        chain = [{"rawBytes": base64.b64encode(der).decode()} for der in ders]
        material = {"x509CertificateChain": {"certificates": chain}, "tlogEntries": []}
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    bundle = {"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(bundle).encode()


def kind_of(data: bytes) -> str:
    """Return ``key``, ``certificate`` or ``keyless``: with what a signature was made.

    Raises:
        Forged: it is no signature.
    """
    material = _parsed(data)["verificationMaterial"]
    if "x509CertificateChain" in material:
        return "certificate"
    return "key" if "publicKey" in material else "keyless"


def verify_signature(data: bytes, files: Mapping[str, str], trust: Trust) -> None:
    """Raise unless a signature is of exactly these files, and by a key that the reader trusts.

    Args:
        data: the signature.
        files: path to SHA-256 in hexadecimal.
        trust: what the reader trusts.

    Raises:
        Forged: it is not.
        UserError: a file of the reader's cannot be read.
    """
    bundle, kind = _parsed(data), kind_of(data)
    if kind == "keyless":
        raise Forged("the signature is a keyless one, which is not checked here")
    key = _public_key(trust.key) if trust.key is not None else None
    try:
        if key is None:
            if kind != "certificate" or trust.certificates is None:
                raise Forged("the signature was made with a bare key, and no --key is given")
            chain = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
            key = _certified([base64.b64decode(each["rawBytes"]) for each in chain], trust.certificates)
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise Forged("the signature is of something else than a statement")
        sig = base64.b64decode(signature["sig"], validate=True)
        key.verify(sig, _pre_authentication(payload), ec.ECDSA(_hash_of(key)))
        signed = _signed(json.loads(payload))
    except InvalidSignature:
        raise Forged("the signature is not by this key, or of something else") from None
    except (*_MALFORMED, KeyError, TypeError, RecursionError) as error:
        raise Forged(f"the signature is malformed: {error}") from None
    for path in sorted(signed.keys() | files.keys()):
        if signed.get(path) != files.get(path):
            raise Forged(f"the signature is of other content than {path}")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        bundle = json.loads(data)
        if bundle["mediaType"] != MEDIA_TYPE or not isinstance(bundle["verificationMaterial"], dict):
            raise Forged("the signature is of another format")
    except (*_MALFORMED, KeyError, TypeError, RecursionError):
        raise Forged("the signature is no Sigstore bundle") from None
    found: dict[str, Any] = bundle
    return found


def _signed(statement: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that a statement lists.

    Raises:
        Forged: it contradicts itself, or lists something else than files with their SHA-256.
    """
    if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
        raise Forged("the signature is of another kind of statement")
    resources = statement["predicate"]["resources"]
    if statement["predicate"]["serialization"]["method"] != "files":
        raise Forged("the signature is of parts of files")
    (subject,) = statement["subject"]
    if subject["digest"]["sha256"] != _root(resources):
        raise Forged("the signature lists other files than its own digest")
    found = {each["name"]: each["digest"] for each in resources if each["algorithm"] == "sha256"}
    if len(found) != len(resources):
        raise Forged("the signature lists a file twice, or with another digest than SHA-256")
    return found


def _root(resources: Sequence[Mapping[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()


def _pre_authentication(payload: bytes) -> bytes:
    """Return what is signed in place of a payload (DSSE 1.0, protocol.md)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, form)).hexdigest()


def _hash_of(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    if key.curve.name not in _HASHES:
        raise Forged(f"a key of the curve {key.curve.name} signs nothing here")
    return _HASHES[key.curve.name]


# Certificates


def _certified(ders: Sequence[bytes], trusted: Path) -> ec.EllipticCurvePublicKey:
    """Return the key of a signature's certificate, if a trusted certificate issued it.

    As in `model_signing`, certificates count as of the first moment at which the first of them is valid: when
    the signature was made is not known.

    Raises:
        Forged: none did, or the certificate is not for signatures.
    """
    first, *between = [x509.load_der_x509_certificate(der) for der in ders]
    anchors = _chain(trusted)
    at = first.not_valid_before_utc
    if not _may_sign(first):
        raise Forged("the certificate of the signature is not for signatures")
    found = first
    for _ in range(MAX_CHAIN):
        if found in anchors or _issuer(found, anchors, at) is not None:
            key = first.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise Forged("the certificate of the signature is of another kind of key")
            return key
        above = _issuer(found, between, at)
        if above is None or above == found:
            break
        found = above
    raise Forged("no certificate that you trust issued that of the signature")


def _issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], at: datetime
) -> x509.Certificate | None:
    """Return the candidate that issued a certificate, may do so, and was valid at a time."""
    for each in candidates:
        if not _is_authority(each) or not each.not_valid_before_utc <= at <= each.not_valid_after_utc:
            continue
        try:
            certificate.verify_directly_issued_by(each)
        except (*_MALFORMED, InvalidSignature, TypeError):
            continue
        return each
    return None


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (*_MALFORMED, x509.ExtensionNotFound):
        return False


def _may_sign(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is for digital signatures or for code."""
    try:
        values = [extension.value for extension in certificate.extensions]
    except _MALFORMED:
        return False
    usages = [value for value in values if isinstance(value, x509.KeyUsage)]
    extended = [value for value in values if isinstance(value, x509.ExtendedKeyUsage)]
    return any(usage.digital_signature for usage in usages) or any(
        ExtendedKeyUsageOID.CODE_SIGNING in usage for usage in extended
    )


# Files of the user's


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no private key without a password: {error}", allowed="PEM of an elliptic curve"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise UserError(f"{path} is no key for signatures", allowed=f"a key of {', '.join(_HASHES)}")
    return key


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is no public key: {error}", allowed="PEM of an elliptic curve") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise UserError(f"{path} is no key for signatures", allowed=f"a key of {', '.join(_HASHES)}")
    return key


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise UserError(f"{path} holds no certificates: {error}", allowed="PEM") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
