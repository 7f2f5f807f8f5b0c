"""A certificate authority for SPIFFE identities, after the X.509-SVID standard.

Pure, given a key and the time: nothing here reads a clock or a file. What is made here is EC P-256; a CA that somebody
else made may have an RSA key, and a root above it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds.mesh.identity import chain as chains
from xds.mesh.identity.keys import IdentityError, PrivateKey

ROOT_LIFETIME = timedelta(days=3652)
LEAF_LIFETIME = timedelta(hours=24)

CLOCK_SKEW = timedelta(minutes=5)
"""How far a certificate's validity reaches back, for peers whose clock is behind ours."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_IDENTITY = re.compile(rf"spiffe://{_TRUST_DOMAIN.pattern}/ns/{_SEGMENT}/sa/{_SEGMENT}")
_IDENTITY_BYTES = 2048  # the standard's limit
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A workload's or a server's certificate, with its key."""

    identity: str
    """The SPIFFE id, or the first name of a server."""
    chain: bytes
    """The certificate in PEM form, and the intermediates above it. The root is not in it: peers have that already."""
    key: PrivateKey
    fingerprint: str
    """SHA-256 of the certificate, in hex digits."""
    not_before: datetime
    not_after: datetime
    renew_at: datetime
    """When to ask for the next one: half of its life is left then."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA's certificate and its key: issues leaves."""

    certificate: x509.Certificate
    """The one that it signs with: a root's, or an intermediate's."""
    key: PrivateKey
    issuers: tuple[x509.Certificate, ...] = ()
    """What is above an intermediate, its signer first and the root last; nothing above a root."""
    other_roots: tuple[x509.Certificate, ...] = ()
    """Other roots that came with it: peers trust them as well."""

    @classmethod
    def create(
        cls, key: PrivateKey, trust_domain: str, now: datetime, lifetime: timedelta = ROOT_LIFETIME
    ) -> Authority:
        """Make a self-signed root for a key."""
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise IdentityError(
                f"{trust_domain!r} is no trust domain: lower-case letters, digits, '.', '-' and '_'"
            )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
        # No two roots have one name: who looks for a certificate's signer looks by name.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
                x509.NameAttribute(NameOID.COMMON_NAME, f"xds root {identifier.digest.hex()[:16]}"),
            ]
        )
        certificate = key.sign(
            _builder(key, now, now + lifetime, identifier)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(_uri(f"spiffe://{trust_domain}"), critical=False)
        )
        return cls(certificate, key)

    @classmethod
    def load(
        cls, certificate: bytes, key: bytes, now: datetime, *, root: bytes = b"", chain: bytes = b""
    ) -> Authority:
        """Read a CA from PEM, and say what is wrong if it is not fit to sign with.

        Args:
            certificate: the CA's own; without `root` it has to be a root.
            key: its key.
            now: the time.
            root: what peers trust. Of several, one that the certificate leads to becomes the CA's root; the others are beside it.
            chain: certificates between the two; the two may be in it.
        """
        (own, *others) = chains.read(certificate)
        if others and not root:
            raise IdentityError(f"there are {1 + len(others)} certificates: put the root alone there")
        private = PrivateKey.from_pem(key)
        roots = tuple(dict.fromkeys(chains.read(root))) if root else (own,)
        (chains.require_root if own in roots else chains.require_ca)(own)
        if own.public_key() != private.public_key:
            raise IdentityError("the private key is not the certificate's: they are of two different CAs")
        chains.require_valid(own, now)
        between = (*others, *(chains.read(chain) if chain.strip() else ()))
        issuers = () if own in roots else chains.build_path(own, between, roots, now)
        authority = cls(own, private, issuers)
        return replace(authority, other_roots=tuple(other for other in roots if other != authority.root))

    @property
    def root(self) -> x509.Certificate:
        """What peers trust."""
        return self.issuers[-1] if self.issuers else self.certificate

    @property
    def root_pem(self) -> bytes:
        """The root certificate in PEM form."""
        return chains.to_pem([self.root])

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All that peers trust: its own root, and those beside it."""
        return (self.root, *self.other_roots)

    @property
    def trust_domain(self) -> str:
        """The trust domain that the root says it is for; empty if it says none."""
        try:
            names = self.root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ""
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return uris[0].removeprefix("spiffe://") if uris and uris[0].startswith("spiffe://") else ""

    @property
    def certificate_pem(self) -> bytes:
        """The CA's own certificate in PEM form."""
        return chains.to_pem([self.certificate])

    @property
    def expires(self) -> datetime:
        """When the first of the certificates up to the root expires: nothing issued here lives longer."""
        return min(certificate.not_valid_after_utc for certificate in (self.certificate, *self.issuers))

    def issue(self, identity: str, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> Leaf:
        """Issue a certificate for `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, with a fresh key.

        It is good for both sides of a connection: a sidecar's, or the control plane's own.
        """
        if not _IDENTITY.fullmatch(identity) or len(identity) > _IDENTITY_BYTES:
            raise IdentityError(f"{identity!r} is no SPIFFE id of a service account")
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(identity, _uri(identity), usage, now, lifetime)

    def issue_server(self, names: Sequence[str], now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> Leaf:
        """Issue a TLS server's certificate for DNS names (or IP addresses), with a fresh key."""
        if not names:
            raise IdentityError("a server's certificate needs a name")
        alternatives = x509.SubjectAlternativeName([_server_name(name) for name in names])
        return self._issue(names[0], alternatives, [ExtendedKeyUsageOID.SERVER_AUTH], now, lifetime)

    def _issue(
        self,
        identity: str,
        names: x509.SubjectAlternativeName,
        usage: Sequence[x509.ObjectIdentifier],
        now: datetime,
        lifetime: timedelta,
    ) -> Leaf:
        if now >= self.expires:
            which = "root" if now >= self.root.not_valid_after_utc else "CA's"
            raise IdentityError(f"the {which} certificate expired at {self.expires:%Y-%m-%d %H:%M} UTC")
        key = PrivateKey.generate()
        end = min(now + lifetime, self.expires)
        certificate = self.key.sign(
            _builder(key, now, end, _identifier(self.certificate))
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(names, critical=True)  # RFC 5280: critical when the subject is empty
        )
        intermediates = (self.certificate, *self.issuers)[:-1]
        return Leaf(
            identity=identity,
            chain=chains.to_pem([certificate, *intermediates]),
            key=key,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            # Not half of what the root leaves: towards the root's end, that would be ever sooner.
            renew_at=min(now + lifetime / 2, certificate.not_valid_after_utc),
        )

    def bridge(self, other: Authority, now: datetime) -> bytes:
        """Certify another CA's root, in PEM form with what is above: who trusts only this one's root then trusts that one's CA.

        Empty if that cannot be: a CA's certificate may say that no other is below it (pathlen).
        """
        if other.root in self.roots:
            return b""
        root, below = other.root, len(other.issuers)
        for position, certificate in enumerate((self.certificate, *self.issuers)):
            allowed = chains.path_length(certificate)
            if allowed is not None and allowed < below + 1 + position:
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
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(_identifier(root), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_identifier(self.certificate)),
                critical=False,
            )
        )
        return chains.to_pem([bridge, *(self.certificate, *self.issuers)[:-1]])


def _identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _builder(
    key: PrivateKey, now: datetime, end: datetime, signer: x509.SubjectKeyIdentifier
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key)
        .not_valid_before(_utc(now - CLOCK_SKEW))
        .not_valid_after(_utc(end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )


def _utc(time: datetime) -> datetime:
    """Whole seconds, as certificates have them, and an error for a time without a zone."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return time.astimezone(UTC).replace(microsecond=0)


def _usage(*, ca: bool) -> x509.KeyUsage:
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


def _uri(identity: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS_NAME.fullmatch(name):
            raise IdentityError(f"{name!r} is no DNS name in lower case, and no address") from None
        return x509.DNSName(name)
