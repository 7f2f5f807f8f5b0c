"""Random meshes: pods, Services and policies that combine in every way."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from hypothesis import strategies as st

from tests.policy.world import HTTP, ROOT, TCP, meta, peer, pod, policy, rule, service, tls
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.loadbalancer import LoadBalancer, Simple
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Fact,
    Interception,
    MeshConfig,
    Namespace,
    Pod,
    Ref,
    Requirement,
    Service,
    ServicePort,
    Sidecar,
)
from xds.mesh.model.redirection import Redirection
from xds.mesh.model.traffic import TrafficPolicy

NAMESPACES = ("a", "b", "c")
APPS = ("x1", "x2", "x10")
MODES = st.sampled_from(["DISABLE", "PERMISSIVE", "STRICT"])
SELECTORS = st.sampled_from([{}, {"app": "x1"}, {"version": "v1"}])
PORTS = (HTTP, TCP, ServicePort(port=95, target=15001, name="closed"), replace(HTTP, port=96, target="none"))

REDIRECTIONS = (
    Redirection(),
    Redirection(exclude_inbound_ports=(8080,), exclude_outbound_ports=(90,)),
    Redirection(networks=(ip_network("10.1.0.0/28"),)),
)


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    namespace, app = draw(st.sampled_from(NAMESPACES)), draw(st.sampled_from(APPS))
    labels = {"app": app, "version": draw(st.sampled_from(["v1", "v2"]))}
    name = f"{app}-{draw(st.integers(0, 2))}"
    return replace(
        pod(name, namespace, sidecar=draw(st.booleans()), **labels),
        service_account=draw(st.sampled_from(["one", "two"])),
        ready=draw(st.integers(0, 3)) > 0,
        ended=draw(st.integers(0, 5)) == 0,
        interception=draw(st.sampled_from(Interception)),
        redirection=draw(st.sampled_from(REDIRECTIONS)),
    )


@st.composite
def services(draw: st.DrawFn) -> Service:
    ports = draw(st.lists(st.sampled_from(PORTS), min_size=1, unique=True))
    age = draw(st.sampled_from([None, 1, 2]))
    drawn = service(draw(st.sampled_from(APPS)), draw(st.sampled_from(NAMESPACES)), *ports, age=age)
    drawn = replace(drawn, export_to=draw(st.sampled_from([(), (), ("a",), ("b",), ("*",)])))
    match draw(st.integers(0, 7)):
        case 0 | 1:
            return replace(drawn, addresses=(), headless=True)
        case 2:
            return replace(drawn, addresses=(draw(st.sampled_from(ADDRESSES)),))
    return drawn


@st.composite
def slices(draw: st.DrawFn) -> Endpoints:
    """EndpointSlices with addresses of pods in any namespace, of Services, and of no object."""
    name, namespace = draw(st.sampled_from(APPS)), draw(st.sampled_from(NAMESPACES))
    targets = st.sampled_from([None, None, Ref("Pod", "a", "x1-0"), Ref("Pod", "a", "unknown")])
    entries = st.builds(EndpointAddress, address=st.sampled_from(ADDRESSES), ready=st.booleans(), pod=targets)
    ports = st.sampled_from([EndpointPort(port=number, name="http") for number in (80, 8080)])
    group = EndpointGroup(
        addresses=tuple(draw(st.lists(entries, max_size=3))),
        ports=(draw(ports), EndpointPort(port=draw(st.sampled_from([90, 9090])), name="tcp")),
    )
    return Endpoints(meta=meta("EndpointSlice", namespace, f"{name}-1"), service=name, groups=(group,))


@st.composite
def policies(draw: st.DrawFn) -> Fact:
    namespace = draw(st.sampled_from([*NAMESPACES, ROOT]))
    name = f"p{draw(st.integers(0, 1))}"
    match draw(st.sampled_from([0, 1, 2, 3, 3, 3, 4, 5])):
        case 0:
            mode = draw(st.none() | MODES)
            ports = draw(st.dictionaries(st.sampled_from([8080, 9090]), MODES, max_size=1))
            return peer(namespace, mode, name=name, ports=ports, **draw(SELECTORS))
        case 1:
            return policy(draw(st.sampled_from(["", *NAMESPACES])), draw(MODES))
        case 2:
            return policy(
                draw(st.sampled_from(NAMESPACES)), draw(MODES), draw(st.sampled_from(APPS)), name=name
            )
        case 4:
            return draw(authorization_policies(namespace, name))
        case 5:
            entries = st.tuples(
                st.sampled_from([".", "*", *NAMESPACES]), st.sampled_from(["*", "x1.a.svc.cluster.local"])
            )
            hosts = tuple(draw(st.lists(entries, max_size=2)))
            return Sidecar(
                meta=meta("Sidecar", namespace, name),
                hosts=hosts,
                selector=draw(SELECTORS),
                allow_any_outbound=draw(st.sampled_from((None, True, False))),
            )
    exports = st.lists(st.sampled_from([".", "*", *NAMESPACES]), max_size=2, unique=True)
    return rule(
        namespace,
        draw(st.sampled_from(["*", "*.a.svc.cluster.local", "x1.a.svc.cluster.local"])),
        name=name,
        policy=draw(st.builds(TrafficPolicy, tls=TLS, load_balancer=BALANCING)),
        export_to=tuple(draw(exports)),
        selector=draw(st.none() | SELECTORS),
    )


@st.composite
def authorization_policies(draw: st.DrawFn, namespace: str, name: str) -> AuthorizationPolicy:
    of_client = [
        Condition(Attribute.NAMESPACE, (Pattern.parse("a"),)),
        Condition(Attribute.PRINCIPAL, (), (Pattern.parse("*/sa/one"),)),
    ]
    of_request = [
        Condition(Attribute.PATH, (Pattern.parse("/x*"),)),
        Condition(Attribute.DESTINATION_PORT, (Pattern.parse("8080"),)),
    ]
    others = [Condition(Attribute.UNSUPPORTED, (Pattern.parse("*"),), name="requestPrincipals")]

    def some(conditions: list[Condition]) -> st.SearchStrategy[tuple[Condition, ...]]:
        return st.lists(st.sampled_from(conditions), max_size=2).map(tuple)

    # All fields: Hypothesis would make up those that are missing, with patterns that no policy can contain.
    rules = st.builds(
        Rule,
        sources=st.lists(some(of_client), max_size=2).map(tuple),
        operations=st.lists(some(of_request), max_size=2).map(tuple),
        conditions=some(of_client + of_request + others),
    )
    return AuthorizationPolicy(
        meta=meta("AuthorizationPolicy", namespace, name),
        action=draw(st.sampled_from(Action)),
        selector=draw(SELECTORS),
        rules=tuple(draw(st.lists(rules, max_size=2))),
        dry_run=draw(st.booleans()),
    )


BALANCING = st.sampled_from([None, None, LoadBalancer(Simple.PASSTHROUGH)])
TLS = st.none() | st.builds(
    tls,
    st.sampled_from(["DISABLE", "SIMPLE", "ISTIO_MUTUAL"]),
    subject_alt_names=st.sampled_from([(), ("spiffe://cluster.local/ns/a/sa/one",)]),
)


LABELLED = tuple(
    Namespace(meta=meta("Namespace", "", name, team=team)) for name in NAMESPACES for team in ("a", "b")
)


@st.composite
def facts(draw: st.DrawFn) -> list[Fact]:
    """Facts with different names."""
    drawn: list[Fact] = [
        *draw(st.lists(policies(), max_size=4)),
        *draw(st.lists(pods(), max_size=4)),
        *draw(st.lists(services(), max_size=3)),
        *draw(st.lists(slices(), max_size=2)),
        *draw(st.lists(st.sampled_from(LABELLED), max_size=1)),
    ]
    return list({fact.ref: fact for fact in drawn}.values())


BASE: tuple[Fact, ...] = (
    service("x1", "a", HTTP),
    replace(pod("x1-0", "a", app="x1"), service_account="one"),
    replace(pod("x1-1", "a", app="x1"), service_account="two"),
    pod("x1-2", "a", sidecar=False, app="x1"),
    Namespace(meta=meta("Namespace", "", "a", team="a")),
    *(pod("v1", namespace, version="v1") for namespace in (*NAMESPACES, ROOT)),
    *(pod("v2", namespace, version="v2") for namespace in (*NAMESPACES, ROOT)),
)
"""A Service with endpoints of every kind, and clients in every namespace. Random facts can replace them."""
ADDRESSES = (*(fact.addresses[0] for fact in BASE if isinstance(fact, Pod | Service)), "192.0.2.1")


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    config = MeshConfig(
        enable_auto_mtls=draw(st.booleans()),
        allow_any_outbound=draw(st.booleans()),
        default_destination_rule_export_to=draw(st.sampled_from([("*",), (".",), ("b",)])),
        default_service_export_to=draw(st.sampled_from([("*",), ("*",), (".",)])),
        discovery_selectors=draw(st.sampled_from([(), (), ((Requirement("team", "NotIn", ("b",)),),)])),
    )
    return Mesh([*BASE, *draw(facts())], config)
