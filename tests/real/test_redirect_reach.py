"""`xds reach` predicts every hop of a mesh; real requests on every hop verify it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, HTTP2, MTLS, PLAINTEXT, TCP
from tests.support.manifests import destination_rule, peer_authentication, policy
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORTS = {"http-web": (80, 8080), "grpc": (81, 8081), "tcp-lines": (90, 9000), "web": (83, 8083)}
TWO_PORTS = {name: PORTS[name] for name in ("http-web", "tcp-lines")}
SAME_PORTS = {"http-web": (8080, 8080), "tcp-lines": (9000, 9000)}
TRAFFIC = {80: HTTP1, 81: HTTP2, 83: HTTP1, 90: TCP, 8080: HTTP1, 9000: TCP}
AT_ONCE = 12
ENOUGH = 60
"""Number of requests that reach every endpoint of a service."""

PODS: dict[str, tuple[bool, Mapping[str, str]]] = {
    "client.apps": (True, {}),
    "outsider.outside": (False, {}),
    "web.auto": (True, {"app": "web"}),
    "bare.auto": (False, {"app": "bare"}),
    "web-0.strict": (True, {"app": "web", "number": "0"}),
    "web-1.strict": (False, {"app": "web", "number": "1"}),
    "web.ports": (True, {"app": "web"}),
    "web.alpha": (True, {"app": "web"}),
    "other.alpha": (True, {"app": "other"}),
}
SERVICES: dict[str, tuple[Mapping[str, tuple[int, int]], Mapping[str, str]]] = {
    "web.auto": (PORTS, {"app": "web"}),
    "bare.auto": (PORTS, {"app": "bare"}),
    "nobody.auto": (TWO_PORTS, {"app": "nobody"}),
    "web.strict": (PORTS, {"app": "web"}),
    "headless.strict": (SAME_PORTS, {"app": "web"}),
    "web.ports": (PORTS, {"app": "web"}),
    "web.alpha": (PORTS, {"app": "web"}),
    "other.alpha": (PORTS, {"app": "other"}),
    # More services for the same pods: the oldest service's policy decides, and each has its own rule.
    "second.alpha": (TWO_PORTS, {"app": "other"}),
    "plain.auto": (TWO_PORTS, {"app": "web"}),
    "mutual.auto": (TWO_PORTS, {"app": "web"}),
    "simple.auto": (TWO_PORTS, {"app": "web"}),
    "misnamed.auto": (TWO_PORTS, {"app": "web"}),
    "bare-mutual.auto": (TWO_PORTS, {"app": "bare"}),
    "bare-simple.auto": (TWO_PORTS, {"app": "bare"}),
    "plain.strict": (TWO_PORTS, {"number": "0"}),
}
RULES = {
    "plain.auto": "DISABLE",
    "mutual.auto": "ISTIO_MUTUAL",
    "simple.auto": "SIMPLE",
    "misnamed.auto": "ISTIO_MUTUAL",
    "bare-mutual.auto": "ISTIO_MUTUAL",
    "bare-simple.auto": "SIMPLE",
    "plain.strict": "DISABLE",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A mesh with all kinds of services, policies and rules."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            for full, (sidecar, labels) in PODS.items():
                name, namespace = full.split(".")
                pod = mesh.pod(name, namespace, sidecar=sidecar, labels=labels or {"app": name})
                await mesh.serve(pod, http=(8080, 8081, 8083), lines=(9000,))
            for full, (ports, selector) in SERVICES.items():
                name, namespace = full.split(".")
                mesh.service(name, namespace, ports, selector=selector, headless=ports is SAME_PORTS)
            for full, mode in RULES.items():
                name, namespace = full.split(".")
                rule = destination_rule(name, namespace, name, mode)
                if name == "misnamed":
                    rule["spec"]["trafficPolicy"]["tls"]["subjectAltNames"] = [
                        "spiffe://cluster.local/ns/a/sa/b"
                    ]
                mesh.apply(rule)
            mesh.apply(
                peer_authentication("strict", "STRICT"),
                peer_authentication(
                    "ports", "DISABLE", selector={"app": "web"}, ports={8080: "STRICT", 8083: "PERMISSIVE"}
                ),
                policy("default", "alpha", "STRICT"),
                policy("other", "alpha", None, "other"),
            )
            await mesh.start()
            yield mesh


class Hop(NamedTuple):
    """A client and its destination."""

    client: str
    host: str
    port: int


async def test_traffic_on_every_hop_matches_reach(mesh):
    predicted: dict[Hop, set[tuple[str, str]]] = defaultdict(set)
    for row in await mesh.reach():
        service, (address, _, number) = row["service"], (row["address"] or "").rpartition(":")
        if not service.startswith("headless."):
            hop = Hop(row["client"], service, row["port"])
        elif row["client"] == row["endpoint"]:
            continue  # its own address is nobody's business but the application's
        else:
            hop = Hop(row["client"], address, int(number))
        answers = (row["outcome"], "" if row["outcome"] == FAILS else row["endpoint"])
        predicted[hop].add(answers)
    # The mesh has every possible result and every client.
    assert Counter(how for ways in predicted.values() for how, _ in ways).keys() == {MTLS, PLAINTEXT, FAILS}
    assert {hop.client for hop in predicted} == set(PODS)
    assert {hop.host for hop in predicted} >= set(SERVICES) - {"headless.strict"}

    turn = asyncio.Semaphore(AT_ONCE)
    # Clients that take turns with a service could each get the same endpoint all the time.
    alone: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def real(hop: Hop) -> set[tuple[str, str]]:
        seen: set[tuple[str, str]] = set()
        async with alone[hop.host, hop.port], turn:
            for _ in range(ENOUGH if len(predicted[hop]) > 1 else 1):
                exchange = await mesh.exchange(TRAFFIC[hop.port], hop.client, hop.host, hop.port)
                seen.add((exchange.how, exchange.pod))
                if seen == predicted[hop] or not seen <= predicted[hop]:
                    break
        return seen

    happened = dict(zip(predicted, await asyncio.gather(*map(real, predicted)), strict=True))

    wrong = {hop: (predicted[hop], seen) for hop, seen in happened.items() if seen != predicted[hop]}
    assert not wrong
