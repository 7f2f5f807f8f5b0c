"""Private keys that do not leak through repr, copies or pickles."""

from __future__ import annotations

from typing import NoReturn, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_Private: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SUPPORTED_KEYS = "EC P-256, EC P-384 or RSA with 2048 bits or more"
"""Supported keys of an imported CA. Generated keys are EC P-256."""


class IdentityError(ValueError):
    """A key or certificate cannot be used; the text has the reason."""


class PrivateKey:
    """Private key of a certificate. Never log the result of `to_pem`."""

    __slots__ = ("_key",)

    def __init__(self, key: _Private) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        """Generate an EC P-256 key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        """Read a PEM key. Raise IdentityError, without the key, if it is unsupported."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except TypeError:
            raise IdentityError(
                "the private key is encrypted with a password: store it without one"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise IdentityError("this is not a PEM private key") from None
        if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) and is_supported(key.public_key()):
            return cls(key)
        raise IdentityError(f"the private key is unsupported; supported: {SUPPORTED_KEYS}")

    def to_pem(self) -> bytes:
        """Return the unencrypted key in PEM form (PKCS #8)."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_key(self) -> PublicKey:
        """Public key."""
        return self._key.public_key()

    def sign(self, certificate: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate."""
        is_p384 = isinstance(self._key, ec.EllipticCurvePrivateKey) and self._key.key_size > 256
        return certificate.sign(self._key, hashes.SHA384() if is_p384 else hashes.SHA256())

    def sign_request(self, request: x509.CertificateSigningRequestBuilder) -> bytes:
        """Sign a certificate signing request. Return it in PEM form."""
        return request.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def __repr__(self) -> str:
        return "<PrivateKey: hidden>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key cannot be copied or pickled")


def is_supported(key: object) -> bool:
    """Return whether a CA may have this public key."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048
