"""Replicas read observed traffic from each other over mutual TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from tests.server.doors import CA, DENIED, FOREIGN, SLEEP, TRUST_DOMAINS, UNPROVEN, issued, judge
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.controlplane import replica_traffic, replicas_service
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.replica_traffic import WATCH, ReplicaTraffic
from xds.mesh.controlplane.replicas_service import ReplicasService
from xds.mesh.controlplane.traffic_reports import TrafficReports
from xds.mesh.controlplane.traffic_service import TrafficService
from xds.mesh.identity.auth import AdminAuthorizer, Authentication
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.server_tls import ServerCertificate, Trust, service_names
from xds.mesh.kube.peers import Peers
from xds.mesh.observe.edges import Client, Denial, Edge, EdgeKey, Reporter, Target, TrafficMode
from xds.mesh.observe.merged import Missing
from xds.mesh.observe.replica_codec import decode_edge, encode_edge
from xds.mesh.v1 import replicas_pb2, traffic_pb2
from xds.server import XdsServer

OWN = IdentityPattern("istio-system", "xds")
OWN_ID = "spiffe://cluster.local/ns/istio-system/sa/xds"
WEB = Target("shop", "web", 80)
DAY = 86400.0
WITHIN = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update and retry often."""
    monkeypatch.setattr(replicas_service, "UPDATE_INTERVAL", 0.05)
    monkeypatch.setattr(replica_traffic, "POLL_INTERVAL", 0.02)
    monkeypatch.setattr(replica_traffic, "RETRY_DELAYS", (0.02, 0.1))


@dataclass
class Leases:
    """The Leases, as a replica reads them."""

    replica: str
    found: dict[str, str] = field(default_factory=dict)
    """Addresses of the replicas that are running."""
    isolated: bool = False

    def peer_addresses(self, _: float) -> dict[str, str]:
        return {name: address for name, address in self.found.items() if name != self.replica}

    def is_isolated(self, _: float) -> bool:
        return self.isolated

    def publish_address(self, address: str) -> None:
        self.found[self.replica] = address


@dataclass
class Replica:
    leases: Leases
    traffic: ReplicaTraffic
    service: TrafficService
    server: XdsServer

    def report(
        self,
        client: str,
        requests: int,
        mode: TrafficMode = TrafficMode.MTLS,
        source=Reporter.CLIENT,
        ago: float = 0.0,
    ) -> None:
        """Let a sidecar of this replica report requests."""
        self.traffic.reports.traffic.add(
            EdgeKey(Client("full", client), WEB, mode),
            source,
            ("full", f"{client}-1"),
            requests=requests,
            now=time.time() - ago,
        )

    def seen(self) -> dict[str, int]:
        """Return the number of requests of each client that this replica shows."""
        return {key.client.name: edge.day(time.time()) for key, edge in self.service.traffic.edges()}

    def missing(self) -> list[str]:
        return [missing.replica for missing in self.traffic.missing()]

    async def shows(self, **expected: int) -> None:
        await eventually(lambda: self.seen() == expected, timeout=WITHIN, what=f"{expected} is shown")

    @asynccontextmanager
    async def channel(self, credentials: grpc.ChannelCredentials) -> AsyncIterator[grpc.aio.Channel]:
        name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
        target = f"127.0.0.1:{self.server.secure_ports[0]}"
        async with grpc.aio.secure_channel(target, credentials, [name]) as channel:
            yield channel


@asynccontextmanager
async def running(
    name: str,
    addresses: dict[str, str],
    *,
    identity: IdentityPattern | None = OWN,
    ca: Authority = CA,
    admitted: Iterable[IdentityPattern] = (OWN,),
) -> AsyncIterator[Replica]:
    """Run a replica that publishes its address."""
    controller, leases = Controller(CA), Leases(name, addresses)
    reports = TrafficReports(controller)
    # The roots are the mesh's, also if the certificate is of another CA.
    authorities = Authorities(authority=ca, retired=(CA.root,))
    access = Peers(leases, "istio-system", identity, lambda: authorities, lambda: "cluster.local")  # type: ignore[arg-type]
    traffic = ReplicaTraffic(reports, access, own_connected=lambda: {("full", f"sleep-{name}")})
    authentication = Authentication(lambda: TRUST_DOMAINS, judge)
    admit = AdminAuthorizer(authentication, tuple(admitted), lambda: TRUST_DOMAINS, denial="is not a replica")
    own = ServerCertificate(service_names("istio-system"), lambda: Trust(CA, CA.root_pem))
    server = XdsServer(
        controller.connections,
        "127.0.0.1:0",
        grace=0.1,
        added=[reports, ReplicasService(traffic, admit)],
        secure=[
            ("127.0.0.1:0", own.credentials(certificate_required=required)) for required in (True, False)
        ],
        authenticate=authentication,
    )
    async with server:
        access.publish(f"127.0.0.1:{server.secure_ports[0]}")
        async with background(traffic.run()):
            yield Replica(leases, traffic, TrafficService(controller, traffic), server)


