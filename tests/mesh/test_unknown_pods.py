"""An endpoint is left out until its Pod is known: the pod may have a sidecar, and must not get plaintext."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.mesh.objects import facts, pod, service, slice_of
from tests.support.predictions import predict
from xds.codec import to_dict
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import Change, Endpoints, Pod, Ref
from xds.mesh.policy.disregarded import disregarded
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER

ADDRESS, OTHER = "10.1.0.1", "10.1.0.2"
TARGET = {"kind": "Pod", "name": "web", "uid": "1"}
CLIENT = pod("third", "client", "10.1.0.9")
CLUSTER_NAME = "outbound|80||web.shop.svc.cluster.local"


def known(name: str = "web", address: str = ADDRESS, *, uid: str = "1", mode: str = "istio", **status: Any):
    found = pod("shop", name, address, mode)
    found["metadata"]["uid"] = uid
    found["status"] |= status
    return found


def listed(target: dict[str, str] | None = TARGET, address: str = ADDRESS) -> dict[str, Any]:
    return slice_of("shop", "web", address, target)


def endpoints(mesh: Mesh) -> tuple[Endpoint, ...]:
    found = mesh.service("shop", "web")
    assert found
    return mesh.endpoints(found, found.ports[0])


def no_address() -> dict[str, Any]:
    found = known()
    del found["status"]["podIP"]
    return found


LEFT_OUT = "left out"
ENTRIES = {
    "its Pod is not known": ([], listed(), LEFT_OUT),
    "its Pod has no address yet": ([no_address()], listed(), LEFT_OUT),
    "its Pod has ended": ([known(phase="Succeeded")], listed(), LEFT_OUT),
    "its Pod has another address": ([known(address=OTHER)], listed(), LEFT_OUT),
    "another Pod has the name now": ([known(uid="2")], listed(), LEFT_OUT),
    "its Pod is not known, and an older Pod has the address": (
        [known("old", uid="0", mode="disabled")],
        listed(),
        LEFT_OUT,
    ),
    "its Pod has another address, and this is another Pod's": (
        [known(address=OTHER, mode="disabled"), known("owner", uid="0")],
        listed(),
        "Pod shop/owner",
    ),
    "its Pod is known": ([known()], listed(), "Pod shop/web"),
    "its Pod is known, and its uid is not": ([known(uid="")], listed(), "Pod shop/web"),
    "it says no uid": ([known()], listed({"kind": "Pod", "name": "web"}), "Pod shop/web"),
    "it is the second address of its Pod": (
        [known(address=OTHER, podIPs=[{"ip": OTHER}, {"ip": ADDRESS}])],
        listed(),
        "Pod shop/web",
    ),
    "it names no Pod, and a Pod has the address": ([known()], listed(None), "Pod shop/web"),
    "it names no Pod, and a Pod has it as its second address": (
        [known(address=OTHER, podIPs=[{"ip": OTHER}, {"ip": ADDRESS}])],
        listed(None),
        "Pod shop/web",
    ),
    "it names no Pod, and no Pod has the address": ([known(address=OTHER)], listed(None), "outside"),
    "it names something else than a Pod": ([], listed({"kind": "Node", "name": "web"}), "outside"),
}


@pytest.mark.parametrize(("pods", "entry", "wanted"), ENTRIES.values(), ids=ENTRIES)
def test_entry_uses_the_pod_that_has_the_address(pods, entry, wanted) -> None:
    mesh = Mesh(facts(service("shop", "web", "10.96.0.1"), entry, *pods))
    found = [str(endpoint.pod.ref) if endpoint.pod else "outside" for endpoint in endpoints(mesh)]
    assert (found or [LEFT_OUT]) == [wanted]
    told = [each.reason for each in disregarded(mesh)]
    owner_differs = wanted == "Pod shop/owner"
    assert told == (["PodUnknown"] if wanted == LEFT_OUT else ["AddressNotOwned"] if owner_differs else [])
    # The same when the pods come after the slice, one by one.
    mesh = Mesh(facts(service("shop", "web", "10.96.0.1"), entry))
    endpoints(mesh)
    for fact in facts(*pods):
        mesh = mesh.apply(Change(applied=(fact,)))
        endpoints(mesh)
    assert [str(e.pod.ref) if e.pod else "outside" for e in endpoints(mesh)] == found


@pytest.mark.parametrize("address", ["10.96.0.1", "None"])
def test_pod_with_sidecar_never_gets_plaintext(address) -> None:
    """A StatefulSet's pod appears late, is deleted and recreated; the EndpointSlice is always ahead."""
    before = facts(CLIENT, service("shop", "web", address))
    client = before[0]

    def told(mesh: Mesh) -> list[bool]:
        """Tell for each endpoint of each cluster whether it gets mutual TLS."""
        snapshot = translate(mesh, client)
        found = []
        for resource in snapshot.of(ENDPOINT).values():
            for group in to_dict(resource.type_url, resource.body).get("endpoints", ()):
                found += ["metadata" in endpoint for endpoint in group["lb_endpoints"]]
        there = snapshot.of(LISTENER).get(f"{ADDRESS}_8080")
        assert (there is not None) is (address == "None"), (
            "a pod's own address is never passed through in plaintext"
        )
        if there:
            chains = to_dict(there.type_url, there.body)["filter_chains"]
            text = str(chains)
            assert ("BlackHoleCluster" in text) is (not found)
            assert ("outbound|80|10.1.0.1|web" in text) is bool(found)
        # A sidecar verifies the identities of those that it connects to.
        cluster = snapshot.of(CLUSTER)[CLUSTER_NAME]
        assert (
            "spiffe://cluster.local/ns/shop/sa/default" in str(to_dict(cluster.type_url, cluster.body))
        ) is bool(found)
        return found

    wanted = [True] if address != "None" else [True, True]
    (entry, again), (first, second) = (
        facts(listed(), listed(TARGET | {"uid": "2"})),
        facts(known(), known(uid="2")),
    )
    mesh = Mesh(before)
    for change, expected in [
        (Change(applied=(entry,)), []),
        (Change(applied=(first,)), wanted),
        (Change(removed=(first.ref,)), []),
        (Change(applied=(first,)), wanted),
        (Change(applied=(again,)), []),
        (Change(applied=(second,)), wanted),
        (Change(removed=(second.ref,), applied=(entry,)), []),
    ]:
        mesh = mesh.apply(change)
        assert told(mesh) == expected


def test_unknown_endpoint_does_not_affect_others() -> None:
    (entry,) = facts(listed())
    assert isinstance(entry, Endpoints)
    (group,) = entry.groups
    unknown = replace(group.addresses[0], address=OTHER, pod=Ref("Pod", "shop", "late"), pod_uid="")
    both = replace(entry, groups=(replace(group, addresses=(*group.addresses, unknown)),))
    world = [*facts(service("shop", "web", "10.96.0.1"), known()), both]
    assert [endpoint.address for endpoint in endpoints(Mesh(world))] == [ADDRESS]


def test_reach_names_the_unknown_pod() -> None:
    mesh = Mesh(facts(CLIENT, service("shop", "web", "10.96.0.1"), listed()))
    client = mesh.pod("third", "client")
    assert isinstance(client, Pod)
    (found,) = predict(mesh, [client])
    assert (found.result, found.reason) == ("fails", "pod-unknown")
    assert [str(ref) for ref in found.decided_by] == ["EndpointSlice shop/web-1", "Pod shop/web"]
