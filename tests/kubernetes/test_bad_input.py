"""Objects that an API server lets through when nothing guards the kinds: each has its outcome, and nothing else moves.

The kinds are served without any schema, as a foreign installation may have left them. What is asked is what sidecars get: the
real source reads the real API server, and every resource of every sidecar is compared, byte by byte. docs/bad-input.md has the
same table for people.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
import pytest_asyncio
import yaml

from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.serving import Serving
from tests.kubernetes.test_crds import foreign
from tests.real.harness.waiting import eventually
from xds.kube import crds
from xds.mesh import Endpoint, Mesh
from xds.model import TLS_MODE_LABEL, Problem
from xds.policy.mtls import Send, decide
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE
from xds.sources.kubernetes import Kubernetes
from xds.translate import translate

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = Path("docs/bad-input.md")
SYSTEM, SHOP, EVIL = "istio-system", "shop", "evil"
PATIENCE = 30.0

PEER = "security.istio.io/v1beta1 PeerAuthentication"
RULE = "networking.istio.io/v1beta1 DestinationRule"
POLICY = "authentication.istio.io/v1alpha1 Policy"
MESH_POLICY = "authentication.istio.io/v1alpha1 MeshPolicy"
STRICT = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"
PLURALS = {
    "PeerAuthentication": "peerauthentications",
    "DestinationRule": "destinationrules",
    "Policy": "policies",
    "MeshPolicy": "meshpolicies",
    "EndpointSlice": "endpointslices",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A bad object, and what becomes of it."""

    title: str
    """As docs/bad-input.md has it."""
    kind: str
    """apiVersion and kind."""
    body: str | Callable[[], Any]
    """What it has besides its metadata: the spec, or if that is a mapping with other keys, those."""
    said: str = ""
    """Words of the problem; empty: it is a good object that moves nothing."""
    good: str = ""
    """A spec that is good, of which it takes the place."""
    namespace: str = SHOP
    name: str = "web"
    metadata: str = "{}"


ENDLESS = {"ENDLESS": 5000}
"""Words that stand for something nested so deep."""

