"""A certificate authority for SPIFFE identities, after the X.509-SVID standard.

Pure, given a key and the time: nothing here reads a clock or a file. The root and every leaf are EC P-256.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds.identity.keys import IdentityError, PrivateKey

ROOT_LIFETIME = timedelta(days=3652)
LEAF_LIFETIME = timedelta(hours=24)

CLOCK_SKEW = timedelta(minutes=5)
"""How far a certificate's validity reaches back, for peers whose clock is behind ours."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+"
_IDENTITY = re.compile(rf"spiffe://{_TRUST_DOMAIN.pattern}/ns/{_SEGMENT}/sa/{_SEGMENT}")
_IDENTITY_BYTES = 2048  # the standard's limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A workload's certificate, with its key."""

    identity: str
    """The SPIFFE id."""
    chain: bytes
    """The certificate in PEM form. The root that signed it is not in it: peers have that already."""
    key: PrivateKey
    fingerprint: str
    """SHA-256 of the certificate, in hex digits."""
    not_before: datetime
    not_after: datetime
    renew_at: datetime
    """When to ask for the next one: half of its life is left then."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A root certificate and its key: issues leaves."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def create(
        cls, key: PrivateKey, trust_domain: str, now: datetime, lifetime: timedelta = ROOT_LIFETIME
    ) -> Authority:
        """Make a self-signed root for a key."""
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise IdentityError(
                f"{trust_domain!r} is no trust domain: lower-case letters, digits, '.', '-' and '_'"
            )
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
                x509.NameAttribute(NameOID.COMMON_NAME, "xds root"),
            ]
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
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
    def load(cls, certificate: bytes, key: bytes, now: datetime) -> Authority:
        """Read a root and its key from PEM, and say what is wrong if they are not fit to sign with."""
        try:
            (root, *others) = x509.load_pem_x509_certificates(certificate)
        except ValueError:
            raise IdentityError("this is no certificate in PEM form") from None
        if others:
            raise IdentityError(f"there are {1 + len(others)} certificates: put the root alone there")
        _require_root(root)
        private = PrivateKey.from_pem(key)
        if root.public_key() != private.public_key:
            raise IdentityError("the private key is not the certificate's: they are of two different roots")
        if now >= root.not_valid_after_utc:
            raise IdentityError(f"the certificate expired at {root.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if now < root.not_valid_before_utc:
            raise IdentityError(
                f"the certificate is not valid before {root.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            )
        return cls(root, private)

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate in PEM form: what peers trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: str, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> Leaf:
        """Issue a certificate for `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, with a fresh key."""
        if not _IDENTITY.fullmatch(identity) or len(identity) > _IDENTITY_BYTES:
            raise IdentityError(f"{identity!r} is no SPIFFE id of a service account")
        if now >= self.certificate.not_valid_after_utc:
            raise IdentityError(
                f"the root certificate expired at {self.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        key = PrivateKey.generate()
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        certificate = self.key.sign(
            _builder(key, now, end, self._identifier)
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(_uri(identity), critical=True)  # RFC 5280: critical when the subject is empty
        )
        return Leaf(
            identity=identity,
            chain=certificate.public_bytes(serialization.Encoding.PEM),
            key=key,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            # Not half of what the root leaves: towards the root's end, that would be ever sooner.
            renew_at=min(now + lifetime / 2, certificate.not_valid_after_utc),
        )

    @property
    def _identifier(self) -> x509.SubjectKeyIdentifier:
        try:
            return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key)


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


def _require_root(certificate: x509.Certificate) -> None:
    try:
        public = certificate.public_key()
        extensions = certificate.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise IdentityError("the certificate is malformed") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise IdentityError("the certificate's key is of another kind than EC P-256")
    try:
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        raise IdentityError("the certificate is not a CA's: it lacks basicConstraints or keyUsage") from None
    if not is_ca:
        raise IdentityError("the certificate is not a CA's: its basicConstraints say CA:FALSE")
    if not signs:
        raise IdentityError("the certificate is not a CA's: its keyUsage lacks keyCertSign")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise IdentityError("the certificate is not a root: it is not signed with its own key") from None
