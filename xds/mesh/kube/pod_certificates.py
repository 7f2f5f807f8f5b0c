"""PodCertificateRequests of Kubernetes 1.37: what they ask for, and whether a cluster supports them.

A kubelet makes a key for a pod with a `podCertificate` volume, and creates a request. The API server checks
that the request is signed with this key, and that the pod runs on the kubelet's own node. It accepts one
answer, and checks it as well.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from xds.mesh.identity.ca import Certificate
from xds.mesh.kube.api import Json, KubeApi
from xds.mesh.model.names import join_names, natural_key

GROUP, VERSION, PLURAL = "certificates.k8s.io", "v1", "podcertificaterequests"

MIN_KUBELET = (1, 37)
"""First version of the kubelet that supports `podCertificate` volumes by default."""
MARGIN = timedelta(minutes=10)
"""Minimum time between `beginRefreshAt` and both ends of the validity, which the API server requires."""

UNSUPPORTED_KEY, INVALID_CONFIG = "UnsupportedKeyType", "InvalidUserConfig"
"""Reasons of Kubernetes for requests that a signer denies."""

_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_KUBELET_VERSION = re.compile(r"v(\d+)\.(\d+)")
_MAX_NAMES = 3


class PodRequest(NamedTuple):
    """A PodCertificateRequest."""

    namespace: str
    """Namespace of the request and its pod."""
    name: str
    """Name of the request."""
    pod: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""
    account: str
    """Service account of the pod."""
    node: str
    """Node of the pod."""
    lifetime: timedelta
    """Maximum lifetime of the certificate."""
    request: bytes
    """Certificate signing request in DER form; empty if it is missing or malformed, or has been answered."""
    is_annotated: bool
    """Whether the author of the pod passes annotations to the signer."""
    is_answered: bool
    """Whether a certificate was issued, or the request denied."""
    not_after: datetime | None
    """End of the issued certificate's validity."""

    @classmethod
    def read(cls, obj: Json) -> PodRequest:
        """Read an object that the API server has checked."""
        meta, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
        is_answered = bool(status.get("conditions"))
        not_after = status.get("notAfter")
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            pod=spec["podName"],
            uid=spec["podUID"],
            account=spec["serviceAccountName"],
            node=spec["nodeName"],
            lifetime=timedelta(seconds=spec["maxExpirationSeconds"]),
            request=b"" if is_answered else _decoded(spec.get("stubPKCS10Request") or ""),
            is_annotated=bool(spec.get("unverifiedUserAnnotations")),
            is_answered=is_answered,
            not_after=datetime.fromisoformat(not_after) if not_after else None,
        )

    def pem(self) -> bytes:
        """Return the signing request in PEM form; empty if it is malformed."""
        try:
            return x509.load_der_x509_csr(self.request).public_bytes(Encoding.PEM)
        except (ValueError, x509.InvalidVersion):
            return b""

    def mismatch(self, pod: Json | None) -> str:
        """Return how the request differs from its pod in the API server; empty if it does not.

        Args:
            pod: the pod with the request's namespace and name; None if there is none.
        """
        if pod is None:
            return f"pod {self.pod} does not exist"
        spec = pod["spec"]
        expected = {
            "pod UID": (self.uid, pod["metadata"]["uid"]),
            "service account": (self.account, spec.get("serviceAccountName")),
            "node": (self.node, spec.get("nodeName")),
        }
        for name, (requested, real) in expected.items():
            if requested != real:
                return f"the {name} of pod {self.pod} is {real}, not {requested}"
        if (phase := (pod.get("status") or {}).get("phase")) in {"Succeeded", "Failed"}:
            return f"pod {self.pod} has ended: its phase is {phase}"
        return ""


def issued(certificate: Certificate, now: datetime) -> Json:
    """Return the status of a request for which a certificate was issued."""
    earliest, latest = certificate.not_before + MARGIN, certificate.not_after - MARGIN
    return _condition("Issued", "Signed", f"signed for {certificate.identity}", now) | {
        "certificateChain": certificate.chain.decode(),
        "notBefore": _time(certificate.not_before),
        "beginRefreshAt": _time(max(earliest, min(certificate.renew_at, latest))),
        "notAfter": _time(certificate.not_after),
    }


def denied(reason: str, message: str, now: datetime) -> Json:
    """Return the status of a denied request. The kubelet does not repeat it, and the pod does not start."""
    return _condition("Denied", reason, message, now)


async def why_unsupported(api: KubeApi) -> str:
    """Return why the kubelets of a cluster cannot keep certificates; empty if they can. Raises KubeError."""
    served = await api.get(f"/apis/{GROUP}/{VERSION}")
    if not any(each["name"] == PLURAL for each in served.get("resources") or ()):
        return f"the API server does not serve {PLURAL}.{GROUP}/{VERSION}"
    # A table with the versions is 50 times smaller than the objects.
    query = {"resourceVersion": "0", "includeObject": "None"}
    table = await api.call("GET", "/api/v1/nodes", query=query, accept=_TABLE)
    columns = [column["name"] for column in table.get("columnDefinitions") or ()]
    if not {"Name", "Version"} <= {*columns}:
        return f"{api.server} does not send the versions of nodes as a table"
    name, version = columns.index("Name"), columns.index("Version")
    nodes = {str(row["cells"][name]): str(row["cells"][version]) for row in table.get("rows") or ()}
    if not nodes:
        return "the cluster has no nodes"
    old = [f"{node} ({text or 'unknown'})" for node, text in nodes.items() if not _is_supported(text)]
    if not old:
        return ""
    named, needed = join_names(sorted(old, key=natural_key), _MAX_NAMES), ".".join(map(str, MIN_KUBELET))
    return f"nodes older than Kubernetes {needed}: {named}"


def _is_supported(version: str) -> bool:
    match = _KUBELET_VERSION.match(version)
    return match is not None and (int(match[1]), int(match[2])) >= MIN_KUBELET


def _condition(kind: str, reason: str, message: str, now: datetime) -> Json:
    condition = {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": _time(now),
    }
    return {"conditions": [condition]}


def _time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text)
    except binascii.Error:
        return b""
