"""Cross-signed roots."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509

from tests.identity.companies import SIGNS
from xds.mesh.identity.ca import ROOT_LIFETIME, Authority
from xds.mesh.identity.chain import to_pem

NOW = datetime.now(UTC)


def bridge(old: Authority, new: Authority) -> bytes:
    """Return the new CA's name and key, signed by the old CA."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(new.certificate.subject)
        .issuer_name(old.certificate.subject)
        .public_key(new.certificate.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(NOW + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(SIGNS, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(new.certificate.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(old.certificate.public_key()), critical=False
        )
    )
    return to_pem([old.key.sign(builder)])
