"""DestinationRule lookup, merging and levels, as Istio has them."""

from __future__ import annotations

import pytest

from tests.policy.world import ROOT, mesh, rule, service, tls
from xds.mesh.model.loadbalancer import LoadBalancer, Simple
from xds.mesh.model.traffic import (
    ClientTls,
    ConnectionPool,
    OutlierDetection,
    Subset,
    TlsMode,
    TrafficPolicy,
)
from xds.mesh.policy.destination import client_rule, could_apply

HOST = "web.server.svc.cluster.local"
WEB = service("web", "server")
AT_RANDOM = TrafficPolicy(load_balancer=LoadBalancer(Simple.RANDOM))


def chosen(namespace: str, *rules, labels=None, **config) -> str | None:
    """The names of the rules that a client of a namespace gets."""
    found = client_rule(mesh(WEB, *rules, **config), namespace, labels or {}, WEB)
    return " ".join(ref.name for ref in found.refs) if found else None


def named(namespace: str, host: str = HOST, **more):
    return rule(namespace, host, name=more.pop("name", f"in-{namespace}"), **more)


LOOKUPS = {
    "none": ([], None),
    "of another host": ([named("client", "other.server.svc.cluster.local")], None),
    "the client's namespace first": ([named("client"), named("server"), named(ROOT)], "in-client"),
    "then the service's": ([named("server"), named(ROOT)], "in-server"),
    "then the root namespace": ([named(ROOT)], "in-istio-system"),
    "of a third namespace": ([named("third")], None),
    "less specific, but nearer": ([named("client", "*"), named("server")], "in-client"),
    "exact beats a wildcard": (
        [named("client", "*.server.svc.cluster.local"), named("client", name="x")],
        "x",
    ),
    "the longer wildcard": (
        [
            named("client", "*.local"),
            named("client", "*.server.svc.cluster.local", name="x"),
            named("client", "*", name="y"),
        ],
        "x",
    ),
    "private to the service's namespace": ([named("server", export_to=(".",))], None),
    "private, the root's counts": ([named("server", export_to=(".",)), named(ROOT)], "in-istio-system"),
    "exported to the client": ([named("server", export_to=("client",))], "in-server"),
    "exported to another": ([named("server", export_to=("other",)), named(ROOT)], "in-istio-system"),
    "a match that is not for the client ends its namespace": (
        [named("server", export_to=("other",)), named("server", "*", name="wide")],
        None,
    ),
    "a private one does not hide a wider public one": (
        [named("server", export_to=(".",)), named("server", "*", name="wide")],
        "wide",
    ),
    "the client's own, for itself": ([named("client", export_to=(".",))], "in-client"),
    "the client's own, for itself by name": ([named("client", export_to=("client",))], "in-client"),
    "the client's own, for others": ([named("client", export_to=("server",))], None),
    "the client's own, for all": ([named("client", export_to=("*",))], "in-client"),
}


@pytest.mark.parametrize(("rules", "expected"), LOOKUPS.values(), ids=LOOKUPS)
def test_client_gets_rule(rules, expected):
    assert chosen("client", *rules) == expected


def test_export_to_defaults_to_the_mesh_setting():
    assert chosen("client", named("server"), default_destination_rule_export_to=(".",)) is None
    assert chosen("server", named("server"), default_destination_rule_export_to=(".",)) == "in-server"


def test_root_namespace_clients_use_its_public_rules_last():
    assert chosen(ROOT, named(ROOT), named("server")) == "in-server"
    assert chosen(ROOT, named(ROOT, export_to=(".",)), named("server")) == "in-istio-system"
    assert chosen(ROOT, named(ROOT)) == "in-istio-system"


def test_rule_with_selector_applies_in_its_namespace_only():
    picky = named("client", name="picky", selector={"app": "a"})
    assert chosen("client", picky, named("client"), labels={"app": "a", "x": "y"}) == "picky"
    assert chosen("client", picky, named("client"), labels={"app": "b"}) == "in-client"
    assert chosen("client", picky, labels={"app": "b"}) is None
    assert chosen("client", named("server", selector={"app": "a"}), labels={"app": "a"}) is None


def test_oldest_matching_selector_wins():
    young = named("client", name="young", age=1, selector={"app": "a"})
    old = named("client", name="old", age=2, selector={"x": "y"})
    assert chosen("client", young, old, labels={"app": "a", "x": "y"}) == "old"


def test_rules_of_one_host_are_merged_oldest_first():
    old = rule("server", HOST, name="old", age=9, subsets=(Subset(name="v1", labels={"from": "old"}),))
    young = rule(
        "server",
        HOST,
        "DISABLE",
        name="young",
        age=1,
        subsets=(Subset(name="v1", labels={"from": "young"}), Subset(name="v2")),
    )
    found = client_rule(mesh(WEB, old, young), "client", {}, WEB)
    assert [(subset.name, subset.labels) for subset in found.subsets] == [("v1", {"from": "old"}), ("v2", {})]
    assert found.for_port(80).tls.mode is TlsMode.DISABLE
    assert found.tls_owner(80).name == "young"
    assert found.owners["v1"].name == "old"
    assert found.owners["v2"].name == "young"


def test_policy_of_the_older_rule_stays_whole():
    old = rule("server", HOST, name="old", age=9, policy=AT_RANDOM)
    young = rule("server", HOST, "DISABLE", name="young", age=1)
    found = client_rule(mesh(WEB, old, young), "client", {}, WEB)
    assert found.for_port(80) == AT_RANDOM