REFUSED = [
    # PeerAuthentication
    Case("a mode that there is not", PEER, "{mtls: {mode: STRCT}}", "did you mean STRICT?", STRICT),
    Case("a mode in lower case", PEER, "{mtls: {mode: strict}}", "mode must be one of", STRICT),
    Case("a number for a mode", PEER, "{mtls: {mode: 1}}", "mode must be one of", STRICT),
    Case("a list for a mode", PEER, "{mtls: {mode: [STRICT]}}", "mode must be one of UNSET, DISABLE", STRICT),
    Case("control characters in a mode", PEER, '{mtls: {mode: "STRICT\\e[31m\\n"}}', "must be one of", STRICT),
    Case("a mode of a megabyte", PEER, lambda: {"mtls": {"mode": "STRICT" * 170_000}}, "must be one of", STRICT),
    Case("a spec that is text", PEER, "STRICT", "spec must be a mapping, not 'STRICT'", STRICT),
    Case("a spec that is a list", PEER, "[]", "spec must be a mapping, not a list", STRICT),
    Case("a misspelled field", PEER, "{mtsl: {mode: STRICT}}", "did you mean mtls?", STRICT),
    Case("a mode where the mapping should be", PEER, "{mtls: STRICT}", "write mode: STRICT below it", STRICT),
    Case("a selector that is none", PEER, "{selector: {matchExpressions: []}}", "only matchLabels can", STRICT),
    Case("labels that are a list", PEER, "{selector: {matchLabels: [app]}}", "must be a mapping, not a list", STRICT),
    Case("a label that is a mapping", PEER, "{selector: {matchLabels: {app: {}}}}", "must be a string", STRICT),
    Case("a huge label", PEER, lambda: {"selector": {"matchLabels": {"a": "b" * 10_000}}}, "label's value", STRICT),
    Case("ports without a selector", PEER, "{portLevelMtls: {80: {mode: DISABLE}}}", "needs a selector", STRICT),
    Case(
        "ports that are none", PEER,
        '{selector: {matchLabels: {app: web}}, portLevelMtls: {0: {}, 65536: {}, http: {}, "-1": {}, "8\\0": {}}}',
        "must be a port of the workload", STRICT,
    ),
    Case("nesting that has no end", PEER, "{mtls: ENDLESS}", "must be", STRICT),
    Case("a field nested without end that nobody knows", PEER, "{x: ENDLESS}", "not a known field", STRICT),
    # Policy, MeshPolicy
    Case("peers that are a mapping", POLICY, "{targets: [{name: web}], peers: {mtls: {}}}", "spec.peers must be a list"),
    Case("a policy for no service", POLICY, "{peers: [{mtls: {}}]}", "must be default, not web"),
    Case("a misspelled peers: plaintext otherwise", POLICY, "{targets: [{name: web}], peer: []}", "did you mean peers?"),
    Case(
        "another namespace's service in a policy", POLICY,
        "{targets: [{name: web.shop.svc.cluster.local}]}", "must be a service of the Policy's own", namespace=EVIL,
    ),
    Case("a port of 1e300", POLICY, "{targets: [{name: web, ports: [{number: 1.0e+300}]}]}", "must be a number from 1"),
    Case("a second MeshPolicy", MESH_POLICY, "{peers: []}", "must be default, not web: a mesh has one", namespace=""),
    Case("a MeshPolicy for a service", MESH_POLICY, "{targets: [{name: web}]}", "must be absent", namespace="", name="default"),
    # DestinationRule
    Case("a TLS mode that there is not", RULE, "{host: web, trafficPolicy: {tls: {mode: OFF}}}", "must be one of DISABLE"),
    Case("a host that is a number", RULE, "{host: 17, trafficPolicy: {tls: {}}}", "host must be a string"),
    Case("a rule for nothing", RULE, "{trafficPolicy: {tls: {mode: DISABLE}}}", "spec.host is required"),
    Case("a misspelled tls", RULE, "{host: web, trafficPolicy: {tsl: {mode: SIMPLE}}}", "did you mean tls?"),
    Case("two subsets of one name", RULE, "{host: web, subsets: [{name: a}, {name: a}]}", "the name of two subsets"),
    Case("NUL in a subset's name", RULE, '{host: web, subsets: [{name: "v\\0"}]}', "is not a DNS label"),
    Case(
        "one port set twice", RULE,
        "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]}}", "set twice",
    ),
    Case("all namespaces and one of them", RULE, '{host: web, exportTo: ["*", shop]}', "cannot be listed with others"),
    Case(
        "a time that is none", RULE,
        "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 9999999999999h}}}}", "at most 2562047h",
    ),
    Case(
        "1e300 connections", RULE,
        "{host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1.0e+300}}}}", "must be a number from 0",
    ),
    Case(
        "a private key where its path should be", RULE,
        '{host: web, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: "MC4CAQAwBQYDK2VwBCIEI"}}}',
        "must be an absolute path",
    ),
    Case(
        "a Secret that only gateways read", RULE,
        "{host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: web}}}", "a sidecar could only send plaintext",
    ),
]  # fmt: skip
HARMLESS = [
    Case("a selector of nothing", PEER, "{selector: {matchLabels: {app: nobody}}, mtls: {mode: DISABLE}}"),
    Case(
        "a selector in the root namespace", PEER,
        "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}", namespace=SYSTEM,
    ),
    Case("a policy of another namespace", PEER, "{mtls: {mode: DISABLE}}", namespace=EVIL),
    Case(
        "another namespace's service in a rule", RULE,
        "{host: web.shop.svc.cluster.local, exportTo: ['*'], trafficPolicy: {tls: {mode: DISABLE}}}", namespace=EVIL,
    ),
    Case("a rule that waits for a service that never was", RULE, "{host: nobody, trafficPolicy: {tls: {}}}"),
    Case("a younger object that contradicts", PEER, "{selector: {matchLabels: {app: older}}, mtls: {mode: DISABLE}}"),
    Case("a name of 253 characters", PEER, STRICT.replace("web", "nobody"), name="a" * 253),
    Case(
        "annotations of 250 kilobytes", PEER, STRICT.replace("web", "nobody"),
        metadata=json.dumps({"annotations": {"note": "x" * 250_000}}),
    ),
    Case(
        "an object that owns itself", PEER, STRICT.replace("web", "nobody"),
        metadata="{ownerReferences: [{apiVersion: security.istio.io/v1beta1, kind: PeerAuthentication, name: web, "
        "uid: 00000000-0000-0000-0000-000000000000}]}",
    ),
    Case(
        "an EndpointSlice of a service that is not there", "discovery.k8s.io/v1 EndpointSlice",
        "{addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.1]}]}",
        metadata="{labels: {kubernetes.io/service-name: nobody}}",
    ),
    Case(
        "an EndpointSlice of another namespace with our pod's address", "discovery.k8s.io/v1 EndpointSlice",
        "{addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.1], "
        "targetRef: {kind: Pod, namespace: shop, name: web}}]}",
        metadata="{labels: {kubernetes.io/service-name: elder}}", namespace=EVIL,
    ),
]  # fmt: skip

