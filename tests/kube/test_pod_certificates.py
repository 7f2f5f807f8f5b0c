"""PodCertificateRequests: how they are read, compared with their pod, and answered."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from xds.mesh.controlplane.certificates import POD_CERTIFICATE_BACKDATE, Certificates
from xds.mesh.envoy.features import ALL_FEATURES
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority
from xds.mesh.identity.external import read_request, signing_request
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.kube.pod_certificates import MARGIN, PodRequest, denied, issued
from xds.mesh.model.objects import MeshConfig, Meta, Pod, Ref
from xds.mesh.sidecar.settings import CREDENTIAL_BUNDLE

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
KEY = PrivateKey.generate()
REQUEST, _ = read_request(signing_request(KEY, IDENTITY))
POD = {
    "metadata": {"name": "web-0", "uid": "1"},
    "spec": {"serviceAccountName": "web", "nodeName": "node1"},
    "status": {"phase": "Pending"},
}


def request(**changes: Any) -> PodRequest:
    spec = {
        "podName": "web-0",
        "podUID": "1",
        "serviceAccountName": "web",
        "nodeName": "node1",
        "maxExpirationSeconds": 86400,
        "stubPKCS10Request": b64encode(REQUEST.public_bytes(Encoding.DER)).decode(),
    }
    status = changes.pop("status", {})
    metadata = {"namespace": "shop", "name": "req-1"}
    return PodRequest.read({"metadata": metadata, "spec": spec | changes, "status": status})


def test_request_is_read() -> None:
    read = request()
    assert read_request(read.pem())[1] == KEY.public_key
    assert (read.is_answered, read.is_annotated) == (False, False)
    assert read.mismatch(POD) == ""


def of_version_3() -> str:
    """Return a request of an unknown version, which the API server accepts."""
    signed = REQUEST.public_bytes(Encoding.DER)
    assert signed.count(b"\x02\x01\x00") == 1
    return b64encode(signed.replace(b"\x02\x01\x00", b"\x02\x01\x02")).decode()


@pytest.mark.parametrize("text", ["", "x", "%%%%", "MAA=", of_version_3()])
def test_malformed_signing_request_is_empty(text: str) -> None:
    assert request(stubPKCS10Request=text).pem() == b""


@pytest.mark.parametrize(
    ("pod", "problem"),
    [
        (None, "pod web-0 does not exist"),
        (POD | {"metadata": {"uid": "2"}}, "the pod UID of pod web-0 is 2, not 1"),
        (
            POD | {"spec": {"serviceAccountName": "admin", "nodeName": "node1"}},
            "the service account of pod web-0 is admin, not web",
        ),
        (POD | {"spec": {"serviceAccountName": "web"}}, "the node of pod web-0 is None, not node1"),
        (POD | {"status": {"phase": "Failed"}}, "pod web-0 has ended: its phase is Failed"),
        ({name: value for name, value in POD.items() if name != "status"}, ""),
    ],
)
def test_request_is_compared_with_its_pod(pod: dict[str, Any] | None, problem: str) -> None:
    assert request().mismatch(pod) == problem


@pytest.mark.parametrize(
    ("lifetime", "ca_lifetime"),
    [(timedelta(hours=1), timedelta(days=90)), (LEAF_LIFETIME, timedelta(days=90)),
     (timedelta(days=90), timedelta(days=90)), (LEAF_LIFETIME, timedelta(hours=2))],
)  # fmt: skip
def test_issued_certificate_satisfies_the_api_server(lifetime: timedelta, ca_lifetime: timedelta) -> None:
    authority = Authority.create(KEY, "cluster.local", NOW, ca_lifetime)
    certificates = Certificates(authority, (), LEAF_LIFETIME, lambda: NOW)
    certificate = certificates.certify_for_kubelet(KEY.public_key, IDENTITY, lifetime)
    status = issued(certificate, NOW)
    start, refresh, end = (
        datetime.fromisoformat(status[name]) for name in ("notBefore", "beginRefreshAt", "notAfter")
    )
    assert start == NOW - POD_CERTIFICATE_BACKDATE
    assert end - start <= min(lifetime, LEAF_LIFETIME)
    assert start + MARGIN <= refresh <= end - MARGIN
    read = request(status=status)
    assert (read.is_answered, read.not_after, read.request) == (True, end, b"")


def test_denied_request_is_answered() -> None:
    read = request(status=denied("PodMismatch", "pod web-0 does not exist", NOW))
    assert (read.is_answered, read.not_after) == (True, None)


def test_sidecars_of_all_pods_are_served_the_same_file_and_no_key() -> None:
    authority = Authority.create(KEY, "cluster.local", NOW)
    certificates = Certificates(authority, (), LEAF_LIFETIME, lambda: NOW)
    features = ALL_FEATURES._replace(pod_certificate=True)
    served = [
        certificates.secrets_for(
            Pod(meta=Meta(ref=Ref("Pod", "shop", name))), MeshConfig(), features, with_key=True
        )
        for name in ("web-0", "web-1")
    ]
    assert served[0] is served[1]
    secrets = {each.name: each.body for each in served[0].values()}
    assert secrets.keys() == {"default", "ROOTCA"}
    assert CREDENTIAL_BUNDLE.encode() in secrets["default"]
    assert b"PRIVATE KEY" not in secrets["default"]
