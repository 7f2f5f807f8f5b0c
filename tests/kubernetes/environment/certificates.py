"""The cluster's certificate authority, for the API server and its clients."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds.mesh.identity.ca import key_usage

_LIFETIME = timedelta(days=3650)


class Certificates:
    """A CA whose certificates and keys are files in their own folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("kubernetes")
        self._clients: dict[tuple[str, tuple[str, ...]], tuple[Path, Path]] = {}
        self.root = folder / "ca.crt"
        self.root.write_bytes(_pem(self._made(self._name, self._key.public_key(), authority=True)))

    def server(self, names: Sequence[str], addresses: Sequence[str]) -> tuple[Path, Path]:
        """Create a server's certificate and key, in files named after its first name."""
        alternatives = [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
        ]
        return self._leaf(names[0], _name(names[0]), alternatives)

    def client(self, user: str, *groups: str) -> tuple[Path, Path]:
        """Return the files of a client certificate for a user's name and groups, and of its key."""
        if (user, groups) not in self._clients:
            file = f"client-{len(self._clients)}"
            self._clients[user, groups] = self._leaf(file, _name(user, *groups), [])
        return self._clients[user, groups]

    def key_pair(self, name: str) -> tuple[Path, Path]:
        """Return the files of a public and a private key, as used to sign service account tokens."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = self._folder / f"{name}.pub"
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return public, self._kept(key, name)

    def _leaf(
        self, file: str, name: x509.Name, alternatives: Sequence[x509.GeneralName]
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._folder / f"{file}.crt"
        certificate.write_bytes(_pem(self._made(name, key.public_key(), alternatives)))
        return certificate, self._kept(key, file)

    def _kept(self, key: ec.EllipticCurvePrivateKey, name: str) -> Path:
        path = self._folder / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def _made(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName] = (),
        *,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder(self._name, name, key, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if authority:
            # The tests' own clients require it since Python 3.13.
            builder = builder.add_extension(key_usage(ca=True), critical=True)
        else:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(user: str, *groups: str) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
