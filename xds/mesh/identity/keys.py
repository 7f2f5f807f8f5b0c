"""Private keys that never show themselves."""

from __future__ import annotations

from typing import NoReturn, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

Public: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_Private: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SUPPORTED_KEYS = "EC P-256, EC P-384 or RSA with 2048 bits or more"
"""The keys that a certificate authority may have; what we make ourselves is EC P-256."""


class IdentityError(ValueError):
    """A key or a certificate that cannot be used, and why."""


class PrivateKey:
    """A private key. It signs, and leaves only through `to_pem`, whose result must not be logged."""

    __slots__ = ("_key",)

    def __init__(self, key: _Private) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a fresh key: EC P-256."""
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
        except (ValueError, UnsupportedAlgorithm):
            raise IdentityError("this is no private key in PEM form") from None
        if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) and is_supported(key.public_key()):
            return cls(key)
        raise IdentityError(f"the private key is of another kind than {SUPPORTED_KEYS}")

    def to_pem(self) -> bytes:
        """Return the key itself (PKCS #8, not encrypted)."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_key(self) -> Public:
        """The public half."""
        return self._key.public_key()

    def sign(self, certificate: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate."""
        is_p384 = isinstance(self._key, ec.EllipticCurvePrivateKey) and self._key.key_size > 256
        return certificate.sign(self._key, hashes.SHA384() if is_p384 else hashes.SHA256())

    def __repr__(self) -> str:
        return "<PrivateKey: hidden>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is neither copied nor pickled")


def is_supported(key: object) -> bool:
    """Tell whether a public key is of one of the kinds that a certificate authority may have."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048