async def test_all_replicas_show_the_same_traffic_once() -> None:
    addresses: dict[str, str] = {}
    async with running("a", addresses) as a, running("b", addresses) as b:
        a.report("sleep", 5, TrafficMode.PLAINTEXT)
        b.report("sleep", 2, TrafficMode.PLAINTEXT)
        b.report("sleep", 6, TrafficMode.PLAINTEXT, Reporter.SERVER)
        b.report("curl", 3)
        for replica in (a, b):
            await replica.shows(sleep=7, curl=3)
            await eventually(lambda replica=replica: replica.missing() == [], timeout=WITHIN)
        b.report("curl", 4)  # Only the change is sent.
        for replica in (a, b):
            await replica.shows(sleep=7, curl=7)
        assert len(a.traffic.reports.traffic) == 1, "metrics show what this replica's sidecars reported"


async def test_all_replicas_show_the_same_denials() -> None:
    """Older replicas know none, and must not take them for traffic."""
    key = EdgeKey(Client("full", "sleep"), WEB, TrafficMode.PLAINTEXT, Denial("", "GET", "/a", dry_run=True))
    addresses: dict[str, str] = {}
    async with running("a", addresses) as a:
        async with running("b", addresses) as b:
            for number, replica in enumerate((a, b), 1):
                replica.traffic.reports.denials.add(
                    key, Reporter.SERVER, ("full", "sleep-1"), requests=number, now=time.time()
                )
            for replica in (a, b):
                await eventually(lambda replica=replica: denials(replica) == {key: 3}, timeout=WITHIN)
                assert replica.seen() == {}
            (message,) = [edge async for edge in _first_update(b) if edge.denials]
            assert (len(message.denials), len(message.edges)) == (1, 0)
        del addresses["b"]
        async with running("c", addresses) as c:
            await eventually(lambda: denials(c) == {key: 3}, timeout=WITHIN)


def denials(replica: Replica) -> dict[EdgeKey, int]:
    return {key: edge.day(time.time()) for key, edge in replica.service.denials.edges()}


async def _first_update(replica: Replica) -> AsyncIterator[replicas_pb2.ReplicaTraffic]:
    async for message in ReplicasService(replica.traffic, admit=None)._messages():  # type: ignore[arg-type]
        yield message
        if message.complete:
            return


async def test_history_of_a_stopped_replica_reaches_later_ones() -> None:
    addresses: dict[str, str] = {}
    async with running("a", addresses) as a:
        async with running("b", addresses) as b:
            b.traffic.reports._started -= 1000
            since = b.traffic.reports.since
            reported = time.time()
            b.report("old", 3, TrafficMode.PLAINTEXT, Reporter.SERVER, ago=2 * DAY)
            b.report("curl", 3)
            b.traffic.reports.incomplete["full"] = reported
            b.traffic.returned["full", "gone"] = reported
            await a.shows(curl=3)
            both = {("full", "sleep-a"), ("full", "sleep-b")}
            await eventually(lambda: a.traffic.connected == both, timeout=WITHIN)
        del addresses["b"]
        await eventually(lambda: a.traffic.peers.stopped == ["b"], timeout=WITHIN)
        assert a.traffic.connected == {("full", "sleep-a")}
        async with running("c", addresses) as c:
            await c.shows(curl=3)
            (seen,) = (await c.service.observed_for(3 * DAY)).seen
            assert (seen.client.name, seen.by_server) == ("old", True)
            assert seen.last_seen == pytest.approx(reported - 2 * DAY, abs=5)
            # Edges come before the message with the rest.
            await eventually(lambda: c.traffic.incomplete, timeout=WITHIN)
            [(namespace, at)] = c.traffic.incomplete.items()
            assert (namespace, at) == ("full", pytest.approx(reported, abs=5))
            assert c.traffic.returned == {("full", "gone"): pytest.approx(reported, abs=5)}
            await eventually(lambda: c.missing() == a.missing() == [], timeout=WITHIN)
            assert c.traffic.since == pytest.approx(since, abs=1)
        assert a.seen() == {"curl": 3}


