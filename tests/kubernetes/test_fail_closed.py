"""Collections that the API server does not serve: start-up waits; later, the last known state is used."""

from __future__ import annotations

from pathlib import Path

from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.serving import PATIENCE, Serving
from tests.sources.following import QUICK, Followed, refs
from tests.support.waiting import eventually
from xds.mesh.kube import crds
from xds.mesh.kube.api import KubeApi
from xds.mesh.sources.kubernetes import Kubernetes

USER = "control-plane"
CORE = "namespaces,serviceaccounts,services,pods,configmaps,endpointslices.discovery.k8s.io"
OURS = (
    "policies.authentication.istio.io,meshpolicies.authentication.istio.io,"
    "peerauthentications.security.istio.io,authorizationpolicies.security.istio.io,"
    "destinationrules.networking.istio.io,"
    "serviceentries.networking.istio.io,workloadentries.networking.istio.io,"
    "sidecars.networking.istio.io"
)
PEERS = "peerauthentications.security.istio.io"
STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default"},
    "spec": {"mtls": {"mode": "STRICT"}},
}


async def grant(cluster: Cluster, name: str, resources: str) -> None:
    """Allow the control plane's user to read resources."""
    verbs = "--verb=get,list,watch"
    await cluster.kubectl("create", "clusterrole", name, verbs, f"--resource={resources}")
    await cluster.kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", f"--user={USER}")


async def test_start_waits_for_kinds_and_rights(own_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_cluster
    admin = ("create", "clusterrolebinding", USER, "--clusterrole=cluster-admin", f"--user={USER}")
    await grant(cluster, "core", CORE)
    await cluster.kubectl("create", "namespace", "istio-system")
    async with Serving(await cluster.kubeconfig(USER), tmp_path) as serving:

        async def says(*words: str) -> bool:
            status, body = await serving.ready()
            assert status == 503
            assert "waiting for pods" not in body
            return all(word in body for word in words)

        remedy = 'resources: ["peerauthentications"], verbs: ["get", "list", "watch"]}'
        missing = "the cluster has no such kind; run xds install-crds"
        await eventually(lambda: says(f"waiting for {PEERS}", missing), timeout=PATIENCE)
        await crds.install(cluster.api)
        await eventually(lambda: says(f"waiting for {PEERS}", remedy), timeout=PATIENCE)
        assert 'event="problem found"' in serving.log.read_text()
        await cluster.kubectl(*admin)
        await serving.until_ready()


async def test_lost_rights_and_kinds_keep_the_facts(own_cluster: Cluster) -> None:
    cluster = own_cluster
    await crds.install(cluster.api)
    await grant(cluster, "core", CORE)
    await grant(cluster, "ours", OURS)
    await cluster.kubectl("create", "namespace", "shop")
    path = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications"
    await cluster.api.create(path, STRICT)
    known = {"PeerAuthentication shop/default"}
    async with await KubeApi.connect(await cluster.kubeconfig(USER)) as api:
        source = Kubernetes(api, options=QUICK)
        async with Followed(source) as followed:

            def locked() -> bool:
                return known <= refs(followed.facts)

            await followed.until(lambda: followed.complete and locked())

            await cluster.kubectl("delete", "clusterrolebinding", "ours")
            cluster.stop_api_server()  # a watch that is open goes on without the right to it
            await cluster.start_api_server()
            await followed.until(
                lambda: PEERS in source.staleness() and "be reached" not in source.staleness()
            )
            assert locked()
            await cluster.kubectl(
                "create", "clusterrolebinding", "ours", "--clusterrole=ours", f"--user={USER}"
            )
            await followed.until(lambda: source.staleness() == "")
            assert locked()

            definition = await cluster.api.get(f"{crds.PATH}/{PEERS}")
            for served in (False, True):
                versions = [{**version, "served": served} for version in definition["spec"]["versions"]]
                await cluster.api.patch(f"{crds.PATH}/{PEERS}", {"spec": {"versions": versions}})
                await followed.until(lambda served=served: bool(source.staleness()) is not served)
                assert locked()

            # Deleting a definition deletes its objects one by one.
            await cluster.api.delete(f"{crds.PATH}/{PEERS}")
            await followed.until(lambda: PEERS in source.staleness())
            assert not locked()
            assert source.pending_reason() == ""
