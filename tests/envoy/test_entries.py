"""ServiceEntries with the same host: which of them the requests of a client reach."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesh.objects import facts, pod, service
from tests.support.manifests import service_entry
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.snapshot import ROUTE


def entry(namespace: str, year: int, host: str = "db.example.com", **spec: Any) -> dict[str, Any]:
    listed = {"endpoints": [{"address": f"10.8.0.{year % 100}"}]}
    found = service_entry("db", namespace, host, {"http": 80}, location="MESH_EXTERNAL", **listed, **spec)
    found["metadata"]["creationTimestamp"] = f"{year}-01-01T00:00:00Z"
    return found


def cluster(namespace: str, *objects: dict[str, Any], host: str = "db.example.com") -> str:
    """Return the cluster of requests that a client in a namespace sends to a host."""
    client = pod(namespace, "client", "10.1.0.1")
    mesh = Mesh(facts(client, *objects))
    found = mesh.pod(namespace, "client")
    assert found
    [routes] = translate(mesh, found).of(ROUTE).values()
    by_name = {each["name"]: each for each in to_dict(ROUTE, routes.body)["virtual_hosts"]}
    assert len(by_name) == len(to_dict(ROUTE, routes.body)["virtual_hosts"]), "names are unique"
    [chosen] = (each for each in by_name.values() if host in each["domains"])
    return str(chosen["routes"][0]["route"]["cluster"])


@pytest.mark.parametrize(
    ("namespace", "expected"), [("aaa", "aaa"), ("bbb", "bbb"), ("ccc", "bbb"), ("zzz", "bbb")]
)
def test_own_namespace_wins_then_the_oldest(namespace, expected):
    found = cluster(namespace, entry("aaa", 2022), entry("bbb", 2020), entry("ddd", 2021))

    assert found == f"outbound|80||db.example.com@{expected}"


def test_hidden_entry_does_not_win():
    hidden = entry("bbb", 2020, exportTo=["."])

    assert cluster("ccc", entry("aaa", 2022), hidden) == "outbound|80||db.example.com@aaa"


def test_service_wins_for_its_own_names():
    web = service("shop", "web", "10.2.0.1")
    web["spec"]["ports"][0]["name"] = "http"
    claim = entry("aaa", 2000, host="web.shop")

    assert cluster("aaa", web, claim, host="web.shop") == "outbound|80||web.shop.svc.cluster.local"

    web["metadata"]["annotations"] = {"networking.istio.io/exportTo": "."}
    assert cluster("aaa", web, claim, host="web.shop") == "outbound|80||web.shop@aaa"
