"""Read and validate imported CA certificates, and build their chain to the root."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from xds.mesh.identity.keys import SUPPORTED_KEYS, IdentityError, is_supported


def read(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read PEM certificates, ignoring other text. Raise IdentityError if there is none, or an invalid one."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        raise IdentityError("this is not a PEM certificate") from None


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates as concatenated PEM."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def bundle(pems: Iterable[bytes]) -> bytes:
    """Return the certificates of several PEM texts without duplicates. Raise IdentityError like `read`."""
    return to_pem(dict.fromkeys(certificate for pem in pems for certificate in read(pem)))


def subject(certificate: x509.Certificate) -> str:
    """Return a certificate's subject for messages; its serial number if the subject is empty."""
    return certificate.subject.rfc4514_string() or f"with serial number {certificate.serial_number:x}"


def require_valid(certificate: x509.Certificate, now: datetime, which: str = "the certificate") -> None:
    """Raise IdentityError if a certificate has expired or is not yet valid."""
    if now >= certificate.not_valid_after_utc:
        raise IdentityError(f"{which} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise IdentityError(
            f"{which} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )


def require_root(certificate: x509.Certificate, which: str = "the certificate") -> None:
    """Raise IdentityError if a certificate is not a self-signed CA certificate."""
    require_ca(certificate, which)
    if not _signed(certificate, certificate):
        raise IdentityError(f"{which} is not a root: it is not signed with its own key")


def require_ca(certificate: x509.Certificate, which: str = "the certificate") -> None:
    """Raise IdentityError if a certificate must not sign others."""
    try:
        public = certificate.public_key()
        extensions = certificate.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise IdentityError(f"{which} is malformed") from None
    if not is_supported(public):
        raise IdentityError(f"{which} has an unsupported key; supported: {SUPPORTED_KEYS}")
    try:
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        raise IdentityError(
            f"{which} is not a CA certificate: it lacks basicConstraints or keyUsage"
        ) from None
    if not is_ca:
        raise IdentityError(f"{which} is not a CA certificate: its basicConstraints say CA:FALSE")
    if not signs:
        raise IdentityError(f"{which} is not a CA certificate: its keyUsage lacks keyCertSign")


def build_path(
    certificate: x509.Certificate,
    intermediates: Iterable[x509.Certificate],
    roots: Iterable[x509.Certificate],
    now: datetime,
    *,
    is_ca: bool = True,
) -> tuple[x509.Certificate, ...]:
    """Return the chain above a certificate, its signer first and the root last.

    `is_ca` is whether the certificate is an intermediate, which counts for path length constraints.

    Unneeded intermediates are ignored. Raises IdentityError if the chain does not lead to a root, or if a CA
    in the chain is invalid (RFC 5280, section 6.1.4).
    """
    chain: list[x509.Certificate] = []
    last, unused, roots = certificate, list(intermediates), tuple(roots)
    while not (chain and chain[-1] in roots):
        signer = next(
            (candidate for candidate in (*roots, *unused) if candidate != last and _signed(last, candidate)),
            None,
        )
        if signer is None:
            raise IdentityError(
                "the chain does not lead to the root: "
                f"none of the certificates signed the certificate {subject(last)}"
            )
        which = f"the certificate {subject(signer)}"
        (require_root if signer in roots else require_ca)(signer, which)
        require_valid(signer, now, which)
        path_below = is_ca + len(chain)
        max_length = path_length(signer)
        if max_length is not None and max_length < path_below:
            raise IdentityError(
                f"{which} allows {max_length} CA certificates below it (pathlen), but there are {path_below}"
            )
        chain.append(signer)
        unused = [certificate for certificate in unused if certificate != signer]
        last = signer
    return tuple(chain)


def path_length(certificate: x509.Certificate) -> int | None:
    """Return the path length constraint of a CA certificate; None if unlimited."""
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length


def _signed(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
