"""The certificates in a report. Keys never are in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from xds.mesh.controlplane.certificates import Certificates
from xds.mesh.identity import chain
from xds.mesh.model.objects import MeshConfig
from xds.mesh.v1 import reports_pb2 as pb

OWN_KEY = "EC P-256, or another key that the sidecar made: EC P-384, or RSA with 2048 to 4096 bits"


def inventory(certificates: Certificates, config: MeshConfig) -> pb.CertificateInventory:
    """Return the CA certificates, and how workloads get theirs."""
    stats = certificates.stats()
    found = pb.CertificateInventory(issued=stats.issued, known=stats.current, key=OWN_KEY)
    if config.sds_socket:
        return pb.CertificateInventory(
            issuer=f"an SDS server at {config.sds_socket}: the control plane does not know its certificates",
            renewal="not known: the SDS server decides",
            key="not known: the SDS server decides",
        )
    if roots := certificates.signer_roots:
        found.issuer = "an external signer (--signer-command)"
        found.renewal = "after half of the lifetime, which the signer decides"
        found.authorities.extend(_authority("trusted", each) for each in chain.read(roots))
        return found
    found.issuer = "the mesh CA, in the control plane"
    found.renewal = "after half of the lifetime; the kubelet decides when for the keys that it keeps"
    found.lifetime.CopyFrom(Duration(seconds=round(certificates.lifetime.total_seconds())))
    found.authorities.extend(_authorities(certificates))
    return found


def _authorities(certificates: Certificates) -> Iterator[pb.CaCertificate]:
    authority, trusted = certificates.trust
    yield _authority("signs", authority.certificate)
    for each in authority.issuers[:-1]:
        yield _authority("intermediate", each)
    for each in chain.read(trusted):
        if each != authority.certificate:
            yield _authority("trusted", each)


def _authority(role: str, certificate: x509.Certificate) -> pb.CaCertificate:
    return pb.CaCertificate(
        role=role,
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        key=_key(certificate),
        signature=getattr(certificate.signature_algorithm_oid, "_name", "")
        or certificate.signature_algorithm_oid.dotted_string,
        not_before=_timestamp(certificate.not_valid_before_utc),
        not_after=_timestamp(certificate.not_valid_after_utc),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}, {key.key_size} bits"
    return f"RSA, {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__


def _timestamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found
