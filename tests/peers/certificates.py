"""Certificates for tests, as the files that gRPC's certificate provider reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name.from_rfc4514_string("CN=test authority")
        self._roots = folder / "roots.pem"
        authority = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._roots.write_bytes(self._signed(authority))

    def issue(self, identity: str) -> dict[str, str]:
        """Issue a certificate for a URI; return the configuration of the provider that has it."""
        name = identity.rpartition("/")[2]
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._builder(x509.Name.from_rfc4514_string(f"CN={name}"), key).add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=False
        )
        certificate_file, key_file = self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"
        certificate_file.write_bytes(self._signed(leaf))
        key_file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        return {
            "certificate_file": str(certificate_file),
            "private_key_file": str(key_file),
            "ca_certificate_file": str(self._roots),
            "refresh_interval": "600s",
        }

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
