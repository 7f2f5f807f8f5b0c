"""Golden cases with real traffic: what `xds reach` and `xds plan` predict is what real Envoys do.

Each case has three states: without its policies and rules, as it is, and with a STRICT policy for the mesh.
In each state, every client calls every service port until it has reached every endpoint, and the results must
be those of `hops`. The results of any two states must differ as `predict_change` says.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.golden.cases import CASES, load, manifests, options
from tests.support.apps import EchoApp
from tests.support.cluster import Cluster, ClusterPod, ClusterService
from tests.support.envoy import drained, run_options
from tests.support.exchange import HTTP1, HTTP2, TCP
from tests.support.manifests import Manifest, peer_authentication
from tests.support.mesh import Mesh
from tests.support.predictions import At, Call, Results, conditional, results, results_after
from tests.support.tcp import LineApp
from xds.mesh.model.mesh import Endpoint
from xds.mesh.model.mesh import Mesh as Facts
from xds.mesh.model.objects import TRAFFIC_KINDS, Object, Protocol, Service
from xds.mesh.policy.prediction import predict_change
from xds.mesh.policy.reach import Result, connection

pytestmark = [pytest.mark.netns, pytest.mark.envoy]

SKIPPED_CASES = {
    "entries": "its services have no names in the cluster: see test_entries.py",
    "interception-none": "its pods share the loopback interface: see test_none_mode.py and test_seed_page.py",
}
SKIPPED = {
    "Pod third/proxied": "mode NONE on the loopback interface, as in the case interception-none",
    "Service ns/six": "the network namespaces have no IPv6",
}

STRICT = peer_authentication("istio-system", "STRICT")
TRAFFIC = {Protocol.HTTP: HTTP1, Protocol.AUTO: HTTP1, Protocol.HTTP2: HTTP2, Protocol.TCP: TCP}
AT_ONCE = 12
ENOUGH = 100
"""Number of requests that reach every endpoint of a service, of which there are four at most."""


class State(NamedTuple):
    """Manifests and mesh settings."""

    name: str
    objects: Sequence[Manifest]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        return json.dumps([self.objects, self.settings], default=str)


def states(case: Path) -> Iterator[State]:
    """Yield the states of a case."""
    file, _ = options(case)
    settings = patient(yaml.safe_load(file.read_text()) if file else {})
    objects = patient(list(yaml.safe_load_all(manifests(case))))
    without = [found for found in objects if found["kind"] not in TRAFFIC_KINDS]
    yield State(f"{case.name} without policies", without, settings)
    yield State(case.name, objects, settings)
    others = [found for found in objects if identity(found) != identity(STRICT)]
    yield State(f"{case.name} and STRICT", [*others, STRICT], settings)


def patient(value: Any) -> Any:
    """Return settings or manifests with enough time to connect, also on a slow machine."""
    if isinstance(value, list):
        return [patient(item) for item in value]
    if isinstance(value, dict):
        return {key: "10s" if key == "connectTimeout" else patient(item) for key, item in value.items()}
    return value


def identity(found: Manifest) -> tuple[str, str, str]:
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def groups() -> list[Any]:
    """Return lists of cases that share a mesh: they have the same sidecars, CA and `--set` options."""
    found: defaultdict[object, list[Path]] = defaultdict(list)
    for case in (param.values[0] for param in CASES):
        if case.name in SKIPPED_CASES:
            found[case.name].append(case)
            continue
        mesh = load(case)
        sidecars = frozenset((pod.ref, pod.address) for pod in mesh.pods() if pod.has_sidecar)
        found[sidecars, mesh.config.trust_domain, tuple(options(case)[1])].append(case)
    return [pytest.param(cases, id="+".join(case.name for case in cases)) for cases in found.values()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cases", groups())
async def test_real_traffic_of_golden_cases_is_as_predicted(cases: list[Path], tmp_path: Path):
    if reason := SKIPPED_CASES.get(cases[0].name):
        pytest.skip(reason)
    chain = list({state.key: state for case in cases for state in states(case)}.values())
    measured: list[tuple[State, Facts, Results]] = []
    async with deployed(chain, options(cases[0])[1], tmp_path) as deployment:
        for state in chain:
            facts = await deployment.apply(state)
            predicted = deployment.callable(facts)
            real = await deployment.measure(facts, predicted)
            wrong = {call: (predicted[call], real[call]) for call in real if real[call] != predicted[call]}
            assert not wrong, f"{state.name}: {wrong}"
            measured.append((state, facts, real))
    for (one, before, old), (other, after, new) in permutations(measured, 2):
        expected = results_after(predict_change(before, after), old, new)
        assert expected == {call: new[call] for call in expected}, f"{one.name} -> {other.name}"


@asynccontextmanager
async def deployed(
    chain: Sequence[State], assignments: Sequence[str], directory: Path
) -> AsyncIterator[Deployment]:
    """A mesh that has the pods and applications of all states."""
    how = {"assignments": assignments, "sidecar_options": run_options(drain_seconds=1)}
    with Cluster() as cluster:
        async with Mesh(cluster, directory, **how, **chain[0].settings) as mesh:
            deployment = Deployment(mesh)
            for state in chain:
                await deployment.add(deployment.write(state))
            deployment.write(chain[0])
            await mesh.start()
            yield deployment


class Deployment:
    """A mesh that changes from one state to the next. Its applications are known by their endpoints."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._pods: dict[str, ClusterPod] = {}
        """By address."""
        self._apps: dict[At, str] = {}
        """The kind of traffic that the application expects."""

    def write(self, state: State) -> Facts:
        """Replace the manifests and settings."""
        self._mesh.set(**state.settings)
        self._mesh.manifests.write("mesh", *state.objects)
        return self._mesh.facts()

    async def add(self, facts: Facts) -> None:
        """Add what is new in a state: pods, addresses outside the mesh, and applications."""
        for pod in facts.pods():
            if pod.address not in self._pods and not is_skipped(pod):
                self._pods[pod.address] = self._mesh.adopt(pod, sotw=bool(len(self._pods) % 2))
        virtual = {address for service in facts.services() for address in service.addresses}
        ports = ((service, port) for service in facts.services() for port in service.ports)
        # If several Services forward to a port, its application serves HTTP.
        for service, port in sorted(ports, key=lambda found: found[1].protocol is Protocol.TCP):
            for endpoint in () if is_skipped(service) else ready(facts, service, port):
                if endpoint.address not in virtual and at(endpoint) not in self._apps:
                    await self._serve(endpoint, TRAFFIC[port.protocol])

    async def _serve(self, endpoint: Endpoint, traffic: str) -> None:
        address, cluster = endpoint.address, self._mesh.cluster
        if address not in self._pods:
            self._pods[address] = cluster.pod(address, "outside", sidecar=False, address=address)
        self._apps[at(endpoint)] = traffic
        app = LineApp if traffic == TCP else EchoApp
        await self._mesh.enter(app(name(at(endpoint)), endpoint.port, place=self._pods[address].place))

    async def apply(self, state: State) -> Facts:
        """Apply a state, and wait until it is active and no old connections are left."""
        facts = self.write(state)
        services = [self._service(facts, found) for found in facts.services() if not is_skipped(found)]
        self._mesh.cluster.services[:] = services
        self._mesh.cluster.publish()
        await self._mesh.settled()
        await drained(self._mesh.sidecars.values())
        self._mesh.wire.forget()
        return facts

    def _service(self, facts: Facts, service: Service) -> ClusterService:
        endpoints = {port.port: ready(facts, service, port) for port in service.ports}
        addresses = {endpoint.address for found in endpoints.values() for endpoint in found}
        return ClusterService(
            name=service.name,
            namespace=service.namespace,
            addresses=service.addresses,
            # If several Services have a clusterIP, it leads to the endpoints of its owner.
            ports={
                port: found[0].port
                for port, found in endpoints.items()
                if found and all(facts.may_answer(service, address) for address in service.addresses)
            },
            # A headless Service can list a clusterIP.
            pods=[self._pods[address] for address in sorted(addresses & self._pods.keys())],
        )

    def callable(self, facts: Facts) -> Results:
        """Return the predicted results of the calls that are possible here."""
        found: dict[Call, Mapping[At, Result]] = {}
        unknown = conditional(facts)
        for call, endpoints in results(facts).items():
            client, service = facts.get(call[0]), facts.get(call[1])
            # A pod's connection to its own address does not pass through its sidecar.
            own = client.address if service.headless else ""
            others = {to: how for to, how in endpoints.items() if not to or to[0] != own}
            if others and call not in unknown and not is_skipped(client) and not is_skipped(service):
                found[call] = others
        return found

    async def measure(self, facts: Facts, predicted: Results) -> Results:
        """Return the real results of calls."""
        turn = asyncio.Semaphore(AT_ONCE)
        # Clients that take turns with a service could each get the same endpoint all the time.
        alone: defaultdict[tuple[Any, int], asyncio.Lock] = defaultdict(asyncio.Lock)

        async def real(call: Call) -> Mapping[At, Result]:
            client, service = self._pods[facts.get(call[0]).address], facts.get(call[1])
            expected, servers = predicted[call], reached(facts, call)
            async with alone[call[1:]], turn:
                if not service.headless:
                    host = f"{service.name}.{service.namespace}"
                    return await self._call(client, host, call[2], expected, servers)
                # The name of a headless Service leads to its pods, and clients call their ports.
                calls = [self._call(client, *to, {to: how}, servers) for to, how in expected.items() if to]
                return {to: how for found in calls for to, how in (await found).items()}

        return dict(zip(predicted, await asyncio.gather(*map(real, predicted)), strict=True))

    async def _call(
        self,
        client: ClusterPod,
        host: str,
        port: int,
        expected: Mapping[At, Result],
        servers: Mapping[At, At],
    ) -> Mapping[At, Result]:
        """Send requests until all results were seen, and enough to see any other."""
        names = {to: name(servers.get(to, to)) for to in expected}
        apps = (self._apps.get(servers.get(to, to)) for to in expected)
        what = next((app for app in apps if app), HTTP1)
        wanted = {("" if how is Result.FAILS else names[to], how) for to, how in expected.items()}
        seen: set[tuple[str, str]] = set()
        for _ in range(ENOUGH if len(expected) > 1 else 1):
            answer = await self._mesh.exchange(what, client, host, port)
            seen.add((answer.pod, answer.how))
            if seen == wanted or not seen <= wanted:
                break
        hows = {pod: Result(how) for pod, how in seen}
        # A sidecar retries at another endpoint if it cannot connect.
        failed = {to for to in expected if "" in hows} or await self._failed(client)
        return {to: hows[names[to]] for to in expected if names[to] in hows} | {
            to: Result.FAILS for to in expected if names[to] not in hows and to in failed
        }

    async def _failed(self, client: ClusterPod) -> set[At]:
        """Return the endpoints that a client's sidecar could not connect to."""
        if client.address not in self._mesh.sidecars:
            return set()
        clusters = await self._mesh.sidecar(client).admin.json("/clusters?format=json")
        hosts = (host for found in clusters["cluster_statuses"] for host in found.get("host_statuses", ()))
        return {
            (host["address"]["socket_address"]["address"], host["address"]["socket_address"]["port_value"])
            for host in hosts
            if any(stat["name"] == "cx_connect_fail" and "value" in stat for stat in host["stats"])
        }


def is_skipped(found: Object) -> bool:
    return str(found.ref) in SKIPPED


def ready(facts: Facts, service: Service, port: Any) -> list[Endpoint]:
    return [endpoint for endpoint in facts.endpoints(service, port) if endpoint.ready]


def reached(facts: Facts, call: Call) -> Mapping[At, At]:
    """Return the server that a connection to each endpoint reaches. If it reaches several, return one."""
    client, service = facts.get(call[0]), facts.get(call[1])
    port = next(port for port in service.ports if port.port == call[2])
    found = [(to, connection(facts, client, service, port, to)) for to in ready(facts, service, port)]
    return {at(to): at(how.sent.server) for to, how in found if how.sent}


def at(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.address, endpoint.port


def name(to: At) -> str:
    """Return the name of the application at an endpoint."""
    return f"{to[0]}:{to[1]}" if to else ""
