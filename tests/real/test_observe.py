"""Observed traffic of real sidecars: `xds observe` names who sent what, and counts it right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster
from tests.support.controlplane import xds
from tests.support.manifests import peer_authentication
from tests.support.mesh import Mesh
from tests.support.rows import read_table
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.netns,
    pytest.mark.envoy,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

PORTS = {"http": (80, 8080), "tcp": (90, 9000)}
WITHIN = 60.0
SIDECARS = 3
_REPORTS = 'xds_observed_reports_total{service="envoy.service.load_stats.v3.LoadReportingService"}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Servers that accept plaintext and that refuse it, a client with a sidecar, and one without."""
    with Cluster() as cluster:
        async with Mesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            mesh.pod("client", "full", account="sleep")
            mesh.pod("outsider", "legacy", sidecar=False, account="cron")
            for namespace in ("permissive", "strict"):
                pod = mesh.pod("web", namespace)
                mesh.service("web", namespace, PORTS)
                await mesh.serve(pod, http=(8080,), lines=(9000,))
            mesh.service("web", "legacy", PORTS, selector={"app": "outsider"})
            await mesh.serve(mesh["outsider.legacy"], http=(8080,), lines=(9000,))
            mesh.apply(peer_authentication("strict", "STRICT"))
            await mesh.start()
            yield mesh


