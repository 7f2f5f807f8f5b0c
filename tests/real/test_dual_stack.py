"""Pods with IPv4 and IPv6, and pods with IPv6 only: every mode over both IP versions, with the real Envoy."""

from __future__ import annotations

import sys

import pytest
import pytest_asyncio

from tests.support.apps import EchoApp
from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, TCP
from tests.support.manifests import peer_authentication
from tests.support.mesh import Mesh
from xds.mesh.model.objects import INTERCEPTION_MODE

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "tcp-lines": (90, 9000), "web": (83, 8083), "lines": (93, 9003)}
TRAFFIC = [(HTTP1, 80), (HTTP2, 80), (TCP, 90), (HTTP1, 83), (HTTP2, 83), (TCP, 93)]
NO_SERVICE = 9005
"""A port of every server that no Service targets."""

DUAL, IPV6 = (4, 6), (6,)
CLIENTS = {"dual.clients": DUAL, "ipv6.clients": IPV6}
OUTSIDERS = {"dual.outside": DUAL, "ipv6.outside": IPV6}
SLEEP = "spiffe://cluster.local/ns/clients/sa/sleep"


def slices(mesh: Mesh, name: str, namespace: str) -> list[dict]:
    """Return the EndpointSlices of a Service, one for each IP version, as Kubernetes writes them."""
    (service,) = (s for s in mesh.cluster.services if (s.name, s.namespace) == (name, namespace))
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{version.lower()}",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": version,
            "ports": [{"name": port, "port": target} for port, (_, target) in PORTS.items()],
            "endpoints": [
                {
                    "addresses": [address],
                    "conditions": {"ready": True},
                    "targetRef": {"kind": "Pod", "name": pod.name, "namespace": namespace},
                }
                for pod in service.pods
                for address in pod.addresses
                if (":" in address) == (version == "IPv6")
            ],
        }
        for version in ("IPv4", "IPv6")
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Clients and, in a namespace for each mode, servers, with both IP versions and with IPv6 only."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            for sidecar, pods in ((True, CLIENTS), (False, OUTSIDERS)):
                for pod, families in pods.items():
                    name, namespace = pod.split(".")
                    mesh.pod(name, namespace, account="sleep", sidecar=sidecar, families=families)
            for namespace in ("permissive", "strict", "disable", "legacy"):
                for name, families in (("web", DUAL), ("web6", IPV6)):
                    pod = mesh.pod(name, namespace, sidecar=namespace != "legacy", families=families)
                    mesh.service(name, namespace, PORTS, families=families)
                    await mesh.serve(pod, http=(8080, 8083), lines=(9000, 9003, NO_SERVICE))
                # The endpoints of the other Service come from its selector.
                mesh.apply(*slices(mesh, "web", namespace))
            mesh.service("pods", "strict", PORTS, headless=True, families=DUAL, selector={"app": "web"})
            mesh.apply(peer_authentication("strict", "STRICT"), peer_authentication("disable", "DISABLE"))
            await mesh.start()
            yield mesh


