"""`xds wait` and `xds problems` with real sidecars that ACK, lag or reject, and with an invalid object."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from tests.support.authorization import authorization_policy, source
from tests.support.controlplane import run_xds, xds
from tests.support.local import LocalMesh
from tests.support.manifests import destination_rule, peer_authentication
from tests.support.waiting import eventually

pytestmark = pytest.mark.envoy

HTTP = 8080
HOST = "web.ns.svc.cluster.local"
RULE = "DestinationRule/ns/rule"
POLICY = "PeerAuthentication/ns/default"


class Result(NamedTuple):
    status: int
    out: str
    err: str


async def wait(mesh: LocalMesh, *arguments: str) -> Result:
    """Run `xds wait`."""
    return Result(*await run_xds("wait", *arguments, f"--xds-address={mesh.plane.address}"))


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_wait_ends_when_the_sidecars_have_acked(loopback, tmp_path, sotw):
    async with LocalMesh(loopback, tmp_path, sotw=sotw) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(web, http=[HTTP])
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(peer_authentication("ns", "DISABLE"))
        await mesh.start(client, web)

        # No pause: the control plane has not read the file yet.
        mesh.apply(peer_authentication("ns", "STRICT"))
        result = await wait(mesh, POLICY)
        assert result == (0, "PeerAuthentication ns/default: in force, acked by 2 of 2 sidecars\n", "")
        assert "no transitions" in await xds("status", "--rollout", f"--xds-address={mesh.plane.address}")
        assert (await client.client.get("http://web.ns/")).ok
        await mesh.settled()

        mesh.apply(destination_rule("rule", "ns", HOST, "ISTIO_MUTUAL"))
        assert (await wait(mesh, RULE, "--for", "acked")).status == 0
        await mesh.settled()


async def test_wait_ends_when_the_servers_have_acked_who_may_call(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(web, http=[HTTP])
        mesh.service("web", "ns", {"http": (80, HTTP)})
        await mesh.start(client, web)
        rules = source(namespaces=["other"]), source(namespaces=["ns"])
        for rule, code in zip(rules, ("403", "200"), strict=True):
            # The first policy changes the listener, the second one only the rules.
            mesh.apply(authorization_policy("ns", rule, selector={"app": "web"}))
            result = await wait(mesh, "AuthorizationPolicy/ns/rules")
            assert result == (0, "AuthorizationPolicy ns/rules: in force, acked by 1 of 1 sidecars\n", "")
            assert (await client.client.get("http://web.ns/")).code == code
        with mesh.sidecar(web).suspended():
            mesh.apply(authorization_policy("ns", rules[0], selector={"app": "web"}))
            result = await wait(mesh, "AuthorizationPolicy/ns/rules", "--timeout=2s")
            assert (result.status, result.out) == (1, ""), result


async def test_lagging_sidecar_is_named_after_the_timeout(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(peer_authentication("ns", "DISABLE"))
        await mesh.start(client, web)
        with mesh.sidecar(client).suspended():
            mesh.apply(peer_authentication("ns", "PERMISSIVE"))

            async def policy_waits() -> bool:
                result = await wait(mesh, POLICY, "--timeout", "3s")
                assert (result.status, result.out) == (1, "")
                first, *lines = result.err.splitlines()
                timeout = "xds: PeerAuthentication ns/default: timed out after 3s: acked by 1 of 2"
                assert first.startswith(timeout), result
                assert lines[0] == "  client.ns waiting for EDS"
                assert lines[1] == f"  web.ns:{HTTP} waiting for client.ns"
                return True

            # On a slow machine, the other sidecar needs longer than this timeout.
            await eventually(policy_waits)

            async def rule_waits() -> bool:
                result = await wait(mesh, RULE, "--for=acked", "--timeout=3s")
                return (result.status, "client.ns" in result.err) == (1, True)

            mesh.apply(destination_rule("rule", "ns", HOST, "ISTIO_MUTUAL"))
            await eventually(rule_waits)
        assert (await wait(mesh, RULE)).status == 0
        assert (await wait(mesh, POLICY)).status == 0


async def test_rejections_end_the_wait(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, HTTP)})
        await mesh.start(client, web, may_reject=True)
        rule = destination_rule("rule", "ns", HOST, "SIMPLE")
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = "/does/not/exist.pem"
        mesh.apply(rule)

        async def both_reject() -> bool:
            result = await wait(mesh, RULE)
            assert (result.status, result.out) == (1, "")
            first, *lines = result.err.splitlines()
            assert first == "xds: DestinationRule ns/rule: rejected by 2 sidecars"
            assert sorted(line.split()[0] for line in lines) == ["client.ns", "web.ns"]
            return all("rejected: " in line and "/does/not/exist.pem" in line for line in lines)

        # The first rejection ends the wait.
        await eventually(both_reject)


async def test_invalid_object_ends_the_wait_and_is_a_problem(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        web = mesh.pod("web", "ns")
        mesh.service("web", "ns", {"http": (80, HTTP)})
        mesh.apply(peer_authentication("ns", "PERMISSIVE"))
        await mesh.start(web)
        at = f"--xds-address={mesh.plane.address}"
        assert await xds("problems", at) == "no problems\n"

        mesh.apply(peer_authentication("ns", "STRICKT"))
        result = await wait(mesh, POLICY)
        assert (result.status, result.out) == (1, "")
        assert "the control plane rejects PeerAuthentication ns/default: " in result.err
        assert "did you mean STRICT" in result.err

        text = await xds("problems", at, may_be_no=True)
        header, line = text.splitlines()
        assert header.split() == ["OBJECT", "PLACE", "AGE", "PROBLEM"]
        assert line.startswith("PeerAuthentication ns/default  ")
        [problem] = json.loads(await xds("problems", "-o", "json", at, may_be_no=True))["problems"]
        assert problem["object"] == "PeerAuthentication ns/default"
        assert problem["servedVersion"]
        assert line.endswith(f"; version {problem['servedVersion']} stays in use")
        assert await xds("problems", "-n", "other", at) == "no problems\n"

        mesh.apply(peer_authentication("ns", "STRICT"))
        assert (await wait(mesh, POLICY)).status == 0
        assert await xds("problems", at) == "no problems\n"
        mesh.apply(peer_authentication("ns", "STRICT", name="lost", selector={"app": "wbe"}))

        async def has_problem() -> bool:
            return "wbe" in await xds("problems", at, may_be_no=True)

        await eventually(has_problem)
        result = await wait(mesh, "PeerAuthentication/ns/lost")
        assert (result.status, "affects no connected sidecar" in result.out) == (0, True)

        result = await wait(mesh, "PeerAuthentication/ns/nobody")
        assert (result.status, "does not exist in the files" in result.err) == (2, True)
        result = await wait(mesh, POLICY, "--resource-version=12")
        assert (result.status, "files, which have no resourceVersion" in result.err) == (2, True)
