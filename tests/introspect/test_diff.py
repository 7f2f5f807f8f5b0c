"""Differences between snapshots."""

from __future__ import annotations

from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration, VirtualHost
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret, TlsCertificate

from tests.library.messages import assignment, eds_cluster, routes
from xds.introspect.diff import FieldChange, diff
from xds.resources import CLUSTER, ROUTE, SECRET, Resource, resource
from xds.snapshot import ResourceSet, Snapshot


def snapshot(*resources: Resource) -> Snapshot:
    types = {item.type_url for item in resources}
    return Snapshot(
        {type_url: ResourceSet(item for item in resources if item.type_url == type_url) for type_url in types}
    )


def made(*messages) -> Snapshot:
    return snapshot(*map(resource, messages))


def test_added_removed_and_changed_resources_are_reported():
    before = made(eds_cluster("a"), eds_cluster("b"), assignment("same"))
    after = made(
        Cluster(name="b", connect_timeout=timedelta(seconds=3)),
        assignment("same"),
        routes("r"),
    )
    changes = diff(before, after)
    assert [(change.type_url, change.name, change.change) for change in changes] == [
        (CLUSTER, "a", "removed"),
        (CLUSTER, "b", "changed"),
        (ROUTE, "r", "added"),
    ]
    assert FieldChange("connect_timeout", None, "3s") in changes[1].fields
    text = changes[1].text("acked", "served").splitlines()
    assert text[:2] == ["--- CDS b (acked)", "+++ CDS b (served)"]
    assert '+  "connect_timeout": "3s",' in text
    assert all(line.startswith("-") for line in str(changes[0]).splitlines()[3:])
    assert diff(before, before) == ()


def test_fields_have_paths_with_indexes():
    before, after = (
        made(RouteConfiguration(name="r", virtual_hosts=[VirtualHost(name="v", domains=["a", domain])]))
        for domain in ("one", "two")
    )
    (change,) = diff(before, after)
    (field,) = change.fields
    assert field.path == "virtual_hosts[0].domains[1]"
    assert str(field) == f'{field.path}: "one" -> "two"'
    (change,) = diff(before, snapshot(resource(Secret(name="other")), before.of(ROUTE)["r"]))
    assert change.fields == (FieldChange("", None, {"name": "other"}),)


def test_secrets_are_redacted():
    before, after = (
        made(
            Secret(
                name="s",
                tls_certificate=TlsCertificate(private_key=DataSource(inline_string=f"key {number}")),
            )
        )
        for number in (1, 2)
    )
    (change,) = diff(before, after)
    assert (change.type_url, change.fields) == (SECRET, ())
    assert str(change) == "SDS s: only redacted secrets differ"
    assert "key 1" not in repr(change)


def test_types_that_cannot_be_decoded_are_compared_by_version():
    other = "type.googleapis.com/example.Other"
    before, after = (snapshot(Resource.of(other, "x", body)) for body in (b"one", b"three"))
    (change,) = diff(before, after)
    assert {field.path for field in change.fields} == {"version", "bytes"}