async def observed(mesh: Mesh, *arguments: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the edges that `xds observe` prints, by client, service and mode."""
    answer = json.loads(await xds("observe", f"--xds-address={mesh.plane.address}", "-o", "json", *arguments))
    assert answer["enabled"]
    assert not answer["mayBeOnOtherReplica"]
    return {
        (
            f"{edge['client']}.{edge['clientNamespace']}",
            f"{edge['service']}.{edge['namespace']}:{edge['port']}",
            edge["mode"],
        ): edge
        for edge in answer["edges"]
    }


async def count(mesh: Mesh, *key: str) -> int:
    edge = (await observed(mesh)).get(key)  # type: ignore[call-overload]
    return int(edge["requestsPerDay"]) if edge else 0


async def load_reports(mesh: Mesh) -> int:
    lines = (await mesh.plane.metrics()).splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(_REPORTS))


async def until_reported_twice(mesh: Mesh) -> None:
    """Wait until each sidecar has sent two more reports. Envoy buffers access logs for a shorter time."""
    admins = [sidecar.admin for sidecar in mesh.sidecars.values()]
    before = [await admin.stat("load_reporter.responses") for admin in admins]
    received = await load_reports(mesh)

    async def have_reported() -> bool:
        now = [await admin.stat("load_reporter.responses") for admin in admins]
        all_sent = all(count >= past + 2 for count, past in zip(now, before, strict=True))
        return all_sent and await load_reports(mesh) >= received + 2 * SIDECARS

    await eventually(have_reported, timeout=WITHIN, every=0.5)


async def get(mesh: Mesh, client: str, url: str) -> str:
    return (await mesh[client].client.get(url)).code


async def test_requests_of_a_sidecar_are_counted_by_mode(mesh):
    encrypted = ("sleep.full", "web.strict:80", "MTLS")
    plaintext = ("sleep.full", "web.legacy:80", "PLAINTEXT")

    async def both_are_observed() -> bool:
        assert await get(mesh, "client.full", "http://web.strict/headers") == "200"
        assert await get(mesh, "client.full", "http://web.legacy/headers") == "200"
        return {encrypted, plaintext} <= (await observed(mesh)).keys()

    # Envoy counts the requests of a new cluster from its next interval on.
    await eventually(both_are_observed, timeout=WITHIN, every=1)
    await until_reported_twice(mesh)
    before = [await count(mesh, *key) for key in (encrypted, plaintext)]
    for _ in range(7):
        await get(mesh, "client.full", "http://web.strict/headers")
    for _ in range(4):
        await get(mesh, "client.full", "http://web.legacy/headers")

    async def counts() -> bool:
        now = [await count(mesh, *key) for key in (encrypted, plaintext)]
        assert now == [before[0] + 7, before[1] + 4], (before, now)
        return True

    await eventually(counts, timeout=WITHIN, every=0.5)
    # The prediction, and beside it what the sidecar reported.
    text = await xds("reach", "--from=client.full", "-o", "wide", f"--xds-address={mesh.plane.address}")
    rows, _ = read_table(text)
    shown = {row["SERVICE"]: (row["OUTCOME"], row["OBSERVED"]) for row in rows}
    assert re.fullmatch(r"[0-9.]+/min mtls", shown["web.strict:80"][1])
    assert re.fullmatch(r"[0-9.]+/min plaintext", shown["web.legacy:80"][1])
    assert shown["web.permissive:90"] == ("mtls", "-")


async def test_plaintext_client_without_a_sidecar_is_named(mesh):
    for _ in range(5):
        assert await get(mesh, "outsider.legacy", "http://web.permissive/headers") == "200"

    async def is_counted() -> bool:
        return await count(mesh, "cron.legacy", "web.permissive:80", "PLAINTEXT") == 5

    await eventually(is_counted, timeout=WITHIN, every=0.5)
    rows, _ = read_table(await xds("observe", f"--xds-address={mesh.plane.address}", "-n", "permissive"))
    assert ("legacy/cron", "web.permissive:80", "plaintext") in {
        (row["CLIENT"], row["SERVICE"], row["MODE"]) for row in rows
    }
    explained = await xds(
        "explain", "outsider.legacy", "web.permissive", f"--xds-address={mesh.plane.address}"
    )
    assert re.search(r"Observed: +[<0-9.]+/min plaintext from legacy/cron, last [0-9ms]+ ago", explained)
    assert (
        'xds_observed_requests_total{mode="plaintext",namespace="permissive"}' in await mesh.plane.metrics()
    )


async def test_refused_client_is_named(mesh):
    for _ in range(3):
        assert not (await mesh["outsider.legacy"].client.get("http://web.strict/headers")).ok

    async def is_counted() -> bool:
        return await count(mesh, "cron.legacy", "web.strict:80", "REFUSED") == 3

    await eventually(is_counted, timeout=WITHIN, every=0.5)
    assert ("cron.legacy", "web.strict:80", "REFUSED") in await observed(mesh, "--plaintext")
    address = f"--xds-address={mesh.plane.address}"
    explained = await xds("explain", "outsider.legacy", "web.strict", address, may_be_no=True)
    assert re.search(r"refused from legacy/cron, last [0-9ms]+ ago, 3 failed in the last hour", explained)

    async def is_a_problem() -> bool:
        found = await xds("problems", address, may_be_no=True)
        return "requests of legacy/cron to port 80 fail: the client sends plaintext" in found

    await eventually(is_a_problem, timeout=WITHIN, every=0.5)


async def test_open_plaintext_connection_is_observed_before_it_ends(mesh):
    async with mesh["outsider.legacy"].client.tcp("web.permissive", 90) as conversation:
        assert await conversation.ask("one")

        async def is_observed() -> bool:
            return await count(mesh, "cron.legacy", "web.permissive:90", "PLAINTEXT") == 1

        await eventually(is_observed, timeout=WITHIN, every=0.5)
        assert await conversation.ask("two"), "the connection is still open"


async def test_kept_alive_plaintext_connection_is_observed_before_it_ends(mesh):
    before = await count(mesh, "cron.legacy", "web.permissive:80", "PLAINTEXT")
    async with mesh["outsider.legacy"].client.session(keep_alive=True) as session:
        for _ in range(2):
            async with session.get("http://web.permissive/headers") as answer:
                assert answer.status == 200

        async def is_observed() -> bool:
            return await count(mesh, "cron.legacy", "web.permissive:80", "PLAINTEXT") >= before + 2

        await eventually(is_observed, timeout=WITHIN, every=0.5)


async def test_mutual_tls_writes_no_access_log(mesh):
    for pod in ("web.strict", "web.permissive"):
        envoy = mesh.sidecar(mesh[pod])
        await until_reported_twice(mesh)
        written = await envoy.admin.stat("access_logs.grpc_access_log.grpc_entries_flushed")
        for _ in range(5):
            assert await get(mesh, "client.full", f"http://{pod}/headers") == "200"
        await until_reported_twice(mesh)
        assert await envoy.admin.stat("access_logs.grpc_access_log.grpc_entries_flushed") == written


async def test_report_is_what_holds(mesh):
    """Modes, ACKs, shares and certificates of a report are those of the real sidecars."""

    async def reported() -> dict[str, dict[str, Any]]:
        report = json.loads(await xds("report", "-o", "json", f"--xds-address={mesh.plane.address}"))[
            "report"
        ]
        return report | {
            "web": {each["namespace"]: each for each in report["workloads"] if each["name"] == "web"}
        }

    async def all_is_observed() -> bool:
        assert await get(mesh, "client.full", "http://web.strict/headers") == "200"
        assert await get(mesh, "outsider.legacy", "http://web.permissive/headers") == "200"
        assert not (await mesh["outsider.legacy"].client.get("http://web.strict/headers")).ok
        web = (await reported())["web"]
        seen = {(name, each["client"], each["mode"]) for name in web for each in web[name]["observed"]}
        return {
            ("strict", "sleep", "MTLS"),
            ("strict", "cron", "REFUSED"),
            ("permissive", "cron", "PLAINTEXT"),
        } <= seen

    await eventually(all_is_observed, timeout=WITHIN, every=1)
    report = await reported()
    for namespace, mode in (("strict", "STRICT"), ("permissive", "PERMISSIVE")):
        found, pod = report["web"][namespace], mesh[f"web.{namespace}"]
        assert (found["pods"], found["sidecars"], found["connected"]) == (1, 1, 1)
        assert {(each["port"], each["mode"], each["acked"]) for each in found["ports"]} == {
            (port, mode, 1) for port in (8080, 9000, 0)
        }
        sends = {each["send"] for port in found["ports"] for each in port["allowed"]}
        answer = await mesh["outsider.legacy"].client.get(f"http://web.{namespace}/headers")
        assert ("plaintext" in sends) == answer.ok
        assert all(each["since"] <= report["scope"]["created"] for each in found["ports"])
        identity = f"spiffe://cluster.local/ns/{namespace}/sa/default"
        assert found["certificates"]["identities"] == [identity]
        shown = (await mesh.sidecar(pod).admin.json("/certs"))["certificates"]
        leaves = [each["cert_chain"][0] for each in shown if each["cert_chain"]]
        assert [each["subject_alt_names"] for each in leaves] == [[{"uri": identity}]] * len(leaves)
        assert {each["expiration_time"] for each in leaves} == {found["certificates"]["firstExpiry"]}
        roots = {root["serial_number"].lstrip("0") for each in shown for root in each["ca_cert"]}
        assert roots == {each["serial"] for each in report["certificates"]["authorities"]}
    counted = {
        name: (await observed(mesh))[key]["requestsPerDay"]
        for name, key in (
            ("MTLS", ("sleep.full", "web.strict:80", "MTLS")),
            ("REFUSED", ("cron.legacy", "web.strict:80", "REFUSED")),
        )
    }
    strict = {each["mode"]: each["requests"] for each in (await reported())["web"]["strict"]["observed"]}
    assert {mode: int(strict[mode]) >= int(count) for mode, count in counted.items()} == dict.fromkeys(
        counted, True
    )
    assert {(each["kind"], each["subject"]) for each in report["exceptions"]} >= {
        ("plaintext", "web.permissive"),
        ("no-sidecar", "outsider.legacy"),
    }
    assert "web.strict" not in {
        each["subject"] for each in report["exceptions"] if each["kind"] == "plaintext"
    }
    [tls] = report["tls"]
    assert (tls["sidecars"], tls["minVersion"], tls["postQuantum"]) == (SIDECARS, "TLSV1_3", True)
    build = (await mesh.sidecar(mesh["web.strict"]).admin.json("/server_info"))["version"]
    assert build.split("/")[1].startswith(tls["envoyVersions"][0])
    envoy = mesh.sidecar(mesh["client.full"]).admin
    negotiated = await envoy.stats("ssl.versions.TLSv1.3")
    assert sum(negotiated.values()) > 0
    assert not await envoy.stats("ssl.versions.TLSv1.2")
