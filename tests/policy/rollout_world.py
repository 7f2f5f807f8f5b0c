"""A mesh whose proxies take what they are served late, lose streams and restart: what a rollout must get right.

Nothing is asserted here but one thing, whenever anything happens: a request that every policy since the last rest would have served
is served now, by what the client and the server have in force.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.policy.world import HTTP, TCP, peer, pod, rule, service
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import Change, Fact, MeshConfig, Mode, Pod, PortKey, Ref
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy.destination import client_rule
from xds.mesh.policy.mtls import Send, accepted, decide, explicit_tls, sends_mtls
from xds.mesh.rollout.driver import Rolling
from xds.mesh.rollout.peers import TAKES
from xds.mesh.rollout.transition import Known

SERVERS = ("web-1", "web-2")
CLIENTS = ("one", "two")
PORTS = (8080, 9090)
KEYS = tuple((Ref("Pod", "ns", name), port) for name in SERVERS for port in PORTS)
UNREAD = 1.2
"""Seconds that a server may take to know what a new connection is."""
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
    """What it has in force, and what that is;"""
    modes: dict[int, Mode] = field(default_factory=dict)
    said: int = -1
    """what it has acknowledged, as far as the control plane has heard."""
    rejects: bool = False
    connected: bool = True


@dataclass
class Client:
    generation: int = -1
    sends: dict[PortKey, Send] = field(default_factory=dict)
    said: int = -1
    rejects: bool = False
    """Whether its answer was that it does not take what it was served."""
    connected: bool = True


class Proxies:
    """Servers and clients, and one control plane after the other."""

    def __init__(self, timeout: float | None = 1e9) -> None:
        self.timeout = timeout
        self.now = 0.0
        self.facts: dict[Ref, Fact] = {fact.ref: fact for fact in facts()}
        self.config = MeshConfig()
        self.servers = {name: Server() for name in SERVERS}
        self.clients = {name: Client() for name in CLIENTS}
        self.start()
        self.settle()
        self.wants = [self.wanted()]
        """For each state of the policies since all was at rest, what is served then: pairs of client and port."""

    # --- the control plane -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have a control plane start that knows nothing but the facts, and what proxies bring."""
        self.rolling = Rolling({}, self.timeout)
        self.rollout = self.rolling.rollout
        everything = Change(applied=tuple(self.facts.values()), config=self.config)
        self.mesh = self.rolling.first(everything, Known(), self.now)
        for name, server in self.servers.items():
            server.said = server.generation = -1
            if server.connected and server.modes:
                self.rolling._came_back[Ref("Pod", "ns", name)] = server.modes
        for client in self.clients.values():
            client.said = client.generation = -1
        self.step()

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = (), config: MeshConfig | None = None) -> None:
        change = Change(applied=applied, removed=removed, config=config)
        self.config = config or self.config
        for ref in removed:
            self.facts.pop(ref, None)
        self.facts.update({fact.ref: fact for fact in applied})
        self.mesh = self.rolling.apply(self.mesh, change, self.known(), self.now)
        self.wants.append(self.wanted())

    def look(self) -> None:
        """Have the control plane go on as far as is known to be good at this moment."""
        self.mesh = self.rolling.advance(self.mesh, self.known(), self.now)

    def step(self) -> None:
        """The same, and once more when new connections have been read of those that clients opened until now."""
        self.look()
        self.now += UNREAD
        self.look()

    def known(self) -> Known:
        return Known(
            servers={
                Ref("Pod", "ns", name): each.said for name, each in self.servers.items() if each.connected
            },
            rejected={Ref("Pod", "ns", name): "no" for name, each in self.servers.items() if each.rejects},
            clients={f"{name}.clients": each.said for name, each in self.clients.items() if each.connected},
            returned=frozenset(
                f"{name}.clients"
                for name, each in self.clients.items()
                if each.connected and each.sends and each.said < 0
            ),
            refusing={
                f"{name}.clients": dict.fromkeys(CLUSTERS, "no")
                for name, each in self.clients.items()
                if each.rejects
            },
        )

    # --- the policies ------------------------------------------------------------------------------------------------

    def set_mode(self, mode: str | None, *, name: str = "", port: int = 0) -> None:
        """Say a mode for the namespace, for one server, or for a port of one."""
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

    # --- the proxies -------------------------------------------------------------------------------------------------

    def deliver_to_server(self, name: str) -> None:
        """Have a server put in force what it is served now."""
        server, itself = self.servers[name], self.mesh.pod("ns", name)
        assert itself
        server.generation, server.rejects = self.mesh.served.generation, False
        server.modes = {port: accepted(self.mesh, itself, port).mode for port in PORTS}

    def deliver_to_client(self, name: str) -> None:
        client = self.clients[name]
        client.generation, client.sends = self.mesh.served.generation, self.sends(self.mesh, name)
        client.rejects = False

    def reject(self, proxy: Server | Client) -> None:
        """Have a proxy answer that it goes on with what it has."""
        proxy.rejects = True
        if isinstance(proxy, Client):
            proxy.said = self.mesh.served.generation

    def reconnect(self, proxy: Server | Client) -> None:
        """Have a proxy lose its stream and open another one: it goes on with what it has, and has acknowledged nothing."""
        proxy.said = proxy.generation = -1
        proxy.rejects = False

    def replace(self, name: str) -> None:
        """Have another pod take the place, and the name, of a server."""
        before = self.facts[Ref("Pod", "ns", name)]
        self.change(removed=(before.ref,))
        self.servers[name] = Server()
        self.change(replace(before, meta=replace(before.meta, uid=f"{before.meta.uid}+")))

    def acknowledge(self, *names: str) -> None:
        """Have servers or clients put in force what they are served now, and say so."""
        for name in names:
            if name in self.servers:
                self.deliver_to_server(name)
                self.hear(self.servers[name])
            else:
                self.deliver_to_client(name)
                self.hear(self.clients[name])

    def hear(self, proxy: Server | Client) -> None:
        """Have an acknowledgement arrive, for the first time or once more."""
        proxy.said = max(proxy.said, proxy.generation)

    @staticmethod
    def sends(mesh: Mesh, name: str) -> dict[PortKey, Send]:
        client, web = mesh.pod("clients", name), mesh.service("ns", "web")
        assert client
        assert web
        found = client_rule(mesh, client.namespace, client.meta.labels, web)
        sends = {}
        for port in web.ports:
            tls = explicit_tls(found, port.port)
            for endpoint in mesh.endpoints(web, port):
                assert endpoint.pod
                mtls = tls.mode is TlsMode.ISTIO_MUTUAL if tls else sends_mtls(mesh, found, port, endpoint)
                sends[endpoint.pod.ref, endpoint.port] = Send.MTLS if mtls else Send.PLAINTEXT
        return sends

    def settle(self) -> None:
        """Let everything arrive until nothing changes any more."""
        for _ in range(40):
            before = self.mesh
            for name, server in self.servers.items():
                if server.connected:
                    self.acknowledge(name)
                    self.check()
            for name, client in self.clients.items():
                if client.connected:
                    self.acknowledge(name)
                    self.check()
            self.step()
            if self.mesh is before:
                break
        assert not self.rollout.crossings, self.rollout.crossings
        assert not self.rollout.rules
        assert (self.mesh.served.modes, self.mesh.served.mtls) == ({}, {})
        wanted = Mesh(self.facts.values(), self.config)
        assert {fact.ref: fact for fact in self.mesh.facts()} == {fact.ref: fact for fact in wanted.facts()}
        for name, server in self.servers.items():
            itself = self.mesh.pod("ns", name)
            assert itself
            if server.connected:
                assert server.modes == {port: accepted(self.mesh, itself, port).mode for port in PORTS}
        self.wants = [self.wanted()]

    # --- what must hold ----------------------------------------------------------------------------------------------

    def wanted(self) -> set[tuple[str, PortKey]]:
        """Return which clients reach which ports by the policies as they are."""
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
                    mode = accepted(mesh, server, endpoint.port).mode
                    if decide(mesh, client, web, port, endpoint).mode in TAKES[mode]:
                        found.add((name, (server.ref, endpoint.port)))
        return found

    def check(self) -> None:
        """Look at each client and port: whom every policy since the last rest served is served."""
        if not hasattr(self, "wants"):
            return
        for name, key in set.intersection(*self.wants):
            client, server = self.clients[name], self.servers[key[0].name]
            if key in client.sends and server.modes:
                mode, send = server.modes[key[1]], client.sends[key]
                assert send in TAKES[mode], (
                    f"{name} sends {send} to {key[0].name}:{key[1]}, which takes {mode}"
                )
