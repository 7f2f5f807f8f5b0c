"""WorkloadEntries and ServiceEntries of a real API server."""

from __future__ import annotations

from tests.kubernetes.environment.cluster import Cluster
from tests.sources.following import QUICK, Followed
from tests.support.manifests import service_entry, workload_entry
from xds.mesh.kube import crds
from xds.mesh.kube.conditions import ConditionPublisher, desired_conditions
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import service_named
from xds.mesh.model.objects import Change, Ref
from xds.mesh.sources.kubernetes import Kubernetes

ENTRIES = ("serviceentries.networking.istio.io", "workloadentries.networking.istio.io")
PATH = "/apis/networking.istio.io/v1/namespaces/default"
VM = Ref("Pod", "default", "we/vm")
DB = Ref("ServiceEntry", "default", "db")


async def test_kinds_may_be_missing_and_come_later(own_cluster: Cluster) -> None:
    api = own_cluster.api
    await crds.install(api)
    for name in ENTRIES:
        await own_cluster.kubectl("delete", "crd", name)
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        assert not [message for message in followed.messages() if "entries" in message]

        await crds.install(api)
        await api.create(f"{PATH}/workloadentries", workload_entry("vm", "default", "10.8.0.1"))
        await followed.until(lambda: VM in followed.facts)


async def test_changes_reach_the_mesh(own_cluster: Cluster) -> None:
    api = own_cluster.api
    await crds.install(api)
    machine = workload_entry("vm", "default", "10.8.0.1", labels={"app": "db"}, serviceAccount="db")
    selector = {"labels": {"app": "db"}}
    outside = service_entry(
        *("db", "default", "db.example.com", {"tcp": 90}),
        location="MESH_INTERNAL",
        workloadSelector=selector,
    )
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        await api.create(f"{PATH}/workloadentries", machine)
        await api.create(f"{PATH}/serviceentries", outside)
        await followed.until(lambda: {VM, DB} <= followed.facts.keys())

        def endpoints() -> list[str]:
            mesh = Mesh().apply(Change(applied=tuple(followed.facts.values())))
            called = service_named(mesh, "db.example.com")
            return [endpoint.address for endpoint in mesh.endpoints(called, called.ports[0])]

        assert endpoints() == ["10.8.0.1"]
        await api.patch(f"{PATH}/workloadentries/vm", {"spec": {"address": "10.8.0.2"}})
        await followed.until(lambda: endpoints() == ["10.8.0.2"])
        await own_cluster.kubectl("delete", "we", "vm")
        await followed.until(lambda: VM not in followed.facts)
        assert endpoints() == []


async def test_unsupported_resolution_is_in_the_status(own_cluster: Cluster) -> None:
    api = own_cluster.api
    await crds.install(api)
    outside = service_entry("db", "default", "db.example.com", {"tcp": 90}, location="MESH_EXTERNAL")
    outside["spec"]["resolution"] = "DNS"
    await api.create(f"{PATH}/serviceentries", outside)
    async with Followed(Kubernetes(api, options=QUICK)) as followed:
        await followed.until(lambda: followed.complete)
        problems = followed.source.problems
    publisher = ConditionPublisher(api, lambda: problems, Mesh, leads=lambda: True)

    assert await publisher.reconcile(desired_conditions(Mesh(), problems))

    [condition] = (await api.get(f"{PATH}/serviceentries/db"))["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Accepted", "False")
    assert "DNS is not supported" in condition["message"]
