"""Private keys that never show themselves."""

from __future__ import annotations

from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class IdentityError(ValueError):
    """A key or a certificate that cannot be used, and why."""


class PrivateKey:
    """An EC P-256 private key. It signs, and leaves only through `to_pem`, whose result must not be logged."""

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        """Read a key; the errors never quote it."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except TypeError:
            raise IdentityError(
                "the private key is encrypted with a password: store it without one"
            ) from None
        except ValueError:
            raise IdentityError("this is no private key in PEM form") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError("the private key is of another kind than EC P-256")
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the key itself (PKCS #8, not encrypted)."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._key.public_key()

    def sign(self, certificate: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate."""
        return certificate.sign(self._key, hashes.SHA256())

    def __repr__(self) -> str:
        return "<PrivateKey: hidden>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is neither copied nor pickled")