View: TypeAlias = dict[tuple[str, str, str], str]


class Watching:
    """What the control plane knows of a cluster, followed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._source = Kubernetes(cluster.api, namespace=SYSTEM)
        self._reports = self._source.watch()
        self.mesh = Mesh()

    async def until(self, check: Callable[[], Any], what: str) -> None:
        """Follow what the cluster tells until `check` holds."""
        async with asyncio.timeout(PATIENCE):
            while not check():
                report = await anext(self._reports)
                self.mesh = self.mesh.apply(report.change)
        assert check(), what

    def view(self) -> View:
        """Return what each sidecar gets: version by pod, type and name."""
        return {
            (f"{pod.namespace}/{pod.name}", url, resource.name): resource.version
            for pod in self.mesh.pods()
            if pod.meta.labels.get(TLS_MODE_LABEL) == "istio"
            for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)
            for resource in translate(self.mesh, pod).of(url).values()
            # What the neighbour does to its own services is its affair.
            if not resource.name.endswith(f".{EVIL}.svc.cluster.local")
        }

    def problems(self) -> list[Problem]:
        return [problem for problem in self._source.problems if not problem.notice]

    async def close(self) -> None:
        await self._reports.aclose()


@pytest.fixture(scope="module")
def bare() -> Iterator[ControlPlane]:
    if reason := binaries.why_none():
        pytest.skip(reason)
    with ControlPlane() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def followed(bare: ControlPlane) -> AsyncIterator[Watching]:
    """A mesh in a cluster whose kinds have no schemas: a STRICT service, its client, and a neighbour that means no good."""
    async with Cluster(bare) as cluster:
        await _set_up(cluster)
        watching = Watching(cluster)
        await watching.until(lambda: watching.mesh.pod(SHOP, "older"), "everything is known")
        assert not watching.problems()
        yield watching
        await watching.close()
        # TLS connections that were closed in the middle of an answer take a moment to end.
        await asyncio.sleep(0.25)


async def _set_up(cluster: Cluster) -> None:
    for definition in crds.definitions():
        spec = definition["spec"]
        theirs = foreign(
            spec["names"]["plural"], spec["group"], spec["names"]["kind"],
            [version["name"] for version in spec["versions"]],
        )  # fmt: skip
        theirs["spec"]["scope"] = spec["scope"]
        await cluster.api.create(crds.PATH, theirs)
    await crds.install(cluster.api)
    for namespace in (SYSTEM, SHOP, EVIL):
        await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        await cluster.until(f"/api/v1/namespaces/{namespace}/serviceaccounts/default", lambda _: True)
    # Older than all that is of the shop: where age decides, it would win.
    await service(cluster, EVIL, "elder")
    await service(cluster, SHOP, "web")
    await pod(cluster, SHOP, "web", "10.1.0.1")
    await pod(cluster, SHOP, "client", "10.1.0.2")
    await slice_of(cluster, SHOP, "web", "10.1.0.1", target="web")
    older = {"selector": {"matchLabels": {"app": "older"}}, "mtls": {"mode": "STRICT"}}
    await create(cluster, PEER, SHOP, "older", {"spec": older})
    await pod(cluster, SHOP, "older", "10.1.0.3")


async def service(cluster: Cluster, namespace: str, name: str) -> str:
    """Make a Service whose EndpointSlices are written by hand: controllers leave it alone. Return its path."""
    spec = {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    path = f"/api/v1/namespaces/{namespace}/services"
    await cluster.api.create(path, {"metadata": {"name": name}, "spec": spec})
    return f"{path}/{name}"


async def slice_of(cluster: Cluster, namespace: str, owner: str, address: str, *, target: str = "") -> str:
    endpoint: dict[str, Any] = {"addresses": [address], "conditions": {"ready": True}}
    if target:
        endpoint["targetRef"] = {"kind": "Pod", "namespace": namespace, "name": target}
    body = {
        "metadata": {"name": f"{owner}-1", "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [endpoint],
    }
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    await cluster.api.create(path, body)
    return f"{path}/{owner}-1"


async def pod(
    cluster: Cluster,
    namespace: str,
    name: str,
    address: str,
    *,
    tls_mode: str = "istio",
    annotations: Any = None,
) -> str:
    """Make a pod that runs, with a sidecar unless said; return its path."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    metadata = {"name": name, "labels": {"app": name, TLS_MODE_LABEL: tls_mode}, "annotations": annotations}
    spec = {"containers": [{"name": "app", "image": "app"}]}
    await cluster.api.create(path, {"metadata": metadata, "spec": spec})
    await cluster.run_pod(namespace, name, address)
    return f"{path}/{name}"


