"""The document of a report: its digest, and a signature with a key of the user."""

from __future__ import annotations

import base64
import hashlib
import json
from binascii import Error as Base64Error
from typing import Any, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

_Private: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_Public: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

Document: TypeAlias = dict[str, Any]
"""A report, its digest, and perhaps a signature, as values of JSON."""

KEYS = "Ed25519, EC P-256, or RSA with 2048 bits or more"
"""Supported keys."""
_SHA256 = hashes.SHA256()


def canonical(report: Document) -> bytes:
    """Return the bytes that the digest and the signature are about: JSON with sorted keys, without spaces."""
    return json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def seal(report: Document, key: bytes | None) -> Document:
    """Return a report with its digest, and with a signature if there is a private key (PEM).

    Raises:
        ValueError: the key cannot be used.
    """
    private = _private_key(key) if key is not None else None
    data = canonical(report)
    document = {"report": report, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}
    if private:
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        document["signature"] = {
            "algorithm": _algorithm(private.public_key()),
            "publicKey": public.decode(),
            "value": base64.b64encode(_sign(private, data)).decode(),
        }
    return document


def verify(document: Document, key: bytes | None) -> str:
    """Return what is proven of a report, in words.

    Args:
        document: the report.
        key: public key (PEM) of the signer; None for the one in the document.

    Raises:
        ValueError: the report was changed, or is not signed with the key.
    """
    expected = f"sha256:{hashlib.sha256(canonical(document['report'])).hexdigest()}"
    if document.get("digest") != expected:
        raise ValueError(f"the report was changed: its digest is {expected}, not {document.get('digest')}")
    signature = document.get("signature")
    if signature is None:
        if key is not None:
            raise ValueError("the report has no signature")
        return f"digest {expected}; not signed: whoever changes the report can change the digest as well"
    try:
        public = _public_key(key if key is not None else str(signature["publicKey"]).encode())
        _verify(public, base64.b64decode(signature["value"], validate=True), canonical(document["report"]))
    except (TypeError, KeyError, Base64Error):
        raise ValueError("the signature is malformed") from None
    except InvalidSignature:
        raise ValueError("the signature does not match the report and the key") from None
    where = "" if key is not None else ", which is in the report: compare it with that of the signer"
    return f"digest {expected}; signed with the {_algorithm(public)} key {fingerprint(public)}{where}"


def fingerprint(key: _Public) -> str:
    """Return the SHA-256 digest of a public key's DER form."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def _private_key(pem: bytes) -> _Private:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the private key is encrypted with a password: use one without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is not a private key in PEM format") from None
    if not isinstance(key, _Private) or not _is_supported(key.public_key()):
        raise ValueError(f"the key is unsupported; supported: {KEYS}")
    return key


def _public_key(pem: bytes) -> _Public:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is not a public key in PEM format") from None
    if not isinstance(key, _Public) or not _is_supported(key):
        raise ValueError(f"the key is unsupported; supported: {KEYS}")
    return key


def _is_supported(key: _Public) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey) or key.key_size >= 2048


def _algorithm(key: _Public) -> str:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "ECDSA-SHA256" if isinstance(key, ec.EllipticCurvePublicKey) else "RSA-PKCS1-SHA256"


def _sign(key: _Private, data: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(_SHA256))
    return key.sign(data, padding.PKCS1v15(), _SHA256)


def _verify(key: _Public, signature: bytes, data: bytes) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, data, ec.ECDSA(_SHA256))
    else:
        key.verify(signature, data, padding.PKCS1v15(), _SHA256)
