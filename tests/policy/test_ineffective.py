"""Objects that nothing in the mesh matches, and therefore have no effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.world import HTTP, ROOT, mesh, meta, peer, pod, policy, rule, service, sidecar, slices
from tests.support.authorization import authorization_policy, operation, source
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import (
    AuthorizationPolicy,
    Change,
    ContainerPort,
    Fact,
    Namespace,
    Pod,
    Ref,
    Requirement,
    ServiceAccount,
    ServicePort,
    Sidecar,
    TargetSelector,
    UnknownService,
)
from xds.mesh.model.traffic import Subset, TrafficPolicy
from xds.mesh.parse import parse
from xds.mesh.policy import ineffective
from xds.mesh.policy.finding import MAX_PER_OBJECT
from xds.mesh.policy.ineffective import Ineffective, policy_without_effect, without_effect
from xds.mesh.policy.unknown_names import MAX_SUGGESTIONS

WEB = service("web", "shop")
NAMED = ServicePort(port=80, target="http", name="http")
SHOP: list[Fact] = [pod("web", "shop"), WEB]
HOST = "web.shop.svc.cluster.local"
UNREPORTED = "unless the application listens on it anyway"
INJECT = "(inject the sidecar; until then, these pods accept plaintext)"
LOCK = "PeerAuthentication shop/lock"
POLICY = "Policy shop/lock"
RULE = "DestinationRule shop/rule"
NO_POD = "matches no pod in namespace shop"
NO_SERVICE = "matches no Service"
NONE = "so it has no effect"
NOWHERE = "does not exist (it contains only policies)"
ADDS_NONE = (
    "has no effect: it adds no sidecar to pods, so their traffic is plaintext (label the "
    "Namespace istio-injection=enabled)"
)
UNNAMED = "no container of its pods declares a port with this name, so port 80 has no endpoints"
RULES = "AuthorizationPolicy shop/rules"
NO_IDENTITY = "no known pod or ServiceAccount has this identity"
NO_NAMESPACE = "no known object is in this namespace"
REMOVE_RULE = "(remove the empty rule from AuthorizationPolicy shop/all)"
NO_PORT = "no selected pod declares port"


def ports(found: Pod, **named: int) -> Pod:
    return replace(found, ports=tuple(ContainerPort(port=port, name=name) for name, port in named.items()))


def labelled(name: str, **labels: str) -> Namespace:
    return Namespace(meta=meta("Namespace", "", name, **labels))


def access(namespace: str, *rules: dict[str, Any], **more: Any) -> Fact:
    """An AuthorizationPolicy."""
    (parsed,) = parse(authorization_policy(namespace, *rules, **more), lambda _: "")
    assert parsed.fact
    return parsed.fact


def callers(field: str, *values: str) -> Fact:
    """An AuthorizationPolicy for some callers."""
    return access("shop", source(**{field: list(values)}))


ALLOW_ALL = access(ROOT, {}, name="all")


def said(world: Mesh) -> list[str]:
    """Each problem in one line, a notice with a mark."""
    return [
        ("notice: " if problem.notice else "") + str(problem)
        for problems in without_effect(world).problems.values()
        for problem in problems
    ]


INEFFECTIVE: dict[str, tuple[list[Fact], str]] = {
    "a lock whose selector has a typo": (
        [peer("shop", "STRICT", name="lock", app="wbe")],
        f"{LOCK}: selector app=wbe {NO_POD}, {NONE} (did you mean app=web?)",
    ),
    "a lock whose selector has a typo in the key": (
        [peer("shop", "STRICT", name="lock", ap="web")],
        f"{LOCK}: selector ap=web {NO_POD}, {NONE} (did you mean app=web?)",
    ),
    "a lock for labels that pods have, but no pod together": (
        [pod("a", "shop", v="1"), pod("b", "shop"), peer("shop", "STRICT", name="lock", app="b", v="1")],
        f"{LOCK}: selector app=b,v=1 {NO_POD}, {NONE}",
    ),
    "a lock for a workload that is scaled to 0": (
        [replace(service("db", "shop"), ports=()), peer("shop", "STRICT", name="lock", app="db")],
        (
            f"notice: {LOCK}: selector app=db {NO_POD}, {NONE} "
            "(Service db selects the same workload and has no pods either)"
        ),
    ),
    "a lock of pods without a sidecar": (
        [pod("bare", "shop", sidecar=False), peer("shop", "STRICT", name="lock", app="bare")],
        f"{LOCK}: selector app=bare matches only pods without a sidecar in namespace shop, {NONE} {INJECT}",
    ),
    "a lock of a namespace without sidecars": (
        [pod("x", "bare", sidecar=False), peer("bare", "STRICT")],
        f"PeerAuthentication bare/default: no pod in namespace bare has a sidecar, {NONE} {INJECT}",
    ),
    "a Policy of a namespace without sidecars": (
        [pod("x", "bare", sidecar=False), policy("bare", "STRICT")],
        f"Policy bare/default: no pod in namespace bare has a sidecar, {NONE} {INJECT}",
    ),
    "a target without sidecars": (
        [pod("bare", "shop", sidecar=False), service("bare", "shop"), policy("shop", "STRICT", "bare")],
        f"Policy shop/default: target bare: no pod of the Service has a sidecar, {NONE} {INJECT}",
    ),
    "a label for a revision of Istio": (
        [labelled("new", **{"istio.io/rev": "1-24", "istio.io/dataplane-mode": "ambient"})],
        f"notice: Namespace new: label istio.io/rev=1-24 {ADDS_NONE}",
    ),
    "a label for ambient mode": (
        [
            labelled("new", **{"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "none"}),
            pod("a", "new"),
            pod("b", "new", sidecar=False),
        ],
        f"notice: Namespace new: label istio.io/dataplane-mode=ambient {ADDS_NONE}",
    ),
    "a label for a waypoint": (
        [labelled("new", **{"istio.io/dataplane-mode": "none", "istio.io/use-waypoint": "own"})],
        f"notice: Namespace new: label istio.io/use-waypoint=own {ADDS_NONE}",
    ),
    "a lock of a namespace that does not exist": (
        [peer("shpo", "STRICT")],
        f"PeerAuthentication shpo/default: namespace shpo {NOWHERE}, {NONE} (did you mean shop?)",
    ),
    "a selector of a namespace that does not exist, told once": (
        [peer("nowhere", "STRICT", app="web")],
        f"PeerAuthentication nowhere/default: namespace nowhere {NOWHERE}, {NONE}",
    ),
    "an egress host that does not exist": (
        [sidecar("shop", "shop/webb.shop.svc.cluster.local")],
        (
            "notice: Sidecar shop/default: egress host shop/webb.shop.svc.cluster.local matches no Service "
            "(did you mean web.shop.svc.cluster.local?)"
        ),
    ),
    "an egress host in another namespace": (
        [pod("a", "other"), sidecar("other", "./web.shop.svc.cluster.local", "*/*")],
        (
            "notice: Sidecar other/default: egress host ./web.shop.svc.cluster.local matches no Service "
            "(did you mean shop/web.shop.svc.cluster.local?)"
        ),
    ),
    "exportTo of a Service": (
        [pod("db", "shop"), replace(service("db", "shop"), export_to=("shop", "shpo"))],
        "notice: Service shop/db: exportTo shpo: no known object is in this namespace (did you mean shop?)",
    ),
    "exportTo of a rule": (
        [replace(rule("shop", HOST, "ISTIO_MUTUAL"), export_to=(".", "nowhere"))],
        "notice: DestinationRule shop/rule: exportTo nowhere: no known object is in this namespace",
    ),
    "a rule of a namespace that does not exist": (
        [rule("shpo", "nothing", "DISABLE")],
        f"DestinationRule shpo/rule: namespace shpo {NOWHERE}, {NONE} (did you mean shop?)",
    ),
    "a selector in the root namespace": (
        [pod("x", ROOT), peer(ROOT, "STRICT", app="x")],
        (
            f"PeerAuthentication istio-system/default: a selector in the root namespace istio-system selects "
            f"nothing, {NONE} "
            "(remove the selector to apply it to the whole mesh, or move it to the workload's namespace)"
        ),
    ),
    "a port of the Service where the workload's should be": (
        [peer("shop", "DISABLE", name="lock", ports={80: "STRICT"}, app="web")],
        (
            f"{LOCK}: portLevelMtls 80: {NO_PORT} 80, and no Service forwards to it, {NONE} {UNREPORTED} "
            "(port 80 of Service web forwards to 8080: write 8080)"
        ),
    ),
    "a port that no pod declares": (
        [
            ports(pod("alone", "shop"), http=8080),
            peer("shop", None, name="lock", ports={8081: "STRICT"}, app="alone"),
        ],
        f"{LOCK}: portLevelMtls 8081: {NO_PORT} 8081, and no Service forwards to it, {NONE} {UNREPORTED}",
    ),
    "a target that is no Service": (
        [policy("shop", "STRICT", "wbe", name="lock")],
        f"{POLICY}: target wbe is not a Service in namespace shop, {NONE} (did you mean web?)",
    ),
    "a target in another namespace": (
        [policy("shop", "STRICT", "web.bank.svc.cluster.local", name="lock")],
        f"{POLICY}: target web.bank.svc.cluster.local is not a Service in namespace shop, {NONE}",
    ),
    "a port that a target does not have": (
        [policy("shop", "STRICT", TargetSelector(service="web", ports=(80, 8080, "tcp")), name="lock")],
        (
            f"{POLICY}: target web port 8080: the Service has no such port, {NONE} "
            "(its ports are 80 (http), 90 (tcp))"
        ),
    ),
    "a port of a target without ports": (
        [
            slices(none := replace(service("none", "shop"), ports=()), "10.0.0.1"),
            none,
            policy("shop", "STRICT", TargetSelector(service="none", ports=(80,)), name="lock"),
        ],
        f"{POLICY}: target none port 80: the Service has no such port, {NONE}",
    ),
    "a rule for an unknown host": (
        [rule("shop", "wbe.shop.svc.cluster.local", "ISTIO_MUTUAL")],
        f"{RULE}: host wbe.shop.svc.cluster.local {NO_SERVICE}, {NONE} (did you mean {HOST}?)",
    ),
    "a rule for a host without the cluster's domain": (
        [rule("shop", "web.shop", "ISTIO_MUTUAL")],
        f"{RULE}: host web.shop {NO_SERVICE}, {NONE} (did you mean web.shop.svc.cluster.local?)",
    ),
    "a rule for an unknown namespace": (
        [rule("shop", "web.shpo.svc.cluster.local", "ISTIO_MUTUAL")],
        f"{RULE}: host web.shpo.svc.cluster.local {NO_SERVICE}, {NONE} (did you mean {HOST}?)",
    ),
    "a rule for a wildcard that covers no Service": (
        [rule("shop", "*.example.com", "SIMPLE")],
        f"{RULE}: host *.example.com {NO_SERVICE}, {NONE}",
    ),
    "a rule for a host outside of the mesh": (
        [rule("shop", "api.example.com", "SIMPLE")],
        f"notice: {RULE}: host api.example.com {NO_SERVICE}, {NONE}",
    ),
    "a lock for a version that does not run": (
        [peer("shop", "STRICT", name="lock", app="web", version="v11")],
        f"{LOCK}: selector app=web,version=v11 {NO_POD}, {NONE}",
    ),
    "a subset that selects nothing": (
        [pod("web-2", "shop", v="1"), rule("shop", HOST, subsets=(Subset(name="v3", labels={"v": "3"}),))],
        f"notice: {RULE}: subset v3: v=3 matches no pod of host {HOST}, {NONE}",
    ),
    "subsets of a wildcard": (
        [rule("shop", "*.shop.svc.cluster.local", subsets=(Subset(name="all", labels={}),))],
        f"notice: {RULE}: subsets of the wildcard *.shop.svc.cluster.local have no effect",
    ),
    "more subsets than a Service may have": (
        [rule("shop", HOST, subsets=tuple(Subset(name=f"v{n}", labels={}) for n in range(513)))],
        (
            f"{RULE}: 513 subsets of Service shop/web with 2 ports would need more than 1,024 clusters, "
            "so its subsets have no effect"
        ),
    ),
    "a setting for a port that the Service does not have": (
        [rule("shop", HOST, policy=TrafficPolicy(ports={80: TrafficPolicy(), 81: TrafficPolicy()}))],
        f"{RULE}: portLevelSettings 81: no Service that host {HOST} matches has this port, {NONE}",
    ),
    "a rule for clients that there are not": (
        [rule("shop", HOST, "DISABLE", selector={"app": "wbe"})],
        f"{RULE}: workloadSelector app=wbe {NO_POD}, {NONE} (did you mean app=web?)",
    ),
    "a targetPort that no container declares": (
        [ports(pod("api", "shop"), web=8080), service("api", "shop", NAMED)],
        f"Service shop/api: targetPort http: {UNNAMED} (its pods declare web (8080))",
    ),
    "a targetPort of pods that declare nothing": (
        [pod("api", "shop"), service("api", "shop", NAMED)],
        f"Service shop/api: targetPort http: {UNNAMED}",
    ),
    "a Service that selects nothing": (
        [service("api", "shop", app="wbe")],
        (
            f"notice: Service shop/api: selector app=wbe {NO_POD}, so it has no endpoints (did you mean "
            f"app=web?)"
        ),
    ),
    "a Service that selects pods that have ended": (
        [replace(pod("job", "shop"), ended=True), service("job", "shop")],
        f"notice: Service shop/job: selector app=job {NO_POD}, so it has no endpoints",
    ),
    "an address that belongs to another Service": (
        [replace(service("zoo", "shop", app="web"), addresses=service("web", "shop").addresses)],
        (
            f"Service shop/zoo: clusterIP {service('web', 'shop').addresses[0]} belongs to Service shop/web: "
            f"traffic to it is not sent to this Service"
        ),
    ),
    "a Service that nothing is listed for": (
        [replace(service("api", "shop"), selector={})],
        (
            "notice: Service shop/api: it has no selector, and no EndpointSlice with addresses, so it has no "
            "endpoints (add an EndpointSlice or a selector)"
        ),
    ),
    "an ALLOW policy that allows nothing": (
        [pod("db", "shop"), replace(service("db", "shop"), ports=()), access("shop")],
        (
            f"notice: {RULES}: it has no rules, so all requests to the pods of these Services are denied: "
            "db, web (to allow all requests, write rules: [{}])"
        ),
    ),
    "a policy that allows nothing, of some pods": (
        [
            *(
                access("shop", source(namespaces=["shop"]), name=name, selector={"app": name})
                for name in ["db"]
            ),
            pod("db", "shop"),
            replace(service("db", "shop"), ports=()),
            access("shop", {}, name="tried", dry_run=True),
            access(
                "shop", operation(methods=["GET"]), name="audited", action="AUDIT", selector={"app": "db"}
            ),
            access("shop"),
        ],
        (
            f"notice: {RULES}: it has no rules, so all requests to the pods of these Services are denied: "
            "web (to allow all requests, write rules: [{}])"
        ),
    ),
    "a policy beside one that allows everything": (
        [
            access("shop", {}, name="all"),
            access("shop", source(namespaces=["shop"]), selector={"app": "web"}),
        ],
        f"{RULES}: AuthorizationPolicy shop/all allows all requests to the same pods, {NONE} {REMOVE_RULE}",
    ),
    "a policy that allows nothing, beside one of the mesh that allows everything": (
        [ALLOW_ALL, access("shop")],
        (
            f"{RULES}: AuthorizationPolicy istio-system/all allows all requests to the same pods, {NONE} "
            "(remove the empty rule from AuthorizationPolicy istio-system/all)"
        ),
    ),
    "a policy of the mesh beside one that allows everything": (
        [ALLOW_ALL, access(ROOT, source(namespaces=["shop"]), name="some")],
        (
            "AuthorizationPolicy istio-system/some: AuthorizationPolicy istio-system/all allows all requests "
            f"to the same pods, {NONE} (remove the empty rule from AuthorizationPolicy istio-system/all)"
        ),
    ),
    "access to a port of the Service where the workload's should be": (
        [access("shop", operation(ports=["80", "8080"]) | source(namespaces=["shop"]), action="DENY")],
        (
            f"{RULES}: ports 80: {NO_PORT} 80, and no Service forwards to it, {NONE} {UNREPORTED} "
            "(port 80 of Service web forwards to 8080: write 8080)"
        ),
    ),
    "access of all but a port that no pod has": (
        [access("shop", operation(notPorts=["1"]), action="DENY", selector={"app": "web"})],
        f"{RULES}: ports 1: {NO_PORT} 1, and no Service forwards to it, {NONE} {UNREPORTED}",
    ),
    "a service account with a typo": (
        [callers("serviceAccounts", "web", "shop/wbe")],
        f"notice: {RULES}: source.serviceAccount 'shop/wbe': {NO_IDENTITY} (did you mean web?)",
    ),
    "a principal with a typo": (
        [callers("principals", "cluster.local/ns/shop/sa/wbe", "cluster.local/ns/shop/sa/web")],
        (
            f"notice: {RULES}: source.principal 'cluster.local/ns/shop/sa/wbe': {NO_IDENTITY} "
            "(did you mean web?)"
        ),
    ),
    "a principal in an unknown namespace": (
        [callers("notPrincipals", "cluster.local/ns/shpo/sa/web")],
        (
            f"notice: {RULES}: source.principal 'cluster.local/ns/shpo/sa/web': {NO_NAMESPACE} "
            "(did you mean shop?)"
        ),
    ),
    "an unknown namespace of callers": (
        [callers("namespaces", "shop", "bank")],
        f"notice: {RULES}: source.namespace 'bank': {NO_NAMESPACE}",
    ),
    "a principal that is a service account": (
        [callers("principals", "shop/web")],
        (
            f"{RULES}: source.principal 'shop/web': no pod has an identity like this "
            "(write TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT)"
        ),
    ),
    "a principal of another trust domain": (
        [callers("principals", "other.example/ns/shop/sa/web")],
        (
            f"{RULES}: source.principal 'other.example/ns/shop/sa/web': no pod has this trust domain "
            "(the trust domains of the mesh are cluster.local)"
        ),
    ),
    "another trust domain": (
        [callers("trustDomains", "other.example")],
        (
            f"{RULES}: source.trustDomain 'other.example': no pod has this trust domain "
            "(the trust domains of the mesh are cluster.local)"
        ),
    ),
}


@pytest.mark.parametrize(("facts", "line"), INEFFECTIVE.values(), ids=INEFFECTIVE)
def test_object_without_effect_is_reported_with_reason(facts: list[Fact], line: str) -> None:
    world = mesh(*SHOP, *facts)
    assert said(world) == [line]
    refs = [fact.ref for fact in facts if isinstance(fact, AuthorizationPolicy | Sidecar)]
    alone = [str(problem) for ref in refs for problem in policy_without_effect(world, ref)]
    assert alone == ([line.removeprefix("notice: ")] if refs else [])


def test_discovery_selectors_that_match_no_namespace_are_reported():
    selectors = ((Requirement("mesh", "In", ("yes",)),), (Requirement("team", "Exists"),))
    world = mesh(*SHOP, discovery_selectors=selectors)
    assert said(world) == [], "no Namespace is known"

    shop = Namespace(meta=meta("Namespace", "", "shop", team="a"))
    assert said(world.apply(Change(applied=(shop,)))) == [
        "notice: MeshConfig: discoverySelectors[0] matches no Namespace"
    ]
    shop = Namespace(meta=meta("Namespace", "", "shop", mesh="no"))
    assert said(world.apply(Change(applied=(shop,)))) == [
        "MeshConfig: discoverySelectors[0] matches no Namespace, so clients see no services of any Namespace",
        "MeshConfig: discoverySelectors[1] matches no Namespace, so clients see no services of any Namespace",
    ]


EFFECTIVE: dict[str, list[Fact]] = {
    "exportTo": [
        Namespace(meta=meta("Namespace", "", "empty")),
        pod("db", "shop"),
        replace(service("db", "shop"), export_to=("shop", "empty")),
        pod("private", "shop"),
        replace(service("private", "shop"), export_to=("~",)),
        replace(rule("shop", HOST, "ISTIO_MUTUAL"), export_to=(".",)),
    ],
    "a lock of some pods": [peer("shop", "STRICT", name="lock", app="web")],
    "egress hosts": [
        sidecar("shop", f"./{HOST}", f"~/web.{HOST}", f"*/{HOST}", "*/*", "*/*.example.com"),
        sidecar(ROOT, f"./{HOST}", "*/kubernetes.default.svc.cluster.local"),
    ],
    "a lock of a namespace, and of the mesh": [peer("shop", "STRICT"), peer(ROOT, "STRICT")],
    "a lock of a namespace that is empty, but exists": [
        Namespace(meta=meta("Namespace", "", "new")),
        replace(service("db", "new"), ports=()),
        peer("new", "STRICT"),
    ],
    "a lock of a namespace of which only the Namespace is known": [
        Namespace(meta=meta("Namespace", "", "new")),
        peer("new", "STRICT"),
    ],
    "a lock of some pods with a sidecar and some without": [
        pod("web-2", "shop", sidecar=False),
        peer("shop", "STRICT", name="lock", app="web"),
    ],
    "labels of Istio in a namespace with sidecars": [
        labelled("shop", **{"istio.io/rev": "1-24"}),
        labelled("new", **{"istio.io/rev": "1-24", "istio-injection": "enabled"}),
        labelled("off", **{"istio.io/dataplane-mode": "none", "istio.io/rev": ""}),
        labelled(ROOT, **{"istio.io/rev": "default"}),
    ],
    "a policy for a Service that was refused": [
        UnknownService(meta=meta("Service", "shop", "db"), service="db"),
        policy("shop", "STRICT", "db"),
    ],
    "a port that a Service leads to": [peer("shop", None, name="lock", ports={8080: "STRICT"}, app="web")],
    "a port that a pod declares": [
        ports(pod("alone", "shop"), http=8081),
        peer("shop", None, name="lock", ports={8081: "STRICT"}, app="alone"),
    ],
    "a port that is listed": [
        other := replace(service("other", "shop"), selector={}),
        slices(other, "10.0.0.9", port=7070),
        peer("shop", None, name="lock", ports={7070: "STRICT"}, app="web"),
    ],
    "a port of pods that declare none": [
        pod("alone", "shop"),
        peer("shop", None, name="lock", ports={8081: "STRICT"}, app="alone"),
    ],
    "targets": [
        policy("shop", "STRICT", "web", HOST, TargetSelector(service="web", ports=(80, "tcp")), name="lock")
    ],
    "policies of all": [policy("shop", "STRICT"), policy("", "STRICT")],
    "rules": [
        rule("shop", HOST, "DISABLE", name="exact", selector={"app": "web"}),
        rule("shop", "*.local", "DISABLE", name="wide", selector={}),
        rule("shop", HOST, name="subset", subsets=(Subset(name="all", labels={}, policy=TrafficPolicy()),)),
        rule("shop", "kubernetes.default.svc.cluster.local", "DISABLE", name="api-server"),
    ],
    "a subset of a Service that has no pods now": [
        db := service("db", "shop"),
        slices(db, "10.0.0.9"),
        slices(db, "10.0.0.9", name="tcp"),
        rule("shop", db.host, subsets=(Subset(name="v3", labels={"v": "3"}),)),
    ],
    "a targetPort that one of the pods declares": [
        pod("api", "shop"),
        ports(pod("api-2", "shop", app="api"), http=8080),
        service("api", "shop", NAMED),
    ],
    "a targetPort that an EndpointSlice answers": [
        pod("api", "shop"),
        api := service("api", "shop", NAMED),
        slices(api, "10.0.0.9"),
    ],
    "a Service with endpoints, though not for each port": [
        part := replace(service("part", "shop"), selector={}),
        slices(part, "10.0.0.9"),
    ],
    "a Service with numbers, of pods": [service("web-2", "shop", HTTP, app="web")],
    "a Service without ports": [replace(service("db", "shop"), ports=())],
    "access for all, also if several policies say so": [
        ALLOW_ALL,
        access("shop", {}),
        access("shop", {}, name="b"),
    ],
    "a policy beside one that allows everything to other pods": [
        pod("db", "shop"),
        access("shop", {}, name="all", selector={"app": "db"}),
        access("shop", source(namespaces=["shop"])),
    ],
    "a policy beside one that would allow everything, or denies": [
        access("shop", {}, name="tried", dry_run=True),
        access("shop", source(namespaces=["shop"])),
        access("shop", {}, name="no", action="DENY"),
    ],
    "a policy that denies by default": [
        access("shop"),
        access("shop", source(namespaces=["shop"]), name="web", selector={"app": "web"}),
    ],
    "a policy that denies by default, beside one of the mesh": [
        access("shop"),
        access(ROOT, source(namespaces=["shop"]), selector={"app": "web"}),
    ],
    "a policy that allows nothing, beside one that applies to all": [
        access("shop"),
        access("shop", source(namespaces=["shop"]), name="some"),
    ],
    "a policy that allows nothing to pods without a Service": [
        pod("caller", "shop"),
        access("shop", selector={"app": "caller"}),
    ],
    "a policy that allows nothing to the mesh, or that is tried": [
        access(ROOT),
        access("shop", dry_run=True),
    ],
    "access to ports of pods": [
        ports(pod("alone", "shop"), http=8081),
        access("shop", operation(ports=["8080", "8081", "9090"])),
        access("shop", operation(ports=["8081"]), name="same-pods"),
        access(ROOT, operation(ports=["1"])),
        control := replace(service("control", ROOT, HTTP), selector={}),
        slices(control, "10.0.0.8"),
    ],
    "access to a port of pods that declare none": [
        pod("alone", "shop"),
        access("shop", operation(ports=["1"]), selector={"app": "alone"}),
    ],
    "callers that are known": [
        ServiceAccount(meta=meta("ServiceAccount", "shop", "later")),
        Namespace(meta=meta("Namespace", "", "new")),
        replace(pod("job", "shop"), ended=True),
        callers(
            "principals", *(f"cluster.local/ns/shop/sa/{name}" for name in ("web", "later", "job")), "*/x"
        ),
        access("shop", source(serviceAccounts=["later"], trustDomains=["cluster.local"]), name="b"),
        access("shop", source(notNamespaces=["new", "ban*"]), name="c"),
    ],
}


@pytest.mark.parametrize("facts", EFFECTIVE.values(), ids=EFFECTIVE)
def test_object_with_effect_is_not_reported(facts: list[Fact]) -> None:
    assert said(mesh(*SHOP, *facts)) == []


@pytest.mark.parametrize("lock", [peer(ROOT, "STRICT"), policy("", "STRICT"), peer("new", "STRICT")])
def test_policy_of_a_mesh_without_sidecars_has_no_effect(lock: Fact) -> None:
    new = labelled("new")
    ended = replace(pod("job", "shop"), ended=True)
    world = mesh(lock, new, ended, pod("web", "shop", sidecar=False))
    [line] = said(world)
    assert [str(problem) for problem in policy_without_effect(world, lock.ref)] == [line]
    assert line == (
        f"{lock.ref}: no pod in the mesh has a sidecar, so it has no effect "
        "(inject the sidecar; until then, these pods accept plaintext)"
    )
    assert said(mesh(lock, new, pod("web", "shop"))) == []
    without_pods = f"notice: {lock.ref}: no pod in the mesh has a sidecar, so it has no effect"
    assert said(mesh(lock, new)) == [without_pods]


def test_default_objects_are_not_reported() -> None:
    assert said(mesh(pod("web", "shop"), mtls_enabled=True)) == []


def test_problem_in_a_file_names_the_object() -> None:
    lock = peer("shop", "STRICT", name="lock", app="wbe")
    (problem,) = without_effect(
        mesh(*SHOP, replace(lock, meta=replace(lock.meta, origin="m/lock.yaml:3")))
    ).problems[lock.ref]
    assert problem.where == "m/lock.yaml:3"
    assert problem.what.startswith("PeerAuthentication shop/lock: selector app=wbe matches no pod")


def test_report_ends_when_the_object_has_an_effect() -> None:
    lock = peer("shop", "STRICT", name="lock", app="db")
    world = mesh(*SHOP, lock)
    before = without_effect(world)
    assert set(before.problems) == {lock.ref}
    assert without_effect(world.apply(Change(applied=(pod("db", "shop"),))), before).problems == {}


def test_problems_of_one_object_are_limited() -> None:
    subsets = tuple(Subset(name=f"s{n}", labels={"v": str(n)}) for n in range(500))
    found = said(mesh(*SHOP, rule("shop", HOST, subsets=subsets)))
    assert len(found) == MAX_PER_OBJECT + 1
    assert found[-1] == f"notice: DestinationRule shop/rule: {500 - MAX_PER_OBJECT} more parts have no effect"
    ports = peer("shop", None, name="lock", ports=dict.fromkeys(range(1, 500), "STRICT"), app="web")
    assert said(mesh(*SHOP, ports))[-1] == f"{LOCK}: {499 - MAX_PER_OBJECT} more parts have no effect"


def test_principals_are_known_in_each_trust_domain_of_the_mesh() -> None:
    domains = ("cluster.local", "new", "old", "other")
    known = callers("principals", *(f"{domain}/ns/shop/sa/web" for domain in domains))
    (line,) = said(mesh(*SHOP, known, trust_domain="new", trust_domain_aliases=("old",)))
    assert line == (
        f"{RULES}: source.principal 'other/ns/shop/sa/web': no pod has this trust domain "
        "(the trust domains of the mesh are new, old)"
    )


def test_suggestions_of_identities_are_limited() -> None:
    policies = [access("shop", source(namespaces=["shpo"]), name=f"p{n}") for n in range(MAX_SUGGESTIONS + 1)]
    found = said(mesh(*SHOP, *policies))
    assert len(found) == len(policies)
    assert sum("did you mean shop?" in line for line in found) == MAX_SUGGESTIONS


def test_long_selector_is_shortened() -> None:
    labels = {f"l{n}": "x" for n in range(9)}
    (line,) = said(mesh(*SHOP, peer("shop", "STRICT", name="lock", **labels)))
    assert "selector l0=x,l1=x,l2=x,l3=x,l4=x,... matches no pod" in line


def test_only_changed_namespaces_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    original = ineffective._in_namespace

    def counted(space):
        computed.extend({ref.namespace for ref in space.facts.facts})
        return original(space)

    monkeypatch.setattr(ineffective, "_in_namespace", counted)
    spaces = [fact for n in range(20) for fact in (pod("web", f"ns{n}"), service("web", f"ns{n}"))]
    world = mesh(*spaces, peer("ns3", "STRICT", name="lock", app="wbe"))
    found = without_effect(world)
    assert len(computed) == 20
    computed.clear()
    changed = world.apply(Change(applied=(pod("web-2", "ns7"),)))
    again = without_effect(changed, found)
    assert computed == ["ns7"]
    assert again.problems == found.problems
    assert again == without_effect(changed)
    # Of another root namespace, or of other policies for the whole mesh, nothing can be kept.
    for other in (mesh(*spaces, root_namespace="root"), changed.apply(Change(applied=(ALLOW_ALL,)))):
        computed.clear()
        without_effect(other, found)
        assert len(computed) >= 20
    assert Ref("PeerAuthentication", "ns3", "lock") in found.problems
    assert Ineffective().problems == {}
