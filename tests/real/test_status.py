"""`xds status` and CSDS with real sidecars: one synced, one rejected, one waiting, one of an unknown pod."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import grpc.aio
import pytest

from tests.support.controlplane import xds
from tests.support.envoy import EnvoyProcess
from tests.support.local import LocalMesh
from tests.support.manifests import destination_rule
from tests.support.rows import read_table
from tests.support.waiting import eventually
from xds.codec import message_class, to_json_dict
from xds.introspect import csds
from xds.mesh.envoy.bootstrap import bootstrap
from xds.snapshot import CLUSTER

pytestmark = pytest.mark.envoy

TYPES = {"CDS", "EDS", "SDS", "LDS", "RDS"}
NOWHERE = "/does/not/exist.pem"
WEB = "outbound|80||web.ns.svc.cluster.local"
_STATUS = "envoy.service.status.v3"


class Running(EnvoyProcess):
    """An Envoy that counts as started before it is live, because it gets no configuration."""

    async def _is_live(self) -> bool:
        return bool(await self.admin.json("/server_info"))


class Status:
    """The output of `xds status` for a mesh."""

    def __init__(self, mesh: LocalMesh) -> None:
        self._at = f"--xds-address={mesh.plane.address}"

    async def rows(self) -> dict[str, dict[str, str]]:
        """Return the row of each proxy, by title."""
        rows, _ = read_table(await self.text())
        return {row["PROXY"]: row for row in rows}

    async def says(self, proxy: str, title: str, words: str) -> bool:
        """Whether a cell matches a regular expression."""
        rows = await self.rows()
        assert proxy in rows, rows
        cell = rows[proxy][title]
        assert re.fullmatch(words, cell), cell
        return True

    async def text(self, *arguments: str) -> str:
        return await xds("status", self._at, *arguments, may_be_no=True)

    async def json(self, *arguments: str) -> list[dict[str, Any]]:
        answer = json.loads(await xds("status", self._at, "-o", "json", *arguments, may_be_no=True))
        proxies: list[dict[str, Any]] = answer["proxies"]
        return proxies


async def cluster_by_csds(mesh: LocalMesh, pod: str, name: str) -> Any:
    """Return the CSDS entry of one cluster of one sidecar."""
    request = message_class(f"{_STATUS}.ClientStatusRequest")()
    request.node_matchers.add().node_id.contains = f"~{pod}~"
    async with grpc.aio.insecure_channel(mesh.plane.address) as channel:
        fetch = channel.unary_unary(f"/{csds.SERVICE}/FetchClientStatus")
        answer = message_class(f"{_STATUS}.ClientStatusResponse").FromString(
            await fetch(request.SerializeToString())
        )
    [client] = answer.config
    [config] = [
        config for config in client.generic_xds_configs if (config.type_url, config.name) == (CLUSTER, name)
    ]
    return config


def state_of(config: Any) -> str:
    field = config.DESCRIPTOR.fields_by_name["config_status"]
    return str(field.enum_type.values_by_number[config.config_status].name)


async def assert_csds_reports_rejection(mesh: LocalMesh, before: Any, began: float) -> None:
    """Assert that one sidecar rejected a cluster since `began` but not `before`, and another never did."""
    good, bad = [await cluster_by_csds(mesh, pod, WEB) for pod in ("good.ns", "bad.other")]
    assert state_of(good) == "SYNCED"
    assert not good.HasField("error_state")
    assert state_of(bad) == "ERROR"
    error = bad.error_state
    assert error.details.startswith(f"Error adding/updating cluster(s) {WEB}: ")
    assert NOWHERE in error.details
    assert error.version_info not in {"", before.version_info}
    assert NOWHERE.encode() in error.failed_configuration.value
    assert began <= error.last_update_attempt.ToNanoseconds() / 1e9 <= time.time()


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_status_of_synced_waiting_and_rejecting_sidecars(loopback, tmp_path, sotw):
    async with LocalMesh(loopback, tmp_path, sotw=sotw) as mesh:
        status = Status(mesh)
        web, good = mesh.pod("web", "ns"), mesh.pod("good", "ns")
        slow, bad = mesh.pod("slow", "ns"), mesh.pod("bad", "other")
        mesh.pod("lost", "ns")
        mesh.service("web", "ns", {"http": (80, 8080)})
        known = mesh.facts().pod("ns", "lost")
        assert known
        begin = to_json_dict(bootstrap(known, "127.0.0.1", mesh.plane.port, sotw=sotw))
        mesh.manifests.remove("pod-ns-lost")
        await mesh.start(web, good, slow)
        await mesh.start(bad, may_reject=True)

        async def all_synced() -> bool:
            rows = await status.rows()
            assert set(rows) == {"web.ns", "good.ns", "slow.ns", "bad.other"}
            assert all(re.fullmatch(r"synced [0-9ms]+ ago", row["STATUS"]) for row in rows.values())
            assert all(row[kind] == "synced" for row in rows.values() for kind in TYPES)
            return all(re.fullmatch(r"(23h\d+m|1d)", row["CERT"]) for row in rows.values())

        await eventually(all_synced, what="every sidecar is synced")
        proxies = {proxy["pod"]: proxy for proxy in await status.json()}
        assert proxies["good"]["agent"] == "envoy"
        assert proxies["good"]["agentVersion"].startswith("1.")
        [stream] = proxies["good"]["streams"]
        assert stream["variant"] == ("SOTW" if sotw else "DELTA")

        before, began = await cluster_by_csds(mesh, "bad.other", WEB), time.time()
        assert state_of(before) == "SYNCED"

        # The rule applies only to clients in its namespace, and its file does not exist in the sidecar.
        rule = destination_rule("broken", "other", "web.ns.svc.cluster.local", "SIMPLE")
        rule["spec"] |= {"exportTo": ["."]}
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = NOWHERE
        mesh.apply(rule)

        words = rf"CDS rejected: .*{NOWHERE}.* \(from DestinationRule other/broken\)"
        await eventually(lambda: status.says("bad.other", "STATUS", words))
        rows = await status.rows()
        rejected = [(name, kind) for name, row in rows.items() for kind in TYPES if row[kind] == "rejected"]
        assert rejected == [("bad.other", "CDS")]
        assert "good.ns" not in await status.text("--not-synced")
        text = await status.text("bad.other")
        assert WEB in text
        assert "rejected, made from DestinationRule other/broken (" in text
        assert "destinationrule-other-broken" in text, "where it was read"

        await assert_csds_reports_rejection(mesh, before, began)

        await mesh.enter(Running("lost.ns", begin, tmp_path))

        await eventually(lambda: status.says("lost.ns", "STATUS", "its pod is not known"))

        with mesh.sidecar(slow).suspended():
            mesh.pod("web-2", "ns", sidecar=False, labels={"app": "web"})
            await eventually(lambda: status.says("slow.ns", "STATUS", r".*EDS waiting [0-9ms]+ for an ACK.*"))
            mesh.service("other", "ns", {"http": (81, 8081)}, selector={"app": "web"})
            # Endpoints are missing because the suspended sidecar does not answer.
            await eventually(lambda: status.says("slow.ns", "STATUS", r".*CDS waiting [0-9ms]+ for an ACK.*"))
            await eventually(lambda: status.says("good.ns", "CDS", "synced"))
        await eventually(lambda: status.says("slow.ns", "CDS", "synced"))
        await eventually(lambda: status.says("slow.ns", "EDS", "synced"))