async def test_history_is_incomplete_if_a_replica_stops_unread() -> None:
    addresses = {"b": "127.0.0.1:1"}
    async with running("a", addresses) as a:
        started = a.traffic.since
        await eventually(lambda: a.missing() == ["b"], timeout=WITHIN)
        await eventually(lambda: "refused" in a.traffic.missing()[0].reason, timeout=WITHIN)
        del addresses["b"]
        await eventually(lambda: a.missing() == [], timeout=WITHIN)
        assert a.traffic.since > started


async def test_replica_that_does_not_answer_is_missing_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses: dict[str, str] = {}
    async with running("a", addresses) as a:
        addresses["b"] = ""
        await eventually(lambda: a.missing() == ["b"], timeout=WITHIN)
        [missing] = a.service.summary(time.time()).missing_replicas
        assert "--advertise-address" in missing.reason
        async with running("b", addresses) as b:
            b.report("curl", 3)
            await a.shows(curl=3)
            await eventually(lambda: a.missing() == [], timeout=WITHIN)
        monkeypatch.setattr(replica_traffic, "MAX_SILENCE", 0.5)
        await eventually(lambda: a.missing() == ["b"], timeout=WITHIN, what="b has stopped, and is listed")
        assert a.seen() == {"curl": 3}
        a.leases.isolated = True
        assert a.missing() == ["b", ""]


async def test_other_replica_at_the_address_is_not_read() -> None:
    addresses: dict[str, str] = {}
    async with running("b", addresses) as b:
        b.report("curl", 3)
        async with running("a", {"b": "", "x": addresses["b"]}) as a:
            await eventually(
                lambda: any("another replica answers" in missing.reason for missing in a.traffic.missing()),
                timeout=WITHIN,
            )
            assert a.seen() == {}


@pytest.mark.parametrize(
    ("identity", "ca", "reason"),
    [
        (IdentityPattern("full", "sleep"), CA, "service account full/sleep is not a replica"),
        (None, CA, "does not run as a service account"),
        (OWN, FOREIGN, "UNAVAILABLE"),
    ],
    ids=["other account", "unknown account", "foreign CA"],
)
async def test_peer_with_wrong_credentials_is_refused(identity, ca, reason: str) -> None:
    addresses: dict[str, str] = {}
    async with running("b", addresses) as b, running("a", dict(addresses), identity=identity, ca=ca) as a:
        b.report("curl", 3)
        await eventually(
            lambda: any(reason in missing.reason for missing in a.traffic.missing()), timeout=WITHIN
        )
        assert a.seen() == {}