async def create(cluster: Cluster, kind: str, namespace: str, name: str, body: dict[str, Any]) -> str:
    """Create an object of any kind; return its path."""
    version, _, kind = kind.partition(" ")
    within = f"/namespaces/{namespace}" if namespace else ""
    path = f"/apis/{version}{within}/{PLURALS[kind]}"
    metadata = {**body.get("metadata", {}), "name": name}
    await send(cluster, "POST", path, {**body, "apiVersion": version, "kind": kind, "metadata": metadata})
    return f"{path}/{name}"


async def send(cluster: Cluster, method: str, path: str, body: dict[str, Any]) -> None:
    """Send what our own client and Python's JSON would not: anything may be nested without end."""
    context = ssl.create_default_context(cafile=cluster.control_plane.certificates.root)
    context.load_cert_chain(*cluster.control_plane.admin)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, cluster.server + path, data=as_json(body), headers=headers, ssl=context
        ) as answer,
    ):
        assert answer.status in (200, 201), await answer.text()


def as_json(body: dict[str, Any]) -> str:
    text = json.dumps(body)
    for name, depth in ENDLESS.items():
        text = text.replace(f'"{name}"', '{"mode": ' * depth + '"STRICT"' + "}" * depth)
    return text


def body_of(case: Case) -> dict[str, Any]:
    value = case.body() if callable(case.body) else yaml.safe_load(case.body)
    rest = value if isinstance(value, dict) and "addressType" in value else {"spec": value}
    return {**rest, "metadata": yaml.safe_load(case.metadata)}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.title)
