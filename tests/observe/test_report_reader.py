"""Reports are resolved to workloads and services; garbage is counted, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.world import HTTP, TCP, pod, service
from xds.codec import message_class
from xds.mesh.envoy import access_logs
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, Meta, Ref
from xds.mesh.model.traffic import ClientTls, TlsMode, TrafficPolicy
from xds.mesh.observe import report_reader as reports
from xds.mesh.observe.edges import Client, Denial, Traffic
from xds.mesh.observe.report_reader import (
    ACCESS_LOGS,
    LOAD_REPORT,
    MAX_CLUSTERS,
    MAX_ENTRIES,
    MAX_REQUESTS,
    ReportReader,
)
from xds.mesh.observe.workloads import REMEMBERED_SECONDS, DeletedPods

NOON = 1_000_000 * 600.0
SLEEP, HTTPBIN, LEGACY = pod("sleep", "full"), pod("httpbin", "full"), pod("sleep", "legacy", sidecar=False)
SERVICE = service("httpbin", "full", HTTP, TCP)
MESH = Mesh((SLEEP, HTTPBIN, LEGACY, SERVICE))
HOST = "httpbin.full.svc.cluster.local"
END, CONNECTED, PERIODIC, TCP_END = 6, 1, 2, 3


class World:
    def __init__(self, mesh: Mesh = MESH) -> None:
        self.mesh, self.traffic, self.denials, self.deleted = mesh, Traffic(), Traffic(), DeletedPods()
        self.reader = ReportReader(self.traffic, self.denials, self.deleted)

    def load(self, *clusters: tuple[str, str, int, int], pod=SLEEP) -> None:
        """Report (cluster, sub-zone, requests, failed)."""
        message: Any = message_class(LOAD_REPORT)()
        for name, sub_zone, requests, failed in clusters:
            locality = message.cluster_stats.add(cluster_name=name).upstream_locality_stats.add()
            locality.locality.sub_zone = sub_zone
            locality.total_issued_requests, locality.total_error_requests = requests, failed
        self.reader.read_load(self.mesh, pod, message, now=NOON)

    def logs(self, *entries: tuple[str, int, int, bool], pod=HTTPBIN) -> None:
        """Report (peer, local port, type, refused)."""
        message: Any = message_class(ACCESS_LOGS)()
        for peer, port, kind, refused in entries:
            common = message.tcp_logs.log_entry.add().common_properties
            common.downstream_direct_remote_address.socket_address.address = peer
            common.downstream_local_address.socket_address.port_value = port
            common.access_log_type = kind
            common.response_flags.no_route_found = refused
        self.reader.read_access_logs(self.mesh, pod, message, now=NOON)

    def edges(self) -> set[tuple[str, str, str, int]]:
        """Return (client, service, mode, requests) of each edge."""
        return {
            (
                f"{key.client.name}.{key.client.namespace}".rstrip("."),
                f"{key.target.name}.{key.target.namespace}:{key.target.port}",
                key.mode.value,
                edge.day(NOON),
            )
            for key, edge in self.traffic.edges()
        }


def test_load_report_counts_requests_by_mode():
    world = World()
    world.load((f"outbound|80||{HOST}", "istio", 7, 2), (f"outbound|80||{HOST}", "", 3, 0))
    world.load((f"outbound|90|10.0.0.1|{HOST}", "rack1/istio", 1, 0))

    assert world.edges() == {
        ("sleep.full", "httpbin.full:80", "mtls", 7),
        ("sleep.full", "httpbin.full:80", "plaintext", 3),
        ("sleep.full", "httpbin.full:90", "mtls", 1),
    }
    assert world.reader.ignored == 0


@pytest.mark.parametrize(("mode", "observed"), [(TlsMode.SIMPLE, "tls"), (TlsMode.DISABLE, "plaintext")])
def test_tls_of_a_destination_rule_is_a_mode_of_its_own(mode, observed):
    rule = DestinationRule(
        meta=Meta(ref=Ref("DestinationRule", "full", "httpbin")),
        host=HOST,
        policy=TrafficPolicy(tls=ClientTls(mode=mode)),
    )
    world = World(Mesh((SLEEP, HTTPBIN, SERVICE, rule)))
    world.load((f"outbound|80||{HOST}", "", 1, 0))

    assert world.edges() == {("sleep.full", "httpbin.full:80", observed, 1)}


def test_clusters_without_a_service_are_left_out():
    world = World()
    world.load(("PassthroughCluster", "", 5, 0), ("inbound|8080||", "", 5, 0))
    assert (world.edges(), world.reader.ignored) == (set(), 0)

    world.load(("outbound|80||gone.full.svc.cluster.local", "", 5, 0), (f"outbound|81||{HOST}", "", 5, 0))
    world.load((f"outbound|80||{HOST}", "", MAX_REQUESTS + 1, 0), ("outbound|80||example.com", "", 1, 0))
    assert (world.edges(), world.reader.ignored) == (set(), 4)


def test_access_logs_name_plaintext_and_refused_clients():
    world = World()
    world.logs((LEGACY.address, 8080, END, False), (LEGACY.address, 8080, END, False))
    world.logs((LEGACY.address, 9090, 0, True), ("::ffff:192.0.2.1", 8080, END, False))

    assert world.edges() == {
        ("sleep.legacy", "httpbin.full:80", "plaintext", 2),
        ("sleep.legacy", "httpbin.full:90", "refused", 1),
        ("192.0.2.1", "httpbin.full:80", "plaintext", 1),
    }
    failed = {edge.failed_in_hour(NOON) for key, edge in world.traffic.edges() if key.mode.value == "refused"}
    assert failed == {1}, "a refused connection is a failed one"


def test_connection_is_counted_once_from_its_start():
    world = World()
    world.logs((LEGACY.address, 9090, CONNECTED, False))
    assert world.edges() == {("sleep.legacy", "httpbin.full:90", "plaintext", 1)}

    world.logs((LEGACY.address, 9090, PERIODIC, False), (LEGACY.address, 9090, TCP_END, False))
    assert world.edges() == {("sleep.legacy", "httpbin.full:90", "plaintext", 1)}


def test_port_without_a_service_is_named_by_its_pod():
    world = World()
    world.logs((LEGACY.address, 7070, CONNECTED, False))

    assert world.edges() == {("sleep.legacy", "pod/httpbin.full:7070", "plaintext", 1)}


def test_sidecar_without_a_pod_of_its_own_as_server_cannot_name_another():
    """The server of an access log is always the pod that reports it."""
    world = World()
    world.logs((LEGACY.address, 8080, END, False), pod=SLEEP)

    assert world.edges() == {("sleep.legacy", "pod/sleep.full:8080", "plaintext", 1)}


def test_deleted_pod_is_named_for_a_minute():
    world = World(Mesh((HTTPBIN, SERVICE)))
    world.deleted.add(LEGACY, NOON - REMEMBERED_SECONDS)
    world.logs((LEGACY.address, 8080, END, False))
    assert {edge[0] for edge in world.edges()} == {"sleep.legacy"}

    world = World(Mesh((HTTPBIN, SERVICE)))
    world.deleted.add(LEGACY, NOON - REMEMBERED_SECONDS - 1)
    world.logs((LEGACY.address, 8080, END, False))
    assert {edge[0] for edge in world.edges()} == {LEGACY.address}


def test_address_of_a_deleted_pod_belongs_to_its_new_owner():
    world = World(Mesh((HTTPBIN, SERVICE, replace(SLEEP, address=LEGACY.address))))
    world.deleted.add(LEGACY, NOON)
    world.logs((LEGACY.address, 8080, END, False))

    assert {edge[0] for edge in world.edges()} == {"sleep.full"}


def test_expired_addresses_are_forgotten():
    deleted = DeletedPods()
    deleted.add(LEGACY, NOON)
    deleted.add(SLEEP, NOON + REMEMBERED_SECONDS + 1)

    assert deleted.get(LEGACY.address, NOON) is None
    assert deleted.get(SLEEP.address, NOON)


def test_entries_that_make_no_sense_are_counted():
    world = World()
    world.logs(("not an address", 8080, END, False), (LEGACY.address, 0, END, False), ("", 8080, END, False))

    assert (world.edges(), world.reader.ignored) == (set(), 3)


def test_localities_of_a_report_share_a_limit(monkeypatch):
    """A report of 1 MiB has room for 260,000 localities of one cluster."""
    lookups, added = [], []
    rule = reports.served_client_rule
    monkeypatch.setattr(reports, "served_client_rule", lambda *args: lookups.append(1) or rule(*args))
    world = World()
    add = world.traffic.add
    monkeypatch.setattr(world.traffic, "add", lambda *args, **how: added.append(1) or add(*args, **how))
    message: Any = message_class(LOAD_REPORT)()
    for port, number in ((80, MAX_ENTRIES - 1), (90, 4), (90, 1)):
        cluster = message.cluster_stats.add(cluster_name=f"outbound|{port}||{HOST}")
        for index in range(number):
            cluster.upstream_locality_stats.add(total_issued_requests=1).locality.zone = str(index)
    world.reader.read_load(MESH, SLEEP, message, now=NOON)

    assert world.edges() == {
        ("sleep.full", "httpbin.full:80", "plaintext", MAX_ENTRIES - 1),
        ("sleep.full", "httpbin.full:90", "plaintext", 1),
    }
    assert (world.reader.ignored, len(lookups), len(added)) == (4, 2, 2)


def test_clusters_and_log_entries_are_limited():
    world = World()
    message: Any = message_class(LOAD_REPORT)()
    for _ in range(MAX_CLUSTERS):
        message.cluster_stats.add()
    message.cluster_stats.add(cluster_name=f"outbound|80||{HOST}").upstream_locality_stats.add(
        total_issued_requests=1
    )
    world.reader.read_load(MESH, SLEEP, message, now=NOON)
    assert (world.edges(), world.reader.ignored) == (set(), 1)

    world.logs(*[(LEGACY.address, 8080, END, False)] * (MAX_ENTRIES + 2))
    assert world.edges() == {("sleep.legacy", "httpbin.full:80", "plaintext", MAX_ENTRIES)}
    assert world.reader.ignored == 3


@given(st.binary(max_size=200))
def test_garbage_raises_nothing(data):
    world = World()
    for name, read in ((LOAD_REPORT, world.reader.read_load), (ACCESS_LOGS, world.reader.read_access_logs)):
        if (message := world.reader.parse(name, data)) is not None:
            read(MESH, SLEEP, message, now=NOON)
    assert not world.edges()


# --- denied requests ----------------------------------------------------------------------------------------

ME = "spiffe://cluster.local/ns/full/sa/sleep"
SLEEPER, ADDRESS = Client("full", "sleep"), Client("", "192.0.2.1")
RULE = "ns[full]-policy[info.v1]-rule[12]"
DETAILS = f"rbac_access_denied_matched_policy[{RULE}]"
NONE = "rbac_access_denied_matched_policy[none]"


def denied(world: World, *names: str, kind: int = END, peer: str = "192.0.2.1", **tags: str) -> None:
    """Report an entry of the log `denied`, with tags and metadata."""
    message: Any = message_class(ACCESS_LOGS)()
    common = message.tcp_logs.log_entry.add().common_properties
    common.downstream_direct_remote_address.socket_address.address = peer
    common.downstream_local_address.socket_address.port_value = 8080
    common.access_log_type = kind
    for name in names:
        common.tls_properties.peer_certificate_properties.subject_alt_name.add().uri = name
    common.custom_tags[access_logs.LOG_TAG] = access_logs.DENIED
    for tag, value in tags.items():
        if "engine" in tag or "effective" in tag:
            namespace = access_logs.HTTP_RBAC if "method" in tags else access_logs.NETWORK_RBAC
            common.metadata.filter_metadata[namespace].fields[tag].string_value = value
        else:
            common.custom_tags[tag] = value
    world.reader.read_access_logs(world.mesh, HTTPBIN, message, now=NOON)


def only_denial(world: World) -> tuple[str, Client, Denial | None, int]:
    [(key, edge)] = world.denials.edges()
    assert (key.target.name, key.target.port) == ("httpbin", 80)
    assert not world.edges()
    return key.mode.value, key.client, key.denial, edge.day(NOON)


DENIED = {"enforced_engine_result": "denied"}
GET = DENIED | {"enforced_effective_policy_id": RULE, "method": "GET"}


@pytest.mark.parametrize(
    ("tags", "denial"),
    [
        (GET | {"path": "/"}, Denial(RULE, "GET", "/")),
        (GET | {"path": "/a/b"}, Denial(RULE, "GET", "/a/b")),
        (GET | {"path": "/a/b/"}, Denial(RULE, "GET", "/a/b/*")),
        (GET | {"path": "/a/b/c/d"}, Denial(RULE, "GET", "/a/b/*")),
        (GET | {"path": "/a?token=/b/c"}, Denial(RULE, "GET", "/a")),
        (GET | {"path": "/a;session=b/c;d"}, Denial(RULE, "GET", "/a/c")),
        (GET | {"path": "/" + "a" * 70}, Denial(RULE, "GET", "/" + "a" * 63 + "*")),
        (GET | {"path": "/a\x1b[31m"}, Denial(RULE, "GET", "*")),
        (GET | {"path": "example.com:443"}, Denial(RULE, "GET", "*")),
        (GET | {"path": ""}, Denial(RULE, "GET", "*")),
        (DENIED | {"method": "g\n", "path": "/a"}, Denial("", "*", "/a")),
        ({"details": DETAILS}, Denial(RULE)),
        ({"details": NONE, "path": "/a"}, Denial("")),
        ({"details": "rbac_access_denied_matched_policy[too-many-values]"}, Denial("too-many-values")),
        # What dry-run policies deny: the DENY rules first. Enforced rules come before all others.
        ({"deny_shadow_engine_result": "denied"}, Denial("", dry_run=True)),
        (
            {
                "allow_shadow_engine_result": "denied",
                "deny_shadow_engine_result": "denied",
                "deny_shadow_effective_policy_id": RULE,
                "enforced_engine_result": "allowed",
                "method": "GET",
                "path": "/a",
            },
            Denial(RULE, "GET", "/a", dry_run=True),
        ),
        (
            {
                "allow_shadow_engine_result": "denied",
                "deny_shadow_engine_result": "allowed",
                "deny_shadow_effective_policy_id": RULE,
            },
            Denial("", dry_run=True),
        ),
        ({"details": NONE, "deny_shadow_engine_result": "denied"}, Denial("")),
        (GET | {"path": "/", "deny_shadow_engine_result": "denied"}, Denial(RULE, "GET", "/")),
    ],
)
def test_denial_has_its_rule_and_request(tags, denial):
    world = World()
    denied(world, ME, **tags)
    assert only_denial(world) == ("mtls", SLEEPER, denial, 1)
    assert world.reader.ignored == 0


@pytest.mark.parametrize(
    ("names", "mode", "client"),
    [
        ((ME,), "mtls", SLEEPER),
        (("https://example.com", ME), "mtls", SLEEPER),
        ((), "plaintext", ADDRESS),
        (("spiffe://elsewhere/ns/full/sa/sleep",), "plaintext", ADDRESS),
        ((ME + "/x",), "plaintext", ADDRESS),
        ((ME + "x" * 253,), "plaintext", ADDRESS),
        ((ME + "\n",), "plaintext", ADDRESS),
    ],
)
def test_denied_client_is_the_one_that_mutual_tls_authenticated(names, mode, client):
    world = World()
    denied(world, *names, details=DETAILS)
    assert only_denial(world) == (mode, client, Denial(RULE), 1)


@pytest.mark.parametrize(
    ("kind", "count"), [(END, 1), (TCP_END, 1), (0, 1), (CONNECTED, 0), (PERIODIC, 0), (5, 0)]
)
def test_denied_connection_is_counted_when_it_ends(kind, count):
    world = World()
    denied(world, ME, kind=kind, details=DETAILS)
    assert only_denial(world)[-1] == count


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"details": "via_upstream"},
        {"details": "rbac_access_denied_matched_policy[]"},
        {"details": "rbac_access_denied_matched_policy[ns[a]-policy[b c]-rule[0]]"},
        {"details": f"rbac_access_denied_matched_policy[ns[{'a' * 254}]-policy[b]-rule[0]]"},
        GET | {"enforced_effective_policy_id": "x"},
        {"deny_shadow_engine_result": "allowed"},
        {"details": DETAILS, "peer": "nowhere"},
    ],
)
def test_denials_that_make_no_sense_are_counted(tags):
    world = World()
    denied(world, **tags)
    assert (not world.denials, world.reader.ignored) == (True, 1)


def test_denied_plaintext_request_is_no_plaintext_traffic():
    """STRICT would not stop it: it is denied already."""
    world = World()
    message: Any = message_class(ACCESS_LOGS)()
    for result in ("denied", "allowed"):
        common = message.tcp_logs.log_entry.add().common_properties
        common.downstream_direct_remote_address.socket_address.address = LEGACY.address
        common.downstream_local_address.socket_address.port_value = 8080
        fields = common.metadata.filter_metadata[access_logs.HTTP_RBAC].fields
        fields["enforced_engine_result"].string_value = result
    world.reader.read_access_logs(MESH, HTTPBIN, message, now=NOON)

    assert world.edges() == {("sleep.legacy", "httpbin.full:80", "plaintext", 1)}
    assert not world.denials
