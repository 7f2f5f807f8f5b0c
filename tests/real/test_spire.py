"""Certificates from SPIRE's agent: sidecars request them from its socket, and none from the control plane.

The agent here is our own SDS server on a Unix socket. It identifies sidecars by node id, where SPIRE inspects
the process.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.controlplane import xds
from tests.support.local import LocalMesh, LocalPod
from tests.support.waiting import eventually
from xds.mesh.envoy.names import NodeId
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import certificate_secret, roots_secret
from xds.server import XdsServer
from xds.snapshot import CLUSTER, SECRET
from xds.store import Store

pytestmark = pytest.mark.envoy

HTTP = 8080


class Agent:
    """A stand-in for SPIRE's agent."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.authority = Authority.create(PrivateKey.generate(), "cluster.local", now)
        self.store = Store()
        self.store.set(roots_secret([self.authority.root_pem]))

    def issue(self, pod: LocalPod) -> int:
        """Give a pod's sidecar a certificate, and return its serial number."""
        identity = f"spiffe://cluster.local/ns/{pod.namespace}/sa/{pod.said['account']}"
        leaf = self.authority.issue(identity, datetime.now(UTC))
        node = NodeId(pod.address, pod.name, pod.namespace)
        self.store.set(certificate_secret(leaf), node=str(node))
        return x509.load_pem_x509_certificate(leaf.chain).serial_number


def with_socket(mesh: LocalMesh, option: str) -> LocalMesh:
    """Make the control plane use this option instead of the setting, which only the test's sidecars read."""
    mesh.plane._options = (option,)
    return mesh


async def serials(mesh: LocalMesh, pod: LocalPod) -> tuple[set[int], set[int]]:
    """Return the serial numbers of a sidecar's trusted roots and of its certificates."""
    certificates = (await mesh.sidecar(pod).admin.json("/certs"))["certificates"]
    return tuple(  # type: ignore[return-value]
        {int(cert["serial_number"], 16) for certificate in certificates for cert in certificate.get(kind, ())}
        for kind in ("ca_cert", "cert_chain")
    )


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_sidecars_use_certificates_from_the_sds_socket(loopback, tmp_path: Path, *, sotw: bool) -> None:
    socket = tmp_path / "agent.sock"
    agent = Agent()
    option = f"meshConfig.sdsUdsPath=unix://{socket}"
    async with (
        XdsServer(agent.store, f"unix:{socket}"),
        with_socket(
            LocalMesh(loopback, tmp_path, sotw=sotw, settings=[option]), f"--sds=unix://{socket}"
        ) as mesh,
    ):
        client = mesh.pod("client", "ns")
        server = mesh.pod("web", "ns")
        first = {pod.name: agent.issue(pod) for pod in (client, server)}
        await mesh.serve(server, http=(HTTP,))
        mesh.service("web", "ns", {"http": (80, HTTP)})
        await mesh.start(client, server)

        answer = await client.client.get("http://web:80/headers")
        assert answer.ok, answer
        assert answer.identity == "spiffe://cluster.local/ns/ns/sa/client"
        root = agent.authority.certificate.serial_number
        for pod in (client, server):
            trusted, shown = await serials(mesh, pod)
            assert trusted == {root}
            assert shown == {first[pod.name]}

        # The agent renews a certificate.
        second = {pod.name: agent.issue(pod) for pod in (client, server)}

        async def renewed() -> bool:
            return all([(await serials(mesh, pod))[1] == {second[pod.name]} for pod in (client, server)])

        await eventually(renewed, what="the renewed certificate is used")
        assert (await client.client.get("http://web:80/headers")).identity

        # Everything else comes from the control plane.
        status = json.loads(await xds("status", f"--xds-address={mesh.plane.address}", "-o", "json"))
        types = {
            kind["typeUrl"]
            for proxy in status["proxies"]
            for stream in proxy["streams"]
            for kind in stream["types"]
        }
        assert CLUSTER in types
        assert SECRET not in types