async def test_it_is_refused_by_name_and_moves_nothing(followed: Watching, case: Case) -> None:
    before = followed.view()
    path = await create(followed.cluster, case.kind, case.namespace, case.name, body_of(case))
    try:
        await followed.until(followed.problems, "it is said what is wrong")
        assert any(_tells(case, problem) for problem in followed.problems()), followed.problems()
        assert followed.view() == before
    finally:
        await followed.cluster.api.delete(path)
        await followed.until(lambda: not followed.problems(), "it is solved")
    assert followed.view() == before


@pytest.mark.parametrize("case", [case for case in REFUSED if case.good], ids=lambda case: case.title)
async def test_the_last_good_version_stays_in_force(followed: Watching, case: Case) -> None:
    plain = followed.view()
    good = {"spec": yaml.safe_load(case.good)}
    path = await create(followed.cluster, case.kind, case.namespace, case.name, good)
    try:
        await followed.until(lambda: followed.view() != plain, "the good one is in force")
        enforced = followed.view()
        there = await followed.cluster.api.get(path)
        await send(followed.cluster, "PUT", path, {**there, "spec": body_of(case)["spec"]})
        await followed.until(followed.problems, "it is said what is wrong")
        assert any(_tells(case, problem) for problem in followed.problems()), followed.problems()
        assert followed.view() == enforced
    finally:
        await followed.cluster.api.delete(path)
        await followed.until(lambda: followed.view() == plain, "nothing is left of it")
    assert not followed.problems()


def _tells(case: Case, problem: Problem) -> bool:
    """Whether a problem names the object and says what is wrong: in one line, not at length, and without secrets."""
    said = str(problem)
    name = f"{case.kind.partition(' ')[2]} {case.namespace}/{case.name}".replace(" /", " ")
    return (
        said.startswith(name)
        and case.said in said
        and said.isprintable()
        and len(said) < 1000
        and "MC4CAQ" not in said
    )


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.title)
async def test_it_is_read_and_moves_nothing(followed: Watching, case: Case) -> None:
    before = followed.view()
    facts = list(followed.mesh.facts())
    path = await create(followed.cluster, case.kind, case.namespace, case.name, body_of(case))
    try:
        await followed.until(lambda: len(list(followed.mesh.facts())) == len(facts) + 1, "it is known")
        assert not followed.problems()
        assert followed.view() == before
    finally:
        await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: len(list(followed.mesh.facts())) == len(facts), "it is gone")


async def test_a_neighbour_who_lists_our_pod_does_not_decide_what_it_accepts(followed: Watching) -> None:
    """The neighbour's service is older than ours, leads to our pod's port, and has a policy: plaintext only."""
    before = followed.view()
    policy = {"spec": {"targets": [{"name": "elder"}]}}
    listing = {
        "metadata": {"labels": {"kubernetes.io/service-name": "elder"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "targetRef": {"kind": "Pod", "namespace": SHOP, "name": "web"}}
        ],
    }
    facts = len(list(followed.mesh.facts()))
    paths = [
        await create(followed.cluster, POLICY, EVIL, "elder", policy),
        await create(followed.cluster, "discovery.k8s.io/v1 EndpointSlice", EVIL, "elder", listing),
    ]
    try:
        await followed.until(lambda: len(list(followed.mesh.facts())) == facts + 2, "both are known")
        assert followed.view() == before
    finally:
        for path in paths:
            await followed.cluster.api.delete(path)
        await followed.until(lambda: len(list(followed.mesh.facts())) == facts, "both are gone")


