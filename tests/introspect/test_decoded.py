"""Answers decode equally with our classes, other generated classes, and grpcurl."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc.aio
import pytest

from tests.golden.cases import CASES, load
from tests.introspect.grpcurl import call
from tests.peers.xdsprotos import Codec
from tests.protocol.stream import NODE
from tests.server.proxies import DELTA_REQUEST, REQUEST, OneForAll
from xds.codec import to_dict
from xds.introspect import Introspection
from xds.mesh.envoy.translate import translate
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import roots_secret
from xds.protocol.session import Session, Variant
from xds.server import ADS, XdsServer
from xds.snapshot import CLUSTER, LISTENER, SECRET, ResourceSet, Snapshot

PACKAGE = "envoy.service.discovery.v3"
RESPONSES = {
    Variant.SOTW: f"{PACKAGE}.DiscoveryResponse",
    Variant.DELTA: f"{PACKAGE}.DeltaDiscoveryResponse",
}
METHODS = {Variant.SOTW: "StreamAggregatedResources", Variant.DELTA: "DeltaAggregatedResources"}
ROOT = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
ROOTS = roots_secret([ROOT.root_pem])


@pytest.fixture(scope="module")
def codec():
    with Codec() as codec:
        yield codec


def snapshots(case) -> list[Snapshot]:
    """Resources of one pod of each application, of all served types."""
    mesh = load(case)
    pods = {pod.meta.labels["app"]: pod for pod in mesh.pods() if pod.has_sidecar}
    found = [translate(mesh, pod) for pod in pods.values()]
    return [Snapshot({**snapshot.types, SECRET: ResourceSet([ROOTS])}) for snapshot in found]


def requests(variant: Variant, snapshot: Snapshot) -> list[dict[str, object]]:
    """Subscribe to existing and missing resources."""
    asked: list[dict[str, object]] = []
    for type_url, resources in snapshot.types.items():
        names = [] if type_url in {CLUSTER, LISTENER} else [*resources, "missing"]
        field = "resource_names" if variant is Variant.SOTW else "resource_names_subscribe"
        asked.append({"type_url": type_url, field: names})
    asked[0]["node"] = {"id": NODE}
    return asked


@pytest.mark.parametrize("case", CASES)
def test_answers_decode_equally_with_other_codecs(case, variant, codec):
    request = REQUEST if variant is Variant.SOTW else DELTA_REQUEST
    for snapshot in snapshots(case):
        kinds = set()
        session = Session(variant, identifier="xds-test")
        session.serve(snapshot)
        for asked in requests(variant, snapshot):
            session.receive(request(**asked).SerializeToString(), 0)
        session.expect_no_acks()
        while (body := session.next(0)) is not None:
            ours = to_dict(RESPONSES[variant], body)
            assert codec.decode(RESPONSES[variant], body) == ours
            assert ours["resources"]
            kinds.add(ours["type_url"])
        assert kinds == {*snapshot.types}


@pytest.mark.parametrize("case", [case for case in CASES if case.id in {"seed-2-strict", "other-tls"}])
async def test_grpcurl_output_equals_other_codecs(case, variant, codec):
    snapshot = snapshots(case)[0]
    asked = requests(variant, snapshot)
    server = XdsServer(OneForAll(snapshot), "127.0.0.1:0", grace=0.2, added=[Introspection()])
    await server.start()
    name = RESPONSES[variant]
    try:
        target = f"127.0.0.1:{server.port}"
        shown = await call(target, f"{ADS}/{METHODS[variant]}", *asked)
        async with grpc.aio.insecure_channel(target) as channel:
            encode = REQUEST if variant is Variant.SOTW else DELTA_REQUEST
            bodies = [encode(**each).SerializeToString() for each in asked]
            raw = [body async for body in channel.stream_stream(f"/{ADS}/{METHODS[variant]}")(iter(bodies))]
    finally:
        await server.stop()
    # Encode grpcurl's output without our descriptors.
    read = [codec.decode(name, codec.encode(name, response)) for response in shown]
    wanted = [codec.decode(name, body) for body in raw]
    by_type = {response["type_url"]: response | {"nonce": ""} for response in wanted}
    assert {response["type_url"]: response | {"nonce": ""} for response in read} == by_type
    assert len(read) == len(wanted) == len(snapshot.types)
