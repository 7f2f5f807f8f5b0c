"""Modes that change under traffic: no request fails that both the old and the new policies would have served.

There are two clients and two servers, one of each by state-of-the-world xDS and one by delta, and two more
pods whose sidecars come and go. Traffic is HTTP/1.1 on kept and new connections, HTTP/2 between the sidecars,
and TCP, also to servers that speak first.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

import pytest

from tests.support import manifests
from tests.support.authorization import authorization_policy, source
from tests.support.clients import NO_ANSWER, Client
from tests.support.envoy import run_options
from tests.support.load import Load, Sent
from tests.support.local import RECONNECTED, LocalMesh
from tests.support.manifests import Manifest
from tests.support.places import HERE
from tests.support.predictions import predict
from tests.support.tcp import SlowRelay
from tests.support.waiting import eventually
from xds.mesh.model.mesh import Mesh
from xds.mesh.parse import parse
from xds.mesh.policy.reach import Outcome, Result

pytestmark = pytest.mark.envoy

HTTP, HTTP2, TCP, GREETS = 8080, 8081, 9000, 9001
URL = "http://web:80/headers"
URL2 = "http://web:81/headers"
MODES = ("DISABLE", "PERMISSIVE", "STRICT")
FLIPS = 50
PATIENT = 30
"""Seconds for which listeners drain: longer than any request takes on a slow machine."""


def clock(moment: float | None = None) -> str:
    """Return the time, or a moment of `time.monotonic()`, in the format of the control plane's log."""
    ago = timedelta(seconds=time.monotonic() - moment) if moment else timedelta()
    return f"{datetime.now(UTC) - ago:%H:%M:%S.%f}"[:-3]