@pytest.mark.parametrize("where", ["listed-with-its-pod", "listed-by-address-alone"])
async def test_a_pod_that_claims_anothers_address_changes_nothing_for_the_other(
    followed: Watching, where: str
) -> None:
    """It comes first by name, and says that it has no sidecar: were it believed, clients would send plaintext."""
    target = {"targetRef": {"kind": "Pod", "namespace": SHOP, "name": "web"}} if "pod" in where else {}
    path = f"/apis/discovery.k8s.io/v1/namespaces/{SHOP}/endpointslices/web-1"
    endpoint = {"addresses": ["10.1.0.1"], "conditions": {"ready": True}, **target}
    there = await followed.cluster.api.get(path)
    await followed.cluster.api.replace(path, {**there, "endpoints": [endpoint]})
    await followed.until(lambda: _target(followed) is bool(target), "it is listed so")
    before = followed.view()
    pod_path = await pod(followed.cluster, EVIL, "claims", "10.1.0.1", tls_mode="disabled")
    try:

        def known() -> bool:
            found = followed.mesh.pod(EVIL, "claims")
            return bool(found and found.address)

        await followed.until(known, "it is known")
        assert followed.view() == before
    finally:
        await followed.cluster.api.delete(pod_path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.mesh.pod(EVIL, "claims"), "it is gone")


def _target(followed: Watching) -> bool:
    """Whether the shop's EndpointSlice says whose the address is."""
    [listed] = followed.mesh.in_namespace(SHOP).endpoints["web"]
    return listed.groups[0].addresses[0].pod is not None


async def test_a_sidecar_that_is_not_there_is_believed_in_and_nobody_else_is_touched(
    followed: Watching,
) -> None:
    """Nothing can be known of a pod but its label: clients send it mutual TLS, and that fails."""
    before = followed.view()
    paths = [await service(followed.cluster, SHOP, "liar")]
    paths.append(await pod(followed.cluster, SHOP, "liar", "10.1.0.9"))
    paths.append(await slice_of(followed.cluster, SHOP, "liar", "10.1.0.9", target="liar"))

    def endpoints() -> tuple[Endpoint, ...]:
        found = followed.mesh.service(SHOP, "liar")
        return followed.mesh.endpoints(found, found.ports[0]) if found else ()

    try:
        await followed.until(
            lambda: any(each.pod and each.pod.address for each in endpoints()), "it is known"
        )
        client, found = followed.mesh.pod(SHOP, "client"), followed.mesh.service(SHOP, "liar")
        assert client
        assert found
        decision = decide(followed.mesh, client, found, found.ports[0], endpoints()[0])
        assert decision.mode is Send.MTLS
        moved = {key for key, version in followed.view().items() if before.get(key) != version}
        # Its own configuration, its own clusters and endpoints, and the one table of routes that names all services.
        others = {
            key for key in moved if key[0] != f"{SHOP}/liar" and "liar." not in key[2] and key[1] != ROUTE
        }
        assert not others
    finally:
        for path in paths:
            await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: followed.view() == before, "nothing is left of it")


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"sidecar.istio.io/interceptionMode": "SOMETIMES"}, "must be one of REDIRECT, NONE"),
        (
            {"sidecar.istio.io/interceptionMode": "NONE", "sidecar.xds/app-address": "10.1.0.9"},
            "requests to itself",
        ),
        ({"sidecar.xds/app-address": "localhost\u0000"}, "is not an IP address"),
    ],
)
async def test_a_pod_with_bad_annotations_is_refused_and_moves_nothing(
    followed: Watching, annotations: dict[str, str], said: str
) -> None:
    before = followed.view()
    path = await pod(followed.cluster, SHOP, "odd", "10.1.0.9", annotations=annotations)
    try:
        await followed.until(
            lambda: any(said in str(problem) for problem in followed.problems()), "it is said"
        )
        assert all(str(problem).startswith("Pod shop/odd") for problem in followed.problems())
        assert {key: version for key, version in followed.view().items() if key[0] != f"{SHOP}/odd"} == before
    finally:
        await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.problems(), "it is solved")


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("{trustDomain: [", "cannot be read as YAML"),
        ("- a", "must be a mapping, not a list"),
        ("protocolDetectionTimeout: 0s", "must be at least 1ms"),
        ("trustDomain: spiffe://evil", "is not a trust domain"),
        ("enableAutoMtls: 'no'", "must be true or false"),
        (
            "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9)) + "trustDomain: *a",
            "trustDomain",
        ),
    ],
)
async def test_bad_settings_leave_those_of_before_in_force(followed: Watching, mesh: str, said: str) -> None:
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps"
    await followed.cluster.api.create(
        path, {"metadata": {"name": "xds"}, "data": {"mesh": "trustDomain: td.example\n"}}
    )
    try:
        await followed.until(lambda: followed.mesh.config.trust_domain == "td.example", "they are in force")
        before = followed.view()
        await followed.cluster.api.patch(f"{path}/xds", {"data": {"mesh": mesh}})
        await followed.until(
            lambda: any(said in str(problem) for problem in followed.problems()), "it is said"
        )
        assert all(str(problem).startswith("ConfigMap istio-system/xds") for problem in followed.problems())
        assert followed.view() == before
        assert followed.mesh.config.trust_domain == "td.example"
    finally:
        await followed.cluster.api.delete(f"{path}/xds")
        await followed.until(lambda: followed.mesh.config.trust_domain == "cluster.local", "they are gone")
    assert not followed.problems()