def addresses(mesh: Mesh, client: str, name: str, namespace: str) -> list[str]:
    """Return the clusterIPs of a Service that a client can connect to, as hosts of a URL."""
    (service,) = (s for s in mesh.cluster.services if (s.name, s.namespace) == (name, namespace))
    versions = {":" in address for address in mesh[client].addresses}
    return [in_url(address) for address in service.addresses if (":" in address) in versions]


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize(
    ("namespace", "how"),
    [("permissive", MTLS), ("strict", MTLS), ("disable", PLAINTEXT), ("legacy", PLAINTEXT)],
)
@pytest.mark.parametrize("server", ["web", "web6"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_traffic_from_a_sidecar_is_encrypted_if_possible(mesh, client, server, namespace, how):
    hosts = addresses(mesh, client, server, namespace)
    if hosts:
        hosts.append(f"{server}.{namespace}")
    for host in hosts:
        for what, port in TRAFFIC:
            mesh.wire.forget()

            seen = await mesh.exchange(what, client, host, port)

            assert (seen.how, seen.pod) == (how, f"{server}.{namespace}"), (host, what, port, seen)
            encrypted = any(map(mesh.wire.saw_tls, mesh[f"{server}.{namespace}"].addresses))
            assert encrypted == (how == MTLS)
            if what in (HTTP1, HTTP2):
                assert seen.identity == (SLEEP if how == MTLS else "")


@pytest.mark.parametrize(
    ("namespace", "how"),
    [("permissive", PLAINTEXT), ("strict", FAILS), ("disable", PLAINTEXT), ("legacy", PLAINTEXT)],
)
@pytest.mark.parametrize("server", ["web", "web6"])
@pytest.mark.parametrize("client", OUTSIDERS)
async def test_plaintext_client_is_refused_under_strict(mesh, client, server, namespace, how):
    for host in addresses(mesh, client, server, namespace):
        for what, port in TRAFFIC:
            seen = await mesh.exchange(what, client, host, port)
            assert seen.how == how, (host, what, port, seen)


@pytest.mark.parametrize(("namespace", "how"), [("permissive", PLAINTEXT), ("strict", FAILS)])
async def test_ports_without_a_service_are_protected_too(mesh, namespace, how):
    for address in mesh[f"web.{namespace}"].addresses:
        seen = await mesh.exchange(TCP, "dual.outside", address, NO_SERVICE)
        assert (seen.how, seen.pod) == (how, "" if how == FAILS else f"web.{namespace}"), (address, seen)


async def test_unknown_destinations_pass_through(mesh):
    for address in mesh["web.permissive"].addresses:
        seen = await mesh.exchange(TCP, "dual.clients", address, NO_SERVICE)
        assert (seen.how, seen.pod) == (PLAINTEXT, "web.permissive"), seen


async def test_headless_service_reaches_each_address_of_a_pod(mesh):
    for address in mesh["web.strict"].addresses:
        for what, port in ((HTTP1, 8080), (TCP, 9000)):
            mesh.wire.forget()
            seen = await mesh.exchange(what, "dual.clients", in_url(address), port)
            assert (seen.how, seen.pod) == (MTLS, "web.strict"), (address, seen)
            assert mesh.wire.saw_tls(address)


async def test_pod_calls_itself_over_both_versions(mesh):
    for host in addresses(mesh, "dual.clients", "web", "strict"):
        answer = await mesh["web.strict"].client.get(f"http://{host}/")
        assert answer.pod == "web.strict"


async def test_pod_with_two_addresses_is_one_endpoint(mesh):
    facts = mesh.facts()
    service = facts.service("strict", "web")
    pods = [endpoint.pod.name for endpoint in facts.endpoints(service, service.ports[0])]
    assert pods == ["web"]


async def test_sidecar_without_interception_listens_on_every_address(mesh):
    server = mesh.pod("none", "strict", families=DUAL)
    server.place.run(sys.executable, "-m", "xds", "init", "--undo")
    mesh.write_pod(server, annotations={INTERCEPTION_MODE: "NONE"})
    mesh.service("none", "strict", {"http": (80, 8080)}, families=DUAL)
    await mesh.enter(EchoApp("none.strict", 8080, place=server.place, address="127.0.0.1"))
    await mesh.start()

    for client in CLIENTS:
        seen = await mesh.exchange(HTTP1, client, addresses(mesh, client, "none", "strict")[-1], 80)
        assert (seen.how, seen.pod) == (MTLS, "none.strict"), (client, seen)
    for address in server.addresses:
        seen = await mesh.exchange(HTTP1, "dual.outside", in_url(address), 8080)
        assert seen.how == FAILS, seen


async def test_second_address_is_used_once_it_is_known(mesh):
    server = mesh.pod("late", "strict", families=DUAL)
    mesh.service("late", "strict", PORTS, families=DUAL)
    await mesh.serve(server, http=(8080,), lines=(9000,))
    mesh.write_pod(server, more_addresses=())
    await mesh.start()
    [_, ipv6] = addresses(mesh, "dual.clients", "late", "strict")
    assert (await mesh.exchange(TCP, "dual.clients", ipv6, 90)).how == MTLS  # over IPv4
    # The sidecar does not listen on IPv6.
    assert (await mesh.exchange(TCP, "ipv6.clients", ipv6, 90)).how == FAILS

    mesh.write_pod(server)
    await mesh.settled()

    for client in CLIENTS:
        for what, port in ((HTTP1, 80), (TCP, 90)):
            seen = await mesh.exchange(what, client, ipv6, port)
            assert (seen.how, seen.pod) == (MTLS, "late.strict"), (client, seen)


async def test_localhost_policy_uses_the_version_of_the_pod(mesh):
    mesh.set(inboundTrafficPolicy={"mode": "LOCALHOST"})
    await mesh.settled()
    for name, source in (("web", "127.0.0.1"), ("web6", "::1")):
        for host in addresses(mesh, "dual.clients", name, "strict"):
            answer = await mesh["dual.clients"].client.get(f"http://{host}/")
            assert answer.identity == SLEEP
            assert answer.echo["peer"][0].removeprefix("::ffff:") == source
    mesh.set()
    await mesh.settled()