def test_rules_with_different_export_are_not_merged():
    one = rule("server", HOST, name="one", age=9, export_to=("*",), subsets=(Subset(name="v1"),))
    two = rule("server", HOST, name="two", age=1, export_to=("client",), subsets=(Subset(name="v2"),))
    assert chosen("client", one, two) == "two"
    assert chosen("other", one, two) == "one"


MTLS, OFF = tls("ISTIO_MUTUAL"), tls("DISABLE")
POOL = ConnectionPool(max_connections=1)
OUTLIER = OutlierDetection(consecutive_5xx=1)
PORTED = TrafficPolicy(tls=OFF, connection_pool=POOL, ports={80: AT_RANDOM})


def at(policy: TrafficPolicy | None, subset: TrafficPolicy | None, port: int) -> TrafficPolicy:
    found = rule("client", HOST, policy=policy, subsets=(Subset(name="v1", policy=subset),))
    return client_rule(mesh(WEB, found), "client", {}, WEB).for_port(port, "v1")


def test_port_entry_replaces_the_whole_policy():
    assert at(PORTED, None, 80) == AT_RANDOM
    assert at(PORTED, None, 90) == TrafficPolicy(tls=OFF, connection_pool=POOL)


def test_subset_without_policy_uses_the_service_policy():
    assert at(None, None, 80) == TrafficPolicy()


def test_subset_fields_override_one_by_one():
    subset = TrafficPolicy(tls=MTLS, outlier_detection=OUTLIER)
    assert at(PORTED, subset, 90) == TrafficPolicy(tls=MTLS, connection_pool=POOL, outlier_detection=OUTLIER)
    assert at(PORTED, subset, 80) == TrafficPolicy(
        tls=MTLS, outlier_detection=OUTLIER, load_balancer=LoadBalancer(Simple.RANDOM)
    )


def test_subset_port_entry_replaces_all_fields():
    subset = TrafficPolicy(tls=MTLS, ports={80: TrafficPolicy(outlier_detection=OUTLIER)})
    assert at(PORTED, subset, 80) == TrafficPolicy(outlier_detection=OUTLIER)
    assert at(PORTED, subset, 90) == TrafficPolicy(tls=MTLS, connection_pool=POOL)


def test_tls_owner_is_the_object_that_sets_it():
    old = rule("client", HOST, name="old", age=2, policy=TrafficPolicy(tls=OFF))
    young = rule(
        "client",
        HOST,
        name="young",
        age=1,
        subsets=(Subset(name="v1", policy=TrafficPolicy(tls=MTLS)), Subset(name="v2")),
    )
    found = client_rule(mesh(WEB, old, young), "client", {}, WEB)
    assert found.tls_owner(80, "v1").name == "young"
    assert found.tls_owner(80, "v2").name == "old"
    assert found.tls_owner(80).name == "old"


@pytest.mark.parametrize(
    ("found", "applies"),
    [
        (rule("client", HOST), True),
        (rule("server", HOST), True),
        (rule(ROOT, "*.local"), True),
        (rule("client", HOST, export_to=(".",), selector={"app": "a"}), True),
        (rule("client", "api.server.svc.cluster.local"), False),
        (rule("elsewhere", HOST), False),
        (rule("server", HOST, export_to=(".",)), False),
        (rule("server", HOST, selector={"app": "a"}), False),
        (rule("client", HOST, selector={"app": "b"}), False),
    ],
)
def test_rules_that_could_apply_to_a_client(found, applies):
    assert could_apply(mesh(WEB), found, "client", {"app": "a"}, WEB) is applies
    assert (chosen("client", found, labels={"app": "a"}) is not None) is applies


def test_wildcard_makes_no_clusters_for_subsets() -> None:
    """They would be multiplied by the number of Services."""
    for host, names in ((HOST, ("v1",)), ("*.server.svc.cluster.local", ())):
        found = client_rule(mesh(WEB, rule("server", host, subsets=(Subset(name="v1"),))), "client", {}, WEB)
        assert found
        assert found.subset_names(WEB) == names


FILES = (tls("SIMPLE", ca_certificates="/dev/fd/15"), tls("MUTUAL", certificate="/c", private_key="/k"))


@pytest.mark.parametrize("settings", FILES)
@pytest.mark.parametrize(
    ("owner", "client", "reads"),
    [
        ("server", "server", True),
        ("server", "client", False),
        ("client", "client", True),
        (ROOT, "client", True),
    ],
)
def test_files_are_read_only_with_rules_of_the_own_or_root_namespace(
    settings: ClientTls, owner: str, client: str, reads: bool
) -> None:
    expected = settings if reads else ClientTls(mode=TlsMode.ISTIO_MUTUAL)
    policy = TrafficPolicy(tls=settings)
    plain = TrafficPolicy(tls=tls("SIMPLE"))
    subsets = (
        Subset(name="v1", policy=policy),
        Subset(name="v2", policy=TrafficPolicy(ports={90: policy})),
        Subset(name="v3", policy=plain),
        Subset(name="v4"),
    )
    at_random = AT_RANDOM.load_balancer
    policies = TrafficPolicy(tls=settings, load_balancer=at_random, ports={81: policy, 82: plain})
    found = client_rule(mesh(WEB, rule(owner, HOST, policy=policies, subsets=subsets)), client, {}, WEB)
    assert found
    assert [found.for_port(*port).tls for port in ((80,), (81,), (80, "v1"), (90, "v2"))] == [expected] * 4
    assert [found.for_port(*port).tls for port in ((82,), (80, "v3"))] == [plain.tls] * 2
    assert found.for_port(80, "v4").tls == expected
    assert found.for_port(80).load_balancer == at_random