async def test_the_control_plane_serves_on_with_all_of_them_at_once(
    followed: Watching, tmp_path: Path
) -> None:
    """The process itself: started among them, as after a restart, and told of them while it runs."""
    cases = [replace(case, name=f"bad-{number}") for number, case in enumerate(REFUSED) if case.name == "web"]
    half = len(cases) // 2
    paths = [await create(followed.cluster, *_where(case), body_of(case)) for case in cases[:half]]
    try:
        async with Serving(await followed.cluster.kubeconfig(), tmp_path, f"--namespace={SYSTEM}") as serving:
            await serving.until_ready()
            async with serving.sidecar("client", SHOP, "10.1.0.2") as sidecar:
                await sidecar.until("outbound|80||web.shop.svc.cluster.local", {"10.1.0.1"})
                paths += [
                    await create(followed.cluster, *_where(case), body_of(case)) for case in cases[half:]
                ]
                wanted = {f"{case.kind.partition(' ')[2]} {case.namespace}/{case.name}" for case in cases}

                def all_told() -> bool:
                    said = serving.log.read_text()
                    return all(name.replace(" /", " ") in said for name in wanted)

                await eventually(all_told, timeout=PATIENCE, what="each is named in the log")
                await pod(followed.cluster, SHOP, "later", "10.1.0.7")
                paths.append(f"/api/v1/namespaces/{SHOP}/pods/later")
                await _list_too(followed.cluster, "10.1.0.7")
                await sidecar.until("outbound|80||web.shop.svc.cluster.local", {"10.1.0.1", "10.1.0.7"})
                assert (await serving.ready())[0] == 200
            said = serving.log.read_text()
            assert "Traceback" not in said
            assert "MC4CAQ" not in said
            assert "\x1b[31m" not in said
    finally:
        await _list_too(followed.cluster)
        for path in paths:
            await followed.cluster.api.delete(path, gracePeriodSeconds=0)
        await followed.until(lambda: not followed.problems(), "all is solved")
        await followed.until(lambda: not followed.mesh.pod(SHOP, "later"), "nothing is left")


def _where(case: Case) -> tuple[str, str, str]:
    return case.kind, case.namespace, case.name


async def _list_too(cluster: Cluster, *addresses: str) -> None:
    """Have the shop's EndpointSlice list these addresses besides its pod's."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{SHOP}/endpointslices/web-1"
    there = await cluster.api.get(path)
    more = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
    await cluster.api.replace(path, {**there, "endpoints": [there["endpoints"][0], *more]})


async def test_every_case_has_its_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| (.+?) \| (\w+) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    documented = {(title, kind): outcome for title, kind, outcome in rows}
    for case in (*REFUSED, *HARMLESS):
        outcome = documented.get((case.title, case.kind.partition(" ")[2]))
        assert outcome, f"{PAGE} has no row for {case.title}"
        assert case.said in outcome, f"{case.title}: {outcome}"
