"""A company's certificate authorities: a root, and intermediates below it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from xds.mesh.identity.ca import key_usage

SIGNS = key_usage(ca=True)


@dataclass(frozen=True, slots=True)
class Company:
    """A CA's certificate and key."""

    certificate: x509.Certificate
    key: Any
    now: datetime

    @classmethod
    def root(cls, name: str, now: datetime, **how: Any) -> Company:
        return _make(name, now, None, **how)

    def subsidiary(self, name: str, **how: Any) -> Company:
        """Return a CA whose certificate this one signs."""
        return _make(name, self.now, self, **how)


def _make(
    name: str,
    now: datetime,
    parent: Company | None,
    *,
    key: Any = None,
    pathlen: int | None = None,
    ca: bool = True,
    lifetime: timedelta = timedelta(days=365),
) -> Company:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = parent.key if parent else key
    certificate = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .not_valid_before(now)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=pathlen if ca else None), critical=True)
        .add_extension(SIGNS, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return Company(certificate, key, now)


def pem(ca: Company) -> bytes:
    return ca.certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(ca: Company) -> bytes:
    return ca.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
