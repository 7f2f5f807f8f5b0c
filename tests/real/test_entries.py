"""WorkloadEntries and ServiceEntries with real sidecars and interception: what clients send to machines."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.exchange import FAILS, HTTP1, MTLS, PLAINTEXT, TCP
from tests.support.manifests import peer_authentication, service_entry, workload_entry
from tests.support.mesh import Mesh
from xds.mesh.model.objects import Meta, Pod, Ref

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

CLIENT, BARE_CLIENT = "client.apps", "outsider.outside"
CLIENT_ID = "spiffe://cluster.local/ns/apps/sa/client"
VIP, EXTERNAL_VIP = "10.97.0.1", "10.97.0.2"
INTERNAL = {"location": "MESH_INTERNAL"}
PORTS = {"http": 8080, "tcp": 9000}
SERVICE_PORTS = {"http": (80, 8080), "tcp": (90, 9000)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Two machines that WorkloadEntries describe, one of them with a sidecar, and clients."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "apps", account="client")
            mesh.pod("outsider", "outside", sidecar=False)
            for name, labels in (("vm", {"security.istio.io/tlsMode": "istio"}), ("bare", {})):
                ref = Ref("Pod", "legacy", f"we/{name}")
                made = mesh.adopt(Pod(meta=Meta(ref=ref, labels=labels)))
                spec: dict[str, Any] = {"serviceAccount": "vm"} if labels else {}
                mesh.apply(workload_entry(name, "legacy", made.address, labels={"app": name}, **spec))
                service = mesh.service(name, "legacy", SERVICE_PORTS)
                service.pods = [made]
                await mesh.serve(made, http=(8080,), lines=(9000,))
            mesh.cluster.publish()
            await mesh.start()
            yield mesh


def entry(mesh: Mesh, name: str, *, vip: str = VIP, location: str = "MESH_INTERNAL", **spec: Any):
    """Return a ServiceEntry with the addresses of machines as endpoints."""
    return service_entry(
        name, "legacy", f"{name}.example.com", PORTS, location=location, addresses=[vip], **spec
    )


async def under(mesh: Mesh, *objects: Any) -> None:
    """Apply exactly these objects."""
    mesh.manifests.write("entries", *objects)
    await mesh.settled()


async def kinds(mesh: Mesh, host: str, ports: tuple[int, int], client: str = CLIENT) -> tuple[str, str]:
    """Return the kinds of a client's HTTP and TCP traffic."""
    http, tcp = ports
    return (
        (await mesh.exchange(HTTP1, client, host, http)).how,
        (await mesh.exchange(TCP, client, host, tcp)).how,
    )


class TestService:
    async def test_workload_entry_with_a_sidecar_gets_mutual_tls(self, mesh):
        await under(mesh)

        answer = await mesh.exchange(HTTP1, CLIENT, "vm.legacy", 80)

        assert (answer.how, answer.pod, answer.identity) == (MTLS, "we/vm.legacy", CLIENT_ID)
        assert await kinds(mesh, "vm.legacy", (80, 90)) == (MTLS, MTLS)

    async def test_workload_entry_without_a_sidecar_gets_plaintext(self, mesh):
        await under(mesh)

        assert await kinds(mesh, "bare.legacy", (80, 90)) == (PLAINTEXT, PLAINTEXT)

    async def test_strict_policy_with_a_selector_applies_to_a_workload_entry(self, mesh):
        await under(mesh, peer_authentication("legacy", "STRICT", name="vm", selector={"app": "vm"}))

        assert await kinds(mesh, "vm.legacy", (80, 90)) == (MTLS, MTLS)
        assert await kinds(mesh, "vm.legacy", (80, 90), BARE_CLIENT) == (FAILS, FAILS)

    async def test_client_refuses_a_server_with_another_account(self, mesh):
        # The sidecar keeps the certificate of account `vm`: this WorkloadEntry only says otherwise.
        address, labels = mesh["we/vm.legacy"].address, {"app": "impostor"}
        selecting = entry(mesh, "impostor", workloadSelector={"labels": labels})
        impostor = workload_entry("impostor", "legacy", address, labels=labels, serviceAccount="other")
        await under(mesh, impostor, selecting)
        admin = mesh.sidecar(mesh[CLIENT]).admin
        before = await admin.total("ssl.fail_verify_san$")

        answer = await mesh.exchange(HTTP1, CLIENT, VIP, 8080)

        assert answer.how == FAILS
        assert await admin.total("ssl.fail_verify_san$") > before


