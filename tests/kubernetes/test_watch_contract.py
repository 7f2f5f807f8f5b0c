"""The API server behavior that a reflector relies on, checked with a real server and the faulty fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.places import Place, fake, real
from tests.sources.following import QUICK, Following
from xds.mesh.kube.reflector import FailureCause
from xds.mesh.kube.resource import KubeResource


@pytest.fixture
async def fake_place(tmp_path: Path) -> AsyncIterator[Place]:
    async with fake(tmp_path) as place:
        yield place


@pytest.fixture
async def real_place(own_cluster: Cluster) -> AsyncIterator[Place]:
    """A server that only this test uses, so that it can be stopped."""
    async with real(own_cluster) as place:
        yield place


def own(names: set[str]) -> set[str]:
    """Return the names without those that a cluster creates in every namespace."""
    return names - {"kube-root-ca.crt"}


async def test_list_is_paged(place: Place) -> None:
    names = {f"map-{number}" for number in range(7)}
    for name in names:
        await place.put(name, key=name)
    async with Following(place.api, place.maps, QUICK._replace(page_size=3)) as following:
        await following.until(lambda: following.reflector.complete)
        assert own(following.names) == names
        assert following.reflector.objects[place.namespace, "map-3"] == {"key": "map-3"}
        assert following.lists == 3
        assert len(following.changes) == 1, "a list is reported when it is complete, not page by page"


async def test_changes_are_reported(place: Place) -> None:
    async with Following(place.api, place.maps) as following:
        await following.until(lambda: following.reflector.complete)
        await place.put("one", key="old")
        await following.until(lambda: {"one": {"key": "old"}} in following.changes)
        await place.patch("one", key="new")
        await following.until(lambda: {"one": {"key": "new"}} in following.changes)
        await place.delete("one")
        await following.until(lambda: {"one": None} in following.changes)
        assert following.lists == 1


async def test_irrelevant_change_is_not_reported(place: Place) -> None:
    await place.put("one", key="value")
    async with Following(place.api, place.maps) as following:
        await following.until(lambda: "one" in following.names)
        before = list(following.changes)
        await place.other.patch(place.path("configmaps", "one"), {"metadata": {"labels": {"of": "nothing"}}})
        await place.put("two")
        await following.until(lambda: "two" in following.names)
        new = [change for change in following.changes if change not in before]
        assert [own(set(change)) for change in new if own(set(change))] == [{"two"}]


async def test_ended_watch_resumes_at_its_version(place: Place) -> None:
    async with Following(place.api, place.maps, QUICK._replace(watch_timeout=1.0)) as following:
        await following.until(lambda: following.watches > 2)
        await place.put("one")
        await following.until(lambda: "one" in following.names)
        assert following.lists == 1
        assert following.reflector.failure is None


async def test_expired_version_is_listed_again_with_the_fake_server(fake_place: Place) -> None:
    await expired_version_is_listed_again(fake_place)


async def test_expired_version_is_listed_again_with_a_real_server(real_place: Place) -> None:
    await expired_version_is_listed_again(real_place)


async def expired_version_is_listed_again(place: Place) -> None:
    for name in ("stays", "changes", "goes"):
        await place.put(name, key="old")
    following = Following(place.api, place.maps)
    async with following:
        await following.until(lambda: own(following.names) == {"stays", "changes", "goes"})
    await place.delete("goes")
    await place.patch("changes", key="new")
    await place.put("comes", key="new")
    before = len(following.changes)
    if place.fake:
        await place.fake.compact()
    else:
        assert place.cluster
        await place.cluster.compact()
    async with following:
        await following.until(lambda: own(following.names) == {"stays", "changes", "comes"})
        assert following.changes[before:] == [
            {"changes": {"key": "new"}, "goes": None, "comes": {"key": "new"}}
        ]
        assert following.lists == 2


async def test_single_object_is_watched_by_name(place: Place) -> None:
    one = replace(place.maps, name="one")
    await place.put("other")
    async with Following(place.api, one) as following:
        await following.until(lambda: following.reflector.complete)
        assert not following.names
        await place.put("another")
        await place.put("one", key="value")
        await following.until(lambda: following.changes == [{"one": {"key": "value"}}])
        await place.delete("one")
        await following.until(lambda: not following.names)


async def test_forbidden_list_names_the_missing_rule(place: Place) -> None:
    async with Following(await place.nobody(), place.maps) as following:
        await following.until(lambda: following.reflector.failure)
        failure = following.reflector.failure
        assert failure
        assert failure.cause is FailureCause.FORBIDDEN
        assert not following.reflector.complete
        assert 'cannot list resource "configmaps"' in failure.message
        assert not following.changes


def definition(group: str, **served: bool) -> dict[str, Any]:
    """A CRD with these versions; the last one is stored."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [
        {"name": name, "served": on, "storage": name == list(served)[-1], "schema": schema}
        for name, on in served.items()
    ]
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": versions},
    }


async def test_custom_resource_appears_changes_version_and_goes(place: Place) -> None:
    group = f"t{uuid4().hex[:12]}.example.com"
    things = KubeResource(
        kind="Thing",
        plural="things",
        group=group,
        versions=("v1beta1", "v1"),
        custom=True,
        namespace=place.namespace,
    )
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    async def make(name: str, version: str) -> bool:
        thing = {"apiVersion": f"{group}/{version}", "kind": "Thing", "metadata": {"name": name}}
        path = f"/apis/{group}/{version}/namespaces/{place.namespace}/things"
        await place.other.create(path, thing | {"data": {"key": name}})
        return True

    async def serve(**served: bool) -> None:
        body = await place.other.get(f"{definitions}/things.{group}")
        body["spec"]["versions"] = definition(group, **served)["spec"]["versions"]
        await place.other.replace(f"{definitions}/things.{group}", body)

    async with Following(place.api, things) as following:
        reflector = following.reflector
        await following.until(lambda: reflector.failure)
        assert reflector.failure
        assert reflector.failure.cause is FailureCause.NOT_SERVED
        assert not reflector.complete
        await place.other.create(definitions, definition(group, v2=False, v1=False, v1beta1=True))
        try:
            await following.until(lambda: reflector.failure is None)
            await make("one", "v1beta1")
            await following.until(lambda: following.names == {"one"})
            await serve(v2=True, v1=True, v1beta1=False)
            await following.until(lambda: reflector._api_version == "v1" and reflector.failure is None)
            await make("two", "v1")
            await following.until(lambda: following.names == {"one", "two"})
            assert following.changes == [{"one": {"key": "one"}}, {"two": {"key": "two"}}]
            await serve(v2=True, v1=False, v1beta1=False)
            unread = "serves v2, but xds supports only v1beta1 and v1"
            await following.until(lambda: reflector.failure and unread in reflector.failure.message)
        finally:
            await place.other.delete(f"{definitions}/things.{group}")
        await following.until(lambda: reflector.failure and "no such kind" in reflector.failure.message)
        # The deletion was not observed.
        assert following.names == {"one", "two"}