async def status(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Ask for the traffic of a replica. Return the status, or OK if there was a message."""
    call = channel.unary_stream(WATCH)(replicas_pb2.WatchReplicaTrafficRequest().SerializeToString())
    try:
        message = replicas_pb2.ReplicaTraffic.FromString(await call.read())
    except grpc.aio.AioRpcError as error:
        return error.code()
    assert message.replica == "b"
    call.cancel()
    return grpc.StatusCode.OK


async def test_only_the_control_plane_reads_from_a_replica() -> None:
    async with running("b", {}) as b:
        for identity, expected in ((OWN_ID, grpc.StatusCode.OK), (SLEEP, DENIED)):
            chain, key = issued(identity)
            async with b.channel(grpc.ssl_channel_credentials(CA.root_pem, key, chain)) as channel:
                assert await status(channel) is expected
        async with grpc.aio.insecure_channel(f"127.0.0.1:{b.server.port}") as channel:
            assert await status(channel) is DENIED, "local callers in plaintext are not replicas"
        target = f"localhost:{b.server.secure_ports[1]}"
        for token, expected in (("admin", grpc.StatusCode.OK), ("own", DENIED), (None, UNPROVEN)):
            credentials = grpc.ssl_channel_credentials(CA.root_pem)
            if token:
                bearer = grpc.access_token_call_credentials(token)
                credentials = grpc.composite_channel_credentials(credentials, bearer)
            name = ("grpc.ssl_target_name_override", "xds.istio-system.svc")
            async with grpc.aio.secure_channel(target, credentials, [name]) as channel:
                assert await status(channel) is expected, token


async def test_streams_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_service, "MAX_STREAMS", 1)
    async with running("b", {}) as b:
        chain, key = issued(OWN_ID)
        async with b.channel(grpc.ssl_channel_credentials(CA.root_pem, key, chain)) as channel:
            first = channel.unary_stream(WATCH)(b"")
            await first.read()
            assert await status(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
            first.cancel()
            await eventually(lambda: _is_ok(channel), timeout=WITHIN)


async def _is_ok(channel: grpc.aio.Channel) -> bool:
    return await status(channel) is grpc.StatusCode.OK


async def test_malformed_edges_are_dropped_and_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def messages(_: ReplicasService) -> AsyncIterator[replicas_pb2.ReplicaTraffic]:
        now = round(time.time() * 1000)
        message = replicas_pb2.ReplicaTraffic(replica="b", complete=True)
        message.time.FromMilliseconds(now)
        message.since.FromMilliseconds(now)
        good = message.edges.add(
            replica="b",
            edge=traffic_pb2.TrafficEdge(client_namespace="full", client="curl", namespace="shop"),
        )
        good.edge.service, good.edge.port, good.edge.mode = "web", 80, traffic_pb2.TrafficEdge.MTLS
        good.edge.first_seen.FromMilliseconds(now)
        good.edge.last_seen.FromMilliseconds(now)
        good.client.minutes.append(2)
        good.client.tens.append(2)
        own, bad = message.edges.add(), message.edges.add()
        own.CopyFrom(good)
        own.replica = "a"  # A replica does not read its own traffic from others.
        own.client.tens[:] = [100]
        bad.CopyFrom(good)
        bad.edge.port = 70_000
        while True:
            yield message
            await asyncio.sleep(0.02)

    monkeypatch.setattr(ReplicasService, "_messages", messages)
    addresses: dict[str, str] = {}
    with capture_logs() as logged:
        async with running("a", addresses) as a, running("b", addresses):
            await a.shows(curl=2)
            await eventually(lambda: a.traffic.dropped >= 3, timeout=WITHIN)
            await eventually(lambda: a.missing() == [], timeout=WITHIN)
    events = [
        entry
        for entry in logged
        if entry["event"].startswith("dropped malformed") and entry["replica"] == "b"
    ]
    assert [entry["problem"] for entry in events] == ["mode 1 or port 70000 does not exist"]


async def test_missing_names_what_is_unknown() -> None:
    traffic = ReplicaTraffic(TrafficReports(Controller(CA)))
    assert traffic.missing() == []
    alone = Controller(CA, rollout_timeout=None)
    service = TrafficService(alone, ReplicaTraffic(TrafficReports(alone)))
    assert not service.summary(0.0).may_be_on_other_replica
    alone.rollouts.proxies.is_replicated = True
    [missing] = service.summary(0.0).missing_replicas
    assert Missing(missing.replica, missing.reason).reason.endswith("--rollout=gated")


def test_sidecar_that_was_disconnected_for_long_is_remembered() -> None:
    connected = {("shop", "web"), ("shop", "other")}
    traffic = ReplicaTraffic(TrafficReports(Controller(CA)), own_connected=lambda: connected)
    traffic.track_absences(0.0)
    connected.remove(("shop", "web"))
    connected.remove(("shop", "other"))
    traffic.track_absences(1.0)
    connected.add(("shop", "other"))
    traffic.track_absences(31.0)
    connected.add(("shop", "web"))
    traffic.track_absences(90.0)
    assert traffic.returned == {("shop", "web"): 90.0}


@pytest.mark.parametrize(
    "denial",
    [{"path": "/\n"}, {"path": "/" * 551}, {"method": "G\n"}, {"method": "G" * 261}, {"rule": "\x1b"}],
)
def test_malformed_denial_is_dropped(denial) -> None:
    key, edge = (
        EdgeKey(Client("full", "sleep"), WEB, TrafficMode.MTLS, Denial("", "GET", "/")),
        Edge(("a", "b"), 0),
    )
    message = encode_edge("b", key, edge, 0)
    assert decode_edge(message, 0, 0)[1] == key
    message.edge.denial.MergeFrom(traffic_pb2.Denial(**denial))
    with pytest.raises(ValueError, match="characters"):
        decode_edge(message, 0, 0)