class TestServiceEntry:
    async def test_selected_workload_entries_are_reached_at_the_virtual_address(self, mesh):
        for name, how in (("vm", MTLS), ("bare", PLAINTEXT)):
            await under(mesh, entry(mesh, "selected", workloadSelector={"labels": {"app": name}}))

            assert await kinds(mesh, VIP, (8080, 9000)) == (how, how)

    async def test_endpoint_takes_mutual_tls_if_its_label_says_so(self, mesh):
        at = mesh["we/vm.legacy"].address
        foreign = entry(mesh, "listed", endpoints=[{"address": at}])
        await under(mesh, foreign)

        # The address belongs to the WorkloadEntry, so its identity is known.
        assert (await mesh.exchange(HTTP1, CLIENT, VIP, 8080)).how == MTLS

    async def test_external_service_gets_what_the_application_sends(self, mesh):
        for name in ("vm", "bare"):
            listed = [{"address": mesh[f"we/{name}.legacy"].address}]
            external = entry(mesh, "out", vip=EXTERNAL_VIP, location="MESH_EXTERNAL", endpoints=listed)
            await under(mesh, external)

            assert await kinds(mesh, EXTERNAL_VIP, (8080, 9000)) == (PLAINTEXT, PLAINTEXT)

    async def test_ports_are_mapped_by_name(self, mesh):
        machine = mesh["we/bare.legacy"].address
        listed = [{"address": machine, "ports": {"http": 8080, "tcp": 9000}}]
        mapped = service_entry(
            "mapped", "legacy", "mapped.example.com", {"http": 81, "tcp": 91}, **INTERNAL,
            addresses=[VIP], endpoints=listed,
        )  # fmt: skip
        await under(mesh, mapped)

        assert await kinds(mesh, VIP, (81, 91)) == (PLAINTEXT, PLAINTEXT)

    async def test_without_addresses_an_endpoint_is_reached_at_its_own(self, mesh):
        machine = mesh["we/vm.legacy"].address
        none = entry(mesh, "none", vip=machine, resolution="NONE")
        static = entry(mesh, "static", endpoints=[{"address": machine}])
        del static["spec"]["addresses"]
        for found in (none, static):
            await under(mesh, found)

            assert await kinds(mesh, machine, (8080, 9000)) == (MTLS, MTLS)

    async def test_entry_is_only_for_the_namespaces_that_it_is_exported_to(self, mesh):
        machine = mesh["we/vm.legacy"].address
        private = entry(mesh, "private", exportTo=["."], endpoints=[{"address": machine}])
        await under(mesh, private)

        assert (await mesh.exchange(TCP, CLIENT, VIP, 9000)).how == FAILS

        private["spec"]["exportTo"] = [".", "apps"]
        await under(mesh, private)

        assert (await mesh.exchange(TCP, CLIENT, VIP, 9000)).how == MTLS

    async def test_predictions_agree(self, mesh):
        listed = [{"address": mesh["we/vm.legacy"].address}]
        await under(
            mesh,
            entry(mesh, "in", endpoints=listed),
            entry(mesh, "out", vip=EXTERNAL_VIP, location="MESH_EXTERNAL", endpoints=listed),
            peer_authentication("legacy", "STRICT"),
        )

        found = {
            (hop["service"], hop["outcome"], hop["reason"])
            for hop in await mesh.reach()
            if hop["client"] == CLIENT and hop["port"] == 8080
        }

        assert found == {
            ("in.example.com.legacy", "mtls", "auto-mtls"),
            ("out.example.com.legacy", "fails", "server-requires-mtls"),
        }
        assert (await mesh.exchange(HTTP1, CLIENT, VIP, 8080)).how == MTLS
        assert (await mesh.exchange(HTTP1, CLIENT, EXTERNAL_VIP, 8080)).how == FAILS