@dataclass
class Lines:
    """Repeatedly opens a TCP connection, exchanges a line and closes it."""

    client: Client
    name: str = ""
    """Name of the client's pod, for failures."""
    seconds: float = 600
    greets: bool = False
    """Whether the server speaks first. Its sidecar waits one second for the client to do so."""
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    pause: float = 0.05

    async def __aenter__(self) -> Self:
        self._ends = time.monotonic() + self.seconds
        self._task = asyncio.create_task(self._ask_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._ends = 0
        await self._task

    async def _ask_on(self) -> None:
        port = 91 if self.greets else 90
        while (began := time.monotonic()) < self._ends:
            try:
                async with self.client.tcp("web.ns", port) as conversation:
                    if self.greets:
                        assert (await conversation.hear()).startswith("220 ")
                    assert (await conversation.ask("hello")).endswith(": hello")
            except (*NO_ANSWER, AssertionError) as error:
                lived = time.monotonic() - began
                what = f"{error or type(error)}"
                self.failures.append(f"{clock()} {self.name} port {port} after {lived:.3f} s: {what}")
            self.asked += 1
            await asyncio.sleep(self.pause)


def key_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"


class Pods:
    """The pods, their traffic and the current policies."""

    def __init__(self, mesh: LocalMesh, stack: AsyncExitStack, drain: int, delay: float) -> None:
        self.mesh = mesh
        self._stack = stack
        self._delay = delay
        self._options = run_options(drain)
        variants = ("sotw", "delta")
        self.clients = [mesh.pod(f"client-{variant}", "ns") for variant in variants]
        self.servers = [
            mesh.pod(f"web-{variant}", "ns", labels={"app": "web", "at": variant}) for variant in variants
        ]
        self.restless = [mesh.pod("restless-client", "ns"), mesh.pod("restless-server", "other")]
        self.loads: list[Load] = []
        self.lines: list[Lines] = []
        self.objects: dict[str, Manifest] = {}
        self.history: list[str] = []
        """Changes, restarts and kills, with the time."""

    async def start(self) -> None:
        for server in self.servers:
            await self.mesh.serve(server, http=(HTTP, HTTP2), lines=(TCP,), greets=(GREETS,))
        ports = {"http": (80, HTTP), "http2": (81, HTTP2), "tcp": (90, TCP), "tcp-greets": (91, GREETS)}
        self.mesh.service("web", "ns", ports)
        self.mesh.service("restless-server", "other", {"http": (80, HTTP)})
        # A relay delays one server and one client, so they get changes later than the others.
        for pod, seconds in ((self.servers[0], self._delay), (self.clients[1], 0.5)):
            relay = SlowRelay(HERE.listener("127.0.0.1", 0), self._control_plane, seconds)
            await self._stack.enter_async_context(relay)
            self.mesh.through[pod.full_name] = relay.port
        for sotw, *pods in zip((True, False), self.clients, self.servers, self.restless, strict=True):
            self.mesh.sotw = sotw
            await self.mesh.start(*pods, options=self._options)

    async def _control_plane(self) -> socket.socket:
        return await Client().connect("127.0.0.1", self.mesh.plane.port)

    async def load(self, *, seconds: float = 600, connections: int = 2) -> None:
        for client in self.clients:
            ways = ((URL, True), (URL, False), (URL2, True))
            for url, kept in ways:
                load = Load(
                    client=client.client,
                    url=url,
                    connections=connections,
                    keep_alive=kept,
                    seconds=seconds,
                    at_most=100_000,
                )
                self.loads.append(await self._stack.enter_async_context(load))
            for greets in (False, True, True, True):
                lines = Lines(client.client, client.name, seconds=seconds, greets=greets)
                self.lines.append(await self._stack.enter_async_context(lines))

    async def more(self, count: int = 5) -> list[Sent]:
        batches = await asyncio.gather(*(load.more(count) for load in self.loads))
        return [sent for batch in batches for sent in batch]

    async def stop(self) -> tuple[int, Counter[str]]:
        """Stop the traffic; return the number of requests and the failures."""
        for load in (*self.loads, *self.lines):
            await load.stop()
        failed: Counter[str] = Counter()
        for load in self.loads:
            for sent in load.failures:
                lived = sent.ended - sent.began
                failed[
                    f"{clock(sent.ended)} {load.url} after {lived:.3f} s: "
                    f"{sent.answer.code} {sent.answer.error or sent.answer.text}"
                ] += 1
        for lines in self.lines:
            failed.update(lines.failures)
        return sum(len(load.sent) for load in self.loads) + sum(line.asked for line in self.lines), failed

    def say(self, manifest: Manifest) -> None:
        self.objects[key_of(manifest)] = manifest
        self.mesh.apply(manifest)

    def unsay(self, key: str) -> None:
        self.mesh.delete(self.objects.pop(key))

    def outcomes(self) -> list[Outcome]:
        """Return the traffic's expected results under the current policies."""
        names = {pod.name for pod in self.clients}
        return [
            outcome
            for outcome in predict(self.mesh.facts())
            if outcome.client.name in names and outcome.service.name == "web"
        ]

    @property
    def all_served(self) -> bool:
        return all(outcome.result is not Result.FAILS for outcome in self.outcomes())

    async def restart(self, number: int) -> None:
        """Restart an unused sidecar, even during a transition."""
        pod = self.restless[number]
        self.history.append(f"{clock()} restart {pod.name}")
        self.mesh.sotw = number == 0
        sidecar = self.mesh.sidecars[pod.full_name]
        sidecar._process.kill()
        await sidecar.ended()
        # It replaces the one that the mesh stops.
        fresh = self.mesh._envoy(pod, self.mesh.facts(), options=self._options)
        await fresh.__aenter__()
        sidecar._process = fresh._process


@asynccontextmanager
async def running(
    loopback, directory, *options: str, drain: int = PATIENT, delay: float = 0.3, settings: Sequence[str] = ()
):
    async with LocalMesh(loopback, directory, settings=settings) as mesh, AsyncExitStack() as stack:
        if options:
            await mesh.plane.stop()
            mesh.plane._options = (*mesh.plane._options, *options)
            await mesh.plane.start()
        pods = Pods(mesh, stack, drain, delay)
        await pods.start()
        yield pods


def flips(pods: Pods, dice: random.Random, *, permissions: bool = True) -> Iterator[Callable[[], str]]:
    """Yield endless changes. After each of them, all traffic is still served.

    Args:
        pods: the pods.
        dice: chooses the changes.
        permissions: whether AuthorizationPolicies change, alone and together with modes and rules.
    """

    def mode() -> str:
        return dice.choice(MODES)

    def mesh_wide() -> str:
        pods.say(manifests.peer_authentication("istio-system", mode()))
        return "mesh"

    def namespace() -> str:
        pods.say(manifests.peer_authentication("ns", mode()))
        return "namespace"

    def workload() -> str:
        at = dice.choice(("sotw", "delta"))
        pods.say(manifests.peer_authentication("ns", mode(), name=at, selector={"at": at}))
        return "workload"

    def port() -> str:
        at = dice.choice(("sotw", "delta"))
        ports = {dice.choice((HTTP, HTTP2, TCP, GREETS)): mode()}
        pods.say(manifests.peer_authentication("ns", mode(), name=at, selector={"at": at}, ports=ports))
        return "port"

    def rule() -> str:
        tls = dice.choice(("DISABLE", "ISTIO_MUTUAL"))
        pods.say(manifests.destination_rule("web", "ns", "web.ns.svc.cluster.local", tls))
        return "rule"

    def away() -> str:
        if pods.objects:
            pods.unsay(dice.choice(sorted(pods.objects)))
        return "away"

    def permission() -> str:
        namespace, name = dice.choice((("ns", "web"), ("ns", "more"), ("istio-system", "all")))
        rules = dice.choice(([source(principals=["*"])], [source(namespaces=["ns"])], [{}]))
        pods.say(authorization_policy(namespace, *rules, name=name))
        return "permission"

    def together() -> str:
        dice.choice((mesh_wide, namespace, workload, port, rule, away))()
        # An API server gets them one after the other: the policy comes last.
        permission()
        return "together"

    while True:
        changes = (mesh_wide, namespace, workload, port, rule, rule, away)
        yield dice.choice((*changes, permission, *[together] * 5) if permissions else changes)


def flip(pods: Pods, changes: Iterator[Callable[[], str]]) -> str:
    """Make the next change that keeps all traffic served, also between its objects, and undo others."""
    for change in changes:
        before = dict(pods.objects)
        applied = _Paused(pods)
        with applied:
            kind = change()
        if pods.objects != before and applied.is_served:
            applied.write()
            pods.history.append(f"{clock()} {applied}")
            return kind
        pods.objects = before
    raise AssertionError("changes have no end")


async def on_its_way(pods: Pods) -> bool:
    """Whether the control plane has a transition in progress. It starts after a short delay."""

    async def is_in_progress() -> bool:
        metrics = await pods.mesh.plane.metrics()
        return re.search(r"^xds_rollout_endpoints\{.*\} [1-9]", metrics, flags=re.MULTILINE) is not None

    with suppress(AssertionError):
        return await eventually(is_in_progress, timeout=3)
    return False


class _Paused:
    """Holds back changes from the folder until they are confirmed."""

    def __init__(self, pods: Pods) -> None:
        self._pods, self._mesh = pods, pods.mesh
        self._written: list[tuple[str, Manifest]] = []
        self.is_served = True
        """Whether all traffic is served after each object. Sidecars may get one before the next is read."""

    def __enter__(self) -> None:
        self._pods.mesh = self  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self._pods.mesh = self._mesh

    def apply(self, manifest: Manifest) -> None:
        self._write("apply", manifest)

    def delete(self, manifest: Manifest) -> None:
        self._write("delete", manifest)

    def _write(self, how: str, manifest: Manifest) -> None:
        self._written.append((how, manifest))
        self.is_served &= self._pods.all_served

    def __str__(self) -> str:
        return ", ".join(
            f"{how} {manifest['kind']} {manifest['metadata']['name']}.{manifest['metadata']['namespace']} "
            f"{manifest['spec']}"
            for how, manifest in self._written
        )

    def write(self) -> None:
        for how, manifest in self._written:
            getattr(self._mesh, how)(manifest)

    def facts(self) -> Mesh:
        base = self._mesh.facts()
        kinds = {"PeerAuthentication", "DestinationRule", "AuthorizationPolicy"}
        kept = [fact for fact in base.facts() if fact.ref.kind not in kinds]
        objects = self._pods.objects.values()
        facts = [parsed.fact for manifest in objects for parsed in parse(manifest, lambda _: "test")]
        return Mesh([*kept, *filter(None, facts)], base.config)


@pytest.mark.timeout(420)
async def test_random_mode_changes_fail_no_request(loopback, tmp_path):
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    print(f"seed {seed}")
    kinds: Counter[str] = Counter()
    async with running(loopback, tmp_path) as pods:
        await pods.load()
        changes, modes = flips(pods, dice), flips(pods, dice, permissions=False)
        for number in range(FLIPS):
            kinds[flip(pods, changes)] += 1
            if number % 10 == 3:
                await pods.restart(number // 10 % 2)
            if number in (15, 35):
                # A control plane that starts enforces AuthorizationPolicies at once.
                await pods.mesh.settled(timeout=RECONNECTED)
                for _ in range(40):
                    kinds[flip(pods, modes)] += 1
                    if await on_its_way(pods):
                        break
                else:
                    pytest.fail(f"seed {seed}: nothing is ever on its way")
                pods.history.append(f"{clock()} kill control plane")
                pods.mesh.plane._process.kill()
                await pods.mesh.plane.stop()
                await pods.more()
                await pods.mesh.plane.start()
                pods.history.append(f"{clock()} control plane started")
            # Some policies change again during a transition.
            if dice.random() < 0.5:
                await pods.mesh.settled(timeout=RECONNECTED)
            else:
                await pods.more(dice.randrange(1, 10))
        await pods.mesh.settled(timeout=RECONNECTED)
        await pods.more()
        sent, failed = await pods.stop()
        log = pods.mesh.plane.tail(400)
    print(f"{sent} requests, {kinds.total()} flips: {dict(kinds)}")
    changed = "\n".join(pods.history)
    assert not failed, (
        f"seed {seed}: {sum(failed.values())} of {sent} failed: {failed.most_common(5)}\n{changed}\n{log}"
    )


@pytest.mark.timeout(300)
async def test_change_before_servers_report_fails_no_request(loopback, tmp_path):
    """A mode changes while no control plane runs, and back before a server has reported its mode."""
    async with running(loopback, tmp_path, delay=1) as pods:
        disabled = manifests.peer_authentication("ns", "DISABLE")
        pods.say(manifests.peer_authentication("istio-system", "STRICT"))
        pods.say(disabled)
        await pods.mesh.settled()
        await pods.load()
        pods.mesh.plane._process.kill()
        await pods.mesh.plane.stop()
        pods.unsay(key_of(disabled))
        await pods.mesh.plane.start()
        pods.say(disabled)
        await pods.mesh.settled(timeout=RECONNECTED)
        await pods.more()
        sent, failed = await pods.stop()
    assert not failed, f"{sum(failed.values())} of {sent}: {failed.most_common(5)}"


RULE = "web.ns.svc.cluster.local"
ALLOWED = {
    "disabled": [manifests.peer_authentication("ns", "DISABLE")],
    "permissive": [
        manifests.peer_authentication("ns", "PERMISSIVE"),
        authorization_policy("ns", source(principals=["*"])),
    ],
    "permissive, plaintext by a rule": [
        manifests.peer_authentication("ns", "PERMISSIVE"),
        manifests.destination_rule("web", "ns", RULE, "DISABLE"),
    ],
    "strict, without a policy": [manifests.peer_authentication("ns", "STRICT")],
    "strict": [
        manifests.peer_authentication("ns", "STRICT"),
        authorization_policy("ns", source(namespaces=["ns"])),
    ],
}
"""States in which all traffic is served."""


@pytest.mark.timeout(420)
async def test_permissions_that_change_with_modes_fail_no_request(loopback, tmp_path):
    async with running(loopback, tmp_path) as pods:
        for number, name in enumerate(tour(sorted(ALLOWED))):
            wanted = {key_of(manifest): manifest for manifest in ALLOWED[name]}
            # The control plane may read one file before the next. What allows more comes first.
            for key in pods.objects.keys() - wanted.keys():
                pods.unsay(key)
            for manifest in wanted.values():
                pods.say(manifest)
            pods.history.append(f"{clock()} {name}")
            await pods.mesh.settled(timeout=RECONNECTED)
            if number == 0:
                await pods.load()
            await pods.more()
        sent, failed = await pods.stop()
    print(f"{sent} requests, {number} changes")
    assert not failed, f"{sum(failed.values())} of {sent}: {failed.most_common(5)}\n" + "\n".join(
        pods.history
    )


def tour(names: list[str]) -> list[str]:
    """Return a walk that takes each step from one name to another one once."""
    left, walk = {name: [other for other in names if other != name] for name in names}, [names[0]]
    circuit = []
    while walk:
        if left[walk[-1]]:
            walk.append(left[walk[-1]].pop())
        else:
            circuit.append(walk.pop())
    return circuit


@pytest.mark.timeout(300)
async def test_changes_without_waiting_lose_requests(loopback, tmp_path):
    async with running(loopback, tmp_path, "--rollout=immediate") as pods:
        await pods.load()
        for mode in ("DISABLE", "STRICT") * 6:
            pods.say(manifests.peer_authentication("ns", mode))
            await pods.mesh.settled()
            await pods.more()
        sent, failed = await pods.stop()
    print(f"{sent} requests, {sum(failed.values())} failed")
    assert failed


@pytest.mark.timeout(300)
async def test_strict_migrates_requests_and_closes_plaintext(loopback, tmp_path):
    """DISABLE to STRICT: what clients send after the change, and when plaintext is refused."""
    async with running(loopback, tmp_path, drain=5) as pods:
        pods.say(manifests.peer_authentication("ns", "DISABLE"))
        await pods.mesh.settled()
        await pods.load()
        assert not any(sent.answer.identity for sent in await pods.more())
        async with AsyncExitStack() as stack:
            # An application without a sidecar, and one that opened a connection while plaintext was served.
            plain = await stack.enter_async_context(Client().tcp(pods.servers[0].address, TCP))
            tunnel = await stack.enter_async_context(pods.clients[1].client.tcp("web.ns", 90))
            assert (await plain.ask("hello")).endswith(": hello")
            changed = time.monotonic()
            pods.say(manifests.peer_authentication("ns", "STRICT"))
            await pods.mesh.settled()
            locked = time.monotonic()
            await asyncio.sleep(0)
            refused = await Client().get(f"http://{pods.servers[0].address}:{HTTP}/headers")
            assert refused.code == "000", refused
            # The requests under way, and those on connections from before, of which few are left.
            await pods.more(20)
            migrated = time.monotonic()
            # Both were opened in plaintext, and are closed after the drain time.
            assert await plain.closed()
            assert await tunnel.closed()
        later = await pods.more(20)
        assert all(sent.answer.identity for sent in later)
        old = [
            sent
            for load in pods.loads
            for sent in load.since(changed)
            if not sent.answer.identity and sent.began > migrated
        ]
        assert not old
        lag = max(sent.began for load in pods.loads for sent in load.sent if not sent.answer.identity)
        _, failed = await pods.stop()
    assert not failed
    print(
        f"locked {locked - changed:.2f} s after the change; "
        f"the last request in plaintext began {lag - locked:+.2f} s from then"
    )


@pytest.mark.timeout(300)
async def test_kept_connections_switch_to_the_new_mode(loopback, tmp_path):
    """Nothing closes the old connections here, as STRICT would: clients switch on their own.

    On a busy machine, a client's Envoy may send its ClientHello more than one second after it has connected.
    With the default timeout, a PERMISSIVE listener takes such a connection for plaintext.
    """
    patient = ("meshConfig.protocolDetectionTimeout=5s",)
    changes = [
        (manifests.peer_authentication("ns", "PERMISSIVE"), True),
        (manifests.destination_rule("web", "ns", "web.ns.svc.cluster.local", "DISABLE"), False),
        (manifests.destination_rule("web", "ns", "web.ns.svc.cluster.local", "ISTIO_MUTUAL"), True),
        (manifests.destination_rule("web", "ns", "web.ns.svc.cluster.local", "DISABLE"), False),
        (manifests.peer_authentication("ns", "DISABLE"), False),
        (manifests.destination_rule("web", "ns", "another.ns.svc.cluster.local", "DISABLE"), False),
        (manifests.peer_authentication("ns", "PERMISSIVE"), True),
    ]
    async with running(loopback, tmp_path, settings=patient) as pods:
        pods.say(manifests.peer_authentication("ns", "DISABLE"))
        await pods.mesh.settled()
        await pods.load()
        for manifest, is_mtls in changes:
            pods.say(manifest)
            await pods.mesh.settled()
            await pods.more(50)
            later = await pods.more(10)
            assert {bool(sent.answer.identity) for sent in later} == {is_mtls}, manifest
        _, failed = await pods.stop()
    assert not failed


@pytest.mark.timeout(300)
async def test_permissive_and_disable_keep_plaintext_connections(loopback, tmp_path):
    """Traffic that both modes serve never breaks: requests, and connections that are silent for long."""
    async with LocalMesh(loopback, tmp_path) as mesh, AsyncExitStack() as stack:
        client, server = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(server, http=(HTTP,), lines=(TCP,))
        mesh.service("web", "ns", {"http": (80, HTTP), "tcp": (90, TCP)})
        mesh.apply(manifests.peer_authentication("ns", "DISABLE"))
        await mesh.start(client, server)
        tcp = [(Client(), server.address, TCP), (client.client, "web.ns", 90)]
        lines = [await stack.enter_async_context(who.tcp(host, port)) for who, host, port in tcp]
        for mode in ("PERMISSIVE", "DISABLE"):
            slow = asyncio.create_task(
                Client().get(f"http://{server.address}:{HTTP}/slow?seconds=15", timeout=90)
            )
            for connection in lines:
                assert (await connection.ask("hello")).endswith(": hello")

            async def is_asked() -> bool:
                stat = rf"^cluster\.inbound\|{HTTP}\|\|;?\.upstream_rq_active$"
                return await mesh.sidecar(server).admin.total(stat) == 1

            await eventually(is_asked)
            mesh.apply(manifests.peer_authentication("ns", mode))
            await mesh.settled()
            await mesh.drained()
            assert (await slow).code == "200"
            for connection in lines:
                assert (await connection.ask("still here")).endswith(": still here")
