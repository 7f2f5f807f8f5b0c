"""What a kubelet asks of the API server."""

from __future__ import annotations

from base64 import b64encode

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from xds.mesh.identity import SIGNER
from xds.mesh.kube.api import Json


def request_for(pod: Json, key: ed25519.Ed25519PrivateKey | None = None) -> Json:
    """Return the PodCertificateRequest for a pod, with a new EC P-256 key or this key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    ours = ec.generate_private_key(ec.SECP256R1())
    request = builder.sign(key, None) if key else builder.sign(ours, hashes.SHA256())
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "PodCertificateRequest",
        "metadata": {"generateName": "req-", "namespace": pod["metadata"]["namespace"]},
        "spec": {
            "signerName": SIGNER,
            "podName": pod["metadata"]["name"],
            "podUID": pod["metadata"]["uid"],
            "serviceAccountName": pod["spec"]["serviceAccountName"],
            "serviceAccountUID": "not compared",
            "nodeName": pod["spec"]["nodeName"],
            "nodeUID": "not compared",
            "maxExpirationSeconds": 86400,
            "stubPKCS10Request": b64encode(request.public_bytes(Encoding.DER)).decode(),
        },
    }
