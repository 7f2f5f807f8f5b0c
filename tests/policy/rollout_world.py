"""A mesh whose proxies ACK late, lose streams and restart.

After every event, two invariants are checked with the active configurations of each client and server: a
request does not fail that the policies let through in every state since the last `settle`, and none is
allowed that the AuthorizationPolicies deny in every state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from tests.policy.world import HTTP, TCP, peer, pod, rule, service
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    Change,
    Fact,
    MeshConfig,
    Meta,
    Mode,
    Pod,
    PortKey,
    Ref,
    ServedDiff,
)
from xds.mesh.model.traffic import TlsMode
from xds.mesh.policy import authorization
from xds.mesh.policy.authorization import Access, Request, Rules, rules_of, served_rules_of
from xds.mesh.policy.destination import served_client_rule
from xds.mesh.policy.mtls import Send, decide, explicit_tls, sends_mtls, served_mode
from xds.mesh.rollout.driver import RolloutDriver
from xds.mesh.rollout.observation import Generations, Observed, Report
from xds.mesh.rollout.permissions import RECENT
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


def _by_principal(*values: str, excluded: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    patterns = (tuple(map(Pattern.parse, each)) for each in (values, excluded))
    return (Rule(conditions=(Condition(Attribute.PRINCIPAL, *patterns),)),)


ONE, TWO = (f"cluster.local/ns/clients/sa/{name}" for name in CLIENTS)
PERMISSIONS: Mapping[str, tuple[Rule, ...]] = {
    "nothing": (),
    "everything": (Rule(),),
    "mutual TLS": _by_principal("*"),
    "plaintext": _by_principal(excluded=("*",)),
    "one": _by_principal(ONE),
    "all but one": _by_principal(excluded=(ONE,)),
}
"""Rules of AuthorizationPolicies."""


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
    rules: Rules = field(default_factory=Rules)
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

    has_reports = True
    """Whether servers have reported their modes since the control plane started."""

    def __init__(self, timeout: float | None = 1e9) -> None:
        self.timeout = timeout
        self.now = 0.0
        self.facts: dict[Ref, Fact] = {fact.ref: fact for fact in facts()}
        self.config = MeshConfig()
        self.servers = {name: Server() for name in SERVERS}
        self.clients = {name: Client() for name in CLIENTS}
        self.start()
        self.settle()
        self.must_reach, self.must_fail = [self.reachable()], [self.denied()]
        """The pairs of client and port that policies let through, and those that no ALLOW policy allows,
        for each state since the last `settle`."""

    # --- the control plane ----------------------------------------------------------------------------------

    def start(self, *, reports: bool = True) -> None:
        """Start a control plane that knows only the objects, and what proxies bring.

        Args:
            reports: whether servers report their modes now, and not after the next change.
        """
        self.rollouts = RolloutDriver(self.timeout)
        self.rollout = self.rollouts.rollout
        everything = Change(applied=tuple(self.facts.values()), config=self.config)
        self.mesh = self.rollouts.first_mesh(everything, Observed(), self.now)
        for server in self.servers.values():
            server.acked = server.generation = -1
        for client in self.clients.values():
            self.reset(client)
        if hasattr(self, "must_reach"):
            # After a restart, only the current policies are known.
            self.must_reach.append(
                {
                    (name, key)
                    for name, key, *_, rules in self.pairs()
                    if self.permits(rules, name, key[1], *Send)
                }
            )
        self.has_reports = False
        if reports:
            self.report()

    def report(self) -> None:
        """Let servers report their modes, if they have not. Before that, no proxy is served."""
        if not self.has_reports:
            self.has_reports = True
            for name, server in self.servers.items():
                if server.connected and server.modes:
                    self.rollout.recover(Ref("Pod", "ns", name), server.modes)
            self.step()

    def change(self, *applied: Fact, removed: tuple[Ref, ...] = (), config: MeshConfig | None = None) -> None:
        change = Change(applied=applied, removed=removed, config=config)
        self.config = config or self.config
        for ref in removed:
            self.facts.pop(ref, None)
        self.facts.update({fact.ref: fact for fact in applied})
        self.mesh = self.rollouts.apply(self.mesh, change, self.observe(), self.now)
        self.must_reach.append(self.reachable())
        self.must_fail.append(self.denied())

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
        if mode is None:
            self.set({Ref("PeerAuthentication", "ns", named): None})
        elif port:
            self.change(peer("ns", None, name=named, ports={port: mode}, group=name))
        else:
            self.change(peer("ns", mode, name=named, **({"group": name} if name else {})))

    def set_rule(self, mode: str | None, client: str = "") -> None:
        self.set(client_rule(mode, client))

    def set(self, objects: Mapping[Ref, Fact | None]) -> None:
        """Apply objects, and remove those that are None, in one change."""
        removed = tuple(ref for ref, fact in objects.items() if fact is None and ref in self.facts)
        self.change(*filter(None, objects.values()), removed=removed)

    # --- the proxies ----------------------------------------------------------------------------------------

    def deliver_to_server(self, name: str) -> None:
        """Let a server activate what it is served now."""
        self.report()
        server, itself = self.servers[name], self.mesh.pod("ns", name)
        assert itself
        server.generation, server.rejects = self.mesh.served.generation, False
        server.modes = {port: served_mode(self.mesh, itself, port).mode for port in PORTS}
        server.rules = served_rules_of(self.mesh, itself, http=False)

    def deliver_to_client(self, name: str) -> None:
        """Let a client activate what it is served now."""
        self.report()
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
                assert server.rules == rules_of(wanted, itself, http=False)
        self.now += RECENT
        self.must_reach, self.must_fail = [self.reachable()], [self.denied()]

    # --- what must hold -------------------------------------------------------------------------------------

    def reachable(self) -> set[tuple[str, PortKey]]:
        """Return the pairs of client and port that the current policies let through.

        DENY policies apply at once, so the client must be allowed whatever it sends.
        """
        return {
            (name, key)
            for name, key, mode, send, rules in self.pairs()
            if send in ACCEPTED_SENDS[mode]
            and self.permits(rules, name, key[1], send)
            and self.permits(rules._replace(allow=None), name, key[1], *Send)
        }

    def denied(self) -> set[tuple[str, PortKey]]:
        """Return the pairs of client and port that no current ALLOW policy allows."""
        return {
            (name, key)
            for name, key, _, send, rules in self.pairs()
            if not self.permits(rules._replace(deny=()), name, key[1], send)
        }

    def pairs(self) -> Iterator[tuple[str, PortKey, Mode, Send, Rules]]:
        """Yield each client and port, with the port's mode, what the client sends, and the server's rules."""
        mesh = Mesh(self.facts.values(), self.config)
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
                    send = decide(mesh, client, web, port, endpoint).send
                    assert send
                    yield name, (server.ref, endpoint.port), mode, send, rules_of(mesh, server, http=False)

    def permits(self, rules: Rules, client: str, port: int, *sends: Send) -> bool:
        """Whether rules allow everything that a client sends."""
        identity = f"spiffe://cluster.local/ns/clients/sa/{client}"
        requests = (Request(identity=identity if send is Send.MTLS else "", port=port) for send in sends)
        return all(
            authorization.decide(self.config, rules, request).access is Access.ALLOWED for request in requests
        )

    def sent(self, name: str, key: PortKey) -> set[Send]:
        """Return what a client sends to a port, with what its last connection sent that is not classified."""
        client, server = self.clients[name], self.servers[key[0].name]
        if key not in client.sends or not server.modes:
            return set()
        opened_to, until = client.unclassified.get(key, (None, 0.0))
        unread = opened_to is server and self.now < until
        return {client.sends[key], *((Send.PLAINTEXT,) if unread else ())}

    def check(self) -> None:
        """Check the invariants."""
        if not hasattr(self, "must_reach"):
            return
        must_reach, must_fail = set.intersection(*self.must_reach), set.intersection(*self.must_fail)
        for name, key in must_reach | must_fail:
            server, itself = self.servers[key[0].name], self.mesh.get(key[0])
            assert isinstance(itself, Pod)
            # A change of only DestinationRules and AuthorizationPolicies does not wait for servers.
            has_rules = server.rules == served_rules_of(self.mesh, itself, http=False)
            for send in self.sent(name, key):
                what, mode = f"{name} sends {send} to {key[0].name}:{key[1]}", server.modes[key[1]]
                is_permitted = self.permits(server.rules, name, key[1], send)
                if (name, key) in must_reach:
                    assert send in ACCEPTED_SENDS[mode], f"{what}, which accepts {mode}"
                    assert is_permitted or not has_rules, f"{what}, which denies it"
                else:
                    assert not (is_permitted and has_rules), f"{what}, which allows it"


def client_rule(mode: str | None, client: str = "") -> dict[Ref, Fact | None]:
    """Return a DestinationRule of the clients, or that there is none."""
    name, selector = f"for-{client or 'all'}", {"app": client} if client else None
    fact = rule("clients", "web.ns.svc.cluster.local", mode, name=name, selector=selector) if mode else None
    return {Ref("DestinationRule", "clients", name): fact}


def permission(
    allowed: str | None, action: Action = Action.ALLOW, name: str = "web"
) -> dict[Ref, Fact | None]:
    """Return an AuthorizationPolicy of the servers, or that there is none.

    Args:
        allowed: PERMISSIONS that it is about.
        action: its action.
        name: its name.
    """
    meta = Meta(ref=Ref("AuthorizationPolicy", "ns", name))
    fact = AuthorizationPolicy(meta=meta, action=action, rules=PERMISSIONS[allowed]) if allowed else None
    return {meta.ref: fact}


def settled(mode: str, timeout: float | None = 1e9) -> Proxies:
    """Return proxies that all have ACKed a mode of their namespace."""
    world = Proxies(timeout)
    world.set_mode(mode)
    world.settle()
    return world
