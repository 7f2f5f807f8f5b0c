"""A mesh whose proxies ACK late, lose streams and restart.

After every event, one invariant is checked: a request that every policy since the last `settle` lets through
does not fail with the active configurations of its client and server.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from tests.policy.world import HTTP, TCP, peer, pod, rule, service
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, MeshConfig, Mode, Pod, PortKey, Ref, ServedDiff
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.destination import served_client_rule
from xds.mesh.policy.mtls import Send, decide, explicit_tls, sends_mtls, served_mode
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.mesh.rollout.stages import ACCEPTED_SENDS
from xds.mesh.rollout.waits import Wait, port_wait

SERVERS = ("web-1", "web-2")
CLIENTS = ("one", "two")
PORTS = (8080, 9090)
KEYS = tuple((Ref("Pod", "ns", name), port) for name in SERVERS for port in PORTS)
UNREAD = 1.2
"""Seconds that a server may take to classify a new connection."""
DETECTION_TIMEOUT = 1.0
"""Seconds that a listener waits for the client to send first."""
CLUSTERS = ("outbound|80||web.ns.svc.cluster.local", "outbound|90||web.ns.svc.cluster.local")
RULES = (None, "DISABLE", "ISTIO_MUTUAL")


def facts() -> list[Fact]:
    pods = [pod(name, "ns", app="web", group=name) for name in SERVERS]
    return [
        *pods,
        *(pod(name, "clients") for name in CLIENTS),
        service("web", "ns", HTTP, TCP, app="web"),
    ]


@dataclass
class Server:
    generation: int = -1
    """The active generation."""
    modes: dict[int, Mode] = field(default_factory=dict)
    acked: int = -1
    """The generation whose ACK has arrived at the control plane."""
    rejects: bool = False
    connected: bool = True


@dataclass
class Client:
    generation: int = -1
    sends: dict[PortKey, Send] = field(default_factory=dict)
    unclassified: dict[PortKey, tuple[Server, float]] = field(default_factory=dict)
    """Servers of its last plaintext connections, and until when they may classify these."""
    acked: int = -1
    caught_up_at: float = -inf
    """When it stopped using a configuration from an earlier stream."""
    rejects: bool = False
    """Whether it has rejected what it was last served."""
    connected: bool = True


class Proxies:
    """Servers and clients, and a control plane that can restart."""

    def __init__(self, timeout: float | None = 1e9) -> None:
        self.timeout = timeout
        self.now = 0.0
        self.facts: dict[Ref, Fact] = {fact.ref: fact for fact in facts()}
        self.config = MeshConfig()
        self.servers = {name: Server() for name in SERVERS}
        self.clients = {name: Client() for name in CLIENTS}
        self.start()
        self.settle()
        self.must_reach = [self.reachable()]
        """The pairs of client and port that policies let through, for each state since the last `settle`."""

    # --- the control plane ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a control plane that knows only the objects, and what proxies bring."""
        self.rollouts = RolloutDriver(self.timeout)
        self.rollout = self.rollouts.rollout
        everything = Change(applied=tuple(self.facts.values()), config=self.config)
        self.mesh = self.rollouts.first_mesh(everything, Observed(), self.now)
        for name, server in self.servers.items():
            server.acked = server.generation = -1
            if server.connected and server.modes:
                self.rollout.recover(Ref("Pod", "ns", name), server.modes)
        for client in self.clients.values():
            self.reset(client)
        self.step()

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = (), config: MeshConfig | None = None) -> None:
        change = Change(applied=applied, removed=removed, config=config)
        self.config = config or self.config
        for ref in removed:
            self.facts.pop(ref, None)
        self.facts.update({fact.ref: fact for fact in applied})
        self.mesh = self.rollouts.apply(self.mesh, change, self.observe(), self.now)
        self.must_reach.append(self.reachable())

    def advance(self) -> None:
        """Let the control plane advance its rollouts once."""
        self.mesh = self.rollouts.advance(self.mesh, self.observe(), self.now)

    def step(self) -> None:
        """Advance now, and again after servers have classified the connections that are open now."""
        self.advance()
        self.now += UNREAD
        self.advance()

    def observe(self) -> Observed:
        servers = {
            Ref("Pod", "ns", name): each.acked for name, each in self.servers.items() if each.connected
        }
        return Observed(
            Report(
                generation=self.mesh.served.generation,
                servers=Generations(servers),
                rejected_listeners={
                    Ref("Pod", "ns", name): "no" for name, each in self.servers.items() if each.rejects
                },
                clients=Generations(
                    {f"{name}.clients": each.acked for name, each in self.clients.items() if each.connected}
                ),
                has_earlier_connections=any(
                    each.connected and self.now < each.caught_up_at + UNREAD for each in self.clients.values()
                ),
                rejected_clusters={
                    f"{name}.clients": dict.fromkeys(CLUSTERS, "no")
                    for name, each in self.clients.items()
                    if each.rejects
                },
                asks=self.rollout.collect_asks(servers),
            )
        )

    def wait(self, key: PortKey) -> Wait:
        """Return what a port in transition waits for."""
        return port_wait(key, self.rollout.plan.ports[key], self.observe())

    # --- the policies ---------------------------------------------------------------------------------------

    def set_mode(self, mode: str | None, *, name: str = "", port: int = 0) -> None:
        """Set the mode of the namespace, of one server, or of one port of a server."""
        named = f"{name or 'default'}-{port}" if name else "default"
        ref = Ref("PeerAuthentication", "ns", named)
        if mode is None:
            self.change(removed=(ref,) if ref in self.facts else ())
        elif port:
            self.change(peer("ns", None, name=named, ports={port: mode}, group=name))
        else:
            self.change(peer("ns", mode, name=named, **({"group": name} if name else {})))

    def set_rule(self, mode: str | None, client: str = "") -> None:
        name = f"for-{client or 'all'}"
        ref = Ref("DestinationRule", "clients", name)
        selector = {"app": client} if client else None
        if mode is None:
            self.change(removed=(ref,) if ref in self.facts else ())
        else:
            self.change(rule("clients", "web.ns.svc.cluster.local", mode, name=name, selector=selector))

    # --- the proxies ----------------------------------------------------------------------------------------

    def deliver_to_server(self, name: str) -> None:
        """Let a server activate what it is served now."""
        server, itself = self.servers[name], self.mesh.pod("ns", name)
        assert itself
        server.generation, server.rejects = self.mesh.served.generation, False
        server.modes = {port: served_mode(self.mesh, itself, port).mode for port in PORTS}

    def deliver_to_client(self, name: str) -> None:
        client, sends = self.clients[name], self.sends(self.mesh, name)
        for key, send in client.sends.items():
            if send is Send.PLAINTEXT and sends.get(key) is Send.MTLS:
                client.unclassified[key] = self.servers[key[0].name], self.now + DETECTION_TIMEOUT
        client.generation, client.sends = self.mesh.served.generation, sends
        client.rejects = False

    def reject(self, proxy: Server | Client) -> None:
        """Let a proxy reject what it is served, and keep what it has."""
        proxy.rejects = True
        if isinstance(proxy, Client):
            proxy.acked = self.mesh.served.generation

    def reconnect(self, proxy: Server | Client) -> None:
        """Let a proxy reconnect. It keeps its configuration, and has ACKed nothing on the new stream."""
        self.reset(proxy)
        proxy.rejects = False

    def reset(self, proxy: Server | Client) -> None:
        """Count a proxy as one that has ACKed nothing."""
        proxy.acked = proxy.generation = -1
        if isinstance(proxy, Client):
            proxy.caught_up_at = inf if proxy.sends else -inf

    def replace(self, name: str) -> None:
        """Replace a server with a new pod of the same name."""
        before = self.facts[Ref("Pod", "ns", name)]
        self.change(removed=(before.ref,))
        self.servers[name] = Server()
        self.change(replace(before, meta=replace(before.meta, uid=f"{before.meta.uid}+")))

    def ack(self, *names: str) -> None:
        """Let servers or clients activate and ACK what they are served now."""
        for name in names:
            if name in self.servers:
                self.deliver_to_server(name)
                self.receive_ack(self.servers[name])
            else:
                self.deliver_to_client(name)
                self.receive_ack(self.clients[name])

    def receive_ack(self, proxy: Server | Client) -> None:
        """Let an ACK arrive, possibly again."""
        proxy.acked = max(proxy.acked, proxy.generation)
        if isinstance(proxy, Client) and proxy.acked >= 0:
            proxy.caught_up_at = min(proxy.caught_up_at, self.now)

    @staticmethod
    def sends(mesh: Mesh, name: str) -> dict[PortKey, Send]:
        client, web = mesh.pod("clients", name), mesh.service("ns", "web")
        assert client
        assert web
        found = served_client_rule(mesh, client.namespace, client.meta.labels, web)
        sends = {}
        for port in web.ports:
            tls = explicit_tls(found, port.port)
            for endpoint in mesh.endpoints(web, port):
                assert endpoint.pod
                mtls = tls.mode is TlsMode.ISTIO_MUTUAL if tls else sends_mtls(mesh, found, port, endpoint)
                sends[endpoint.pod.ref, endpoint.port] = Send.MTLS if mtls else Send.PLAINTEXT
        return sends

    def settle(self) -> None:
        """Deliver everything until nothing changes, and check the result."""
        for _ in range(40):
            before = self.mesh
            for name, server in self.servers.items():
                if server.connected:
                    self.ack(name)
                    self.check()
            for name, client in self.clients.items():
                if client.connected:
                    self.ack(name)
                    self.check()
            self.step()
            if self.mesh is before:
                break
        assert not self.rollout.plan.ports, self.rollout.plan.ports
        assert not self.rollout.rules
        assert self.mesh.served == ServedDiff(generation=self.mesh.served.generation)
        wanted = Mesh(self.facts.values(), self.config)
        assert {fact.ref: fact for fact in self.mesh.facts()} == {fact.ref: fact for fact in wanted.facts()}
        for name, server in self.servers.items():
            itself = self.mesh.pod("ns", name)
            assert itself
            if server.connected:
                assert server.modes == {port: served_mode(self.mesh, itself, port).mode for port in PORTS}
        self.must_reach = [self.reachable()]

    # --- what must hold -------------------------------------------------------------------------------------

    def reachable(self) -> set[tuple[str, PortKey]]:
        """Return the pairs of client and port that the current policies let through."""
        mesh = Mesh(self.facts.values(), self.config)
        found = set()
        web = mesh.service("ns", "web")
        assert web
        for name in CLIENTS:
            client = mesh.pod("clients", name)
            assert client
            for port in web.ports:
                for endpoint in mesh.endpoints(web, port):
                    server = endpoint.pod
                    assert isinstance(server, Pod)
                    mode = served_mode(mesh, server, endpoint.port).mode
                    if decide(mesh, client, web, port, endpoint).send in ACCEPTED_SENDS[mode]:
                        found.add((name, (server.ref, endpoint.port)))
        return found

    def check(self) -> None:
        """Check that no request fails that all policies since the last `settle` let through."""
        if not hasattr(self, "must_reach"):
            return
        for name, key in set.intersection(*self.must_reach):
            client, server = self.clients[name], self.servers[key[0].name]
            if key in client.sends and server.modes:
                mode, sends = server.modes[key[1]], {client.sends[key]}
                opened_to, until = client.unclassified.get(key, (None, 0.0))
                if opened_to is server and self.now < until:
                    sends.add(Send.PLAINTEXT)
                for send in sends - ACCEPTED_SENDS[mode]:
                    raise AssertionError(
                        f"{name} sends {send} to {key[0].name}:{key[1]}, which accepts {mode}"
                    )


def settled(mode: str, timeout: float | None = 1e9) -> Proxies:
    """Return proxies that all have ACKed a mode of their namespace."""
    world = Proxies(timeout)
    world.set_mode(mode)
    world.settle()
    return world
