"""Certificate authority for SPIFFE identities (X.509-SVID).

Pure: this module reads neither the clock nor files. Generated keys are EC P-256. An imported CA can have an
RSA key, and can be an intermediate.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds.mesh.identity import chain as chains
from xds.mesh.identity.keys import IdentityError, PrivateKey, PublicKey

ROOT_LIFETIME = timedelta(days=3652)
LEAF_LIFETIME = timedelta(hours=24)
EXPIRY_WARNING = timedelta(days=30)
"""Time before the CA expires from which it is reported as a problem, if its lifetime is at least 120 days."""

CLOCK_SKEW = timedelta(minutes=5)
"""Amount by which `not_before` is backdated, for peers with slow clocks."""

WORKLOAD_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
"""Extended key usages of a workload, which is a TLS server and a TLS client."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_IDENTITY = re.compile(rf"spiffe://{_TRUST_DOMAIN.pattern}/ns/{_SEGMENT}/sa/{_SEGMENT}")
_MAX_IDENTITY_BYTES = 2048  # limit of the SPIFFE standard
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Certificate of a workload or server."""

    identity: str
    """SPIFFE ID of a workload, or the first name of a server."""
    chain: bytes
    """PEM certificate and its intermediates, without the root."""
    fingerprint: str
    """SHA-256 fingerprint of the certificate in hexadecimal."""
    not_before: datetime
    """Start of the validity period."""
    not_after: datetime
    """End of the validity period."""
    renew_at: datetime
    """Time to renew the certificate, after half of its lifetime."""

    def with_key(self, key: PrivateKey) -> Leaf:
        """Return the certificate with its private key."""
        return Leaf(**{field.name: getattr(self, field.name) for field in fields(self)}, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf(Certificate):
    """Certificate of a workload or server, with its key."""

    key: PrivateKey
    """Private key of the certificate."""


@dataclass(frozen=True, slots=True)
class Authority:
    """CA certificate and key that issue leaf certificates."""

    certificate: x509.Certificate
    """Signing certificate, a root or an intermediate."""
    key: PrivateKey
    issuers: tuple[x509.Certificate, ...] = ()
    """Chain above an intermediate, its signer first and the root last; empty for a root."""
    other_roots: tuple[x509.Certificate, ...] = ()
    """Other roots of the same bundle, which peers also trust."""

    @classmethod
    def create(
        cls, key: PrivateKey, trust_domain: str, now: datetime, lifetime: timedelta = ROOT_LIFETIME
    ) -> Authority:
        """Return an authority with a new self-signed root."""
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise IdentityError(
                f"{trust_domain!r} is not a trust domain: use lower-case letters, digits, '.', '-' and '_'"
            )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
        # Verifiers find a signer by its name, so each root has a unique name.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
                x509.NameAttribute(NameOID.COMMON_NAME, f"xds root {identifier.digest.hex()[:16]}"),
            ]
        )
        certificate = key.sign(
            _builder(key.public_key, now - CLOCK_SKEW, now + lifetime, identifier)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_usage(ca=True), critical=True)
            .add_extension(subject_alternative_name(f"spiffe://{trust_domain}"), critical=False)
        )
        return cls(certificate, key)

    @classmethod
    def load(
        cls, certificate: bytes, key: bytes, now: datetime, *, root: bytes = b"", chain: bytes = b""
    ) -> Authority:
        """Return a CA from PEM. Raise IdentityError if it cannot sign.

        Args:
            certificate: signing certificate; without `root`, it must be a root.
            key: private key of the certificate.
            now: current time.
            root: trusted roots. The root that signed the chain becomes the CA's root. The others become
                `other_roots`.
            chain: intermediates between the certificate and the root. It can also contain these two.
        """
        (signing, *others) = chains.read(certificate)
        if others and not root:
            raise IdentityError(f"there are {1 + len(others)} certificates: keep only the root")
        private_key = PrivateKey.from_pem(key)
        roots = tuple(dict.fromkeys(chains.read(root))) if root else (signing,)
        (chains.require_root if signing in roots else chains.require_ca)(signing)
        if signing.public_key() != private_key.public_key:
            raise IdentityError(
                "the private key does not match the certificate: they belong to different CAs"
            )
        chains.require_valid(signing, now)
        intermediates = (*others, *(chains.read(chain) if chain.strip() else ()))
        issuers = () if signing in roots else chains.build_path(signing, intermediates, roots, now)
        authority = cls(signing, private_key, issuers)
        return replace(authority, other_roots=tuple(other for other in roots if other != authority.root))

    @property
    def root(self) -> x509.Certificate:
        """Root certificate of this CA."""
        return self.issuers[-1] if self.issuers else self.certificate

    @property
    def root_pem(self) -> bytes:
        """Root certificate in PEM form."""
        return chains.to_pem([self.root])

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All trusted roots, this CA's own root first."""
        return (self.root, *self.other_roots)

    @property
    def trust_domain(self) -> str:
        """Trust domain in the root certificate; empty if it has none."""
        try:
            names = self.root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ""
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return uris[0].removeprefix("spiffe://") if uris and uris[0].startswith("spiffe://") else ""

    @property
    def certificate_pem(self) -> bytes:
        """Signing certificate in PEM form."""
        return chains.to_pem([self.certificate])

    @property
    def expires(self) -> datetime:
        """Earliest expiry in the chain. No issued certificate is valid for longer."""
        return min(certificate.not_valid_after_utc for certificate in (self.certificate, *self.issuers))

    def expires_soon(self, now: datetime) -> bool:
        """Return whether the CA expires within 30 days, and within a quarter of its lifetime.

        cert-manager renews a certificate after two thirds of its lifetime, 90 days by default.
        """
        chain = (self.certificate, *self.issuers)
        first = min(chain, key=lambda certificate: certificate.not_valid_after_utc)
        lifetime = first.not_valid_after_utc - first.not_valid_before_utc
        return self.expires - now < min(EXPIRY_WARNING, lifetime / 4)

    def issue(self, identity: str, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> Leaf:
        """Issue a certificate for `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, with a fresh key.

        The certificate is valid for both TLS client and TLS server authentication.
        """
        key = PrivateKey.generate()
        return self.certify(identity, key.public_key, now, lifetime).with_key(key)

    def certify(
        self,
        identity: str,
        key: PublicKey,
        now: datetime,
        lifetime: timedelta = LEAF_LIFETIME,
        backdate: timedelta = CLOCK_SKEW,
    ) -> Certificate:
        """Issue the same certificate for a public key, whose private key is elsewhere.

        It is valid from `now - backdate` to `now + lifetime`.
        """
        if not _IDENTITY.fullmatch(identity) or len(identity) > _MAX_IDENTITY_BYTES:
            raise IdentityError(f"{identity!r} is not the SPIFFE ID of a service account")
        names = subject_alternative_name(identity)
        return self._certify(identity, names, WORKLOAD_USAGES, key, now, lifetime, backdate)

    def issue_server(self, names: Sequence[str], now: datetime) -> Leaf:
        """Issue a TLS server's certificate for DNS names or IP addresses, with a fresh key."""
        if not names:
            raise IdentityError("a server's certificate needs a name")
        alternatives = x509.SubjectAlternativeName([server_name(name) for name in names])
        key, usages = PrivateKey.generate(), [ExtendedKeyUsageOID.SERVER_AUTH]
        return self._certify(names[0], alternatives, usages, key.public_key, now, LEAF_LIFETIME).with_key(key)

    def _certify(  # noqa: PLR0917
        self,
        identity: str,
        names: x509.SubjectAlternativeName,
        usage: Sequence[x509.ObjectIdentifier],
        key: PublicKey,
        now: datetime,
        lifetime: timedelta,
        backdate: timedelta = CLOCK_SKEW,
    ) -> Certificate:
        if now >= self.expires:
            which = "root" if now >= self.root.not_valid_after_utc else "CA's"
            raise IdentityError(f"the {which} certificate expired at {self.expires:%Y-%m-%d %H:%M} UTC")
        end = min(now + lifetime, self.expires)
        certificate = self.key.sign(
            _builder(key, now - backdate, end, _identifier(self.certificate))
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(names, critical=True)  # RFC 5280: critical when the subject is empty
        )
        intermediates = (self.certificate, *self.issuers)[:-1]
        return Certificate(
            identity=identity,
            chain=chains.to_pem([certificate, *intermediates]),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            # Half of the requested lifetime. With half of the actual lifetime, which the CA's expiry can
            # shorten, renewals would become ever more frequent.
            renew_at=min(now + lifetime / 2, certificate.not_valid_after_utc),
        )

    def bridge(self, other: Authority, now: datetime) -> bytes:
        """Cross-sign another CA's root. Clients that trust only this CA's root then accept the other CA.

        Returns the cross-signed root and this CA's intermediates in PEM form. The result is empty if this CA
        already trusts the root, or if a path length constraint forbids the bridge.
        """
        if other.root in self.roots:
            return b""
        root, intermediate_count = other.root, len(other.issuers)
        for position, certificate in enumerate((self.certificate, *self.issuers)):
            max_length = chains.path_length(certificate)
            if max_length is not None and max_length < intermediate_count + 1 + position:
                return b""
        bridge = self.key.sign(
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .subject_name(root.subject)
            .issuer_name(self.certificate.subject)
            .public_key(root.public_key())
            .not_valid_before(_utc(now - CLOCK_SKEW))
            .not_valid_after(min(self.expires, root.not_valid_after_utc))
            .add_extension(
                x509.BasicConstraints(ca=True, path_length=chains.path_length(root)), critical=True
            )
            .add_extension(key_usage(ca=True), critical=True)
            .add_extension(_identifier(root), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_identifier(self.certificate)),
                critical=False,
            )
        )
        return chains.to_pem([bridge, *(self.certificate, *self.issuers)[:-1]])


@lru_cache(maxsize=16)
def _identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _builder(
    key: PublicKey, start: datetime, end: datetime, signer: x509.SubjectKeyIdentifier
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .public_key(key)
        .not_valid_before(_utc(start))
        .not_valid_after(_utc(end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )


def _utc(time: datetime) -> datetime:
    """Convert to UTC and whole seconds, as in certificates. Raise ValueError for a naive time."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return time.astimezone(UTC).replace(microsecond=0)


@cache
def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return the key usage of a CA or of a leaf."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def subject_alternative_name(identity: str) -> x509.SubjectAlternativeName:
    """Return the names of a workload's certificate: its SPIFFE ID."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])


def server_name(name: str) -> x509.GeneralName:
    """Return a name in a server's certificate. Raise IdentityError if it is no DNS name or IP address."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS_NAME.fullmatch(name):
            raise IdentityError(f"{name!r} is neither a lower-case DNS name nor an IP address") from None
        return x509.DNSName(name)
