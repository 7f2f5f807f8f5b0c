"""`xds serve --validate`: sidecars never receive what Envoy refuses."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.golden.cases import CASES, load
from tests.support.controlplane import run_xds
from tests.support.local import RECONNECTED, LocalMesh
from tests.support.loopback import Loopback
from tests.support.manifests import destination_rule, peer_authentication
from tests.support.waiting import eventually
from xds.cli.validation_options import Validation, ValidationOptions
from xds.mesh.envoy.translate import translate
from xds.validation import find_envoy

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(600)]


async def test_a_refused_rule_is_held_back_alone_and_reported(loopback: Loopback, tmp_path: Path) -> None:
    """The sidecars reject nothing, which `EnvoyProcess` checks at its end."""
    (tmp_path / "root.pem").write_text("not a certificate")
    mesh = LocalMesh(loopback, tmp_path)
    mesh.plane._options = ("--validate=block",)
    async with mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(web, http=(8080, 8081))
        mesh.service("web", "ns", {"http": (80, 8080)})
        await mesh.start(client, web)
        assert (await client.client.get("http://web.ns/")).ok

        rule = destination_rule("web", "ns", "web", "SIMPLE")
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = str(tmp_path / "root.pem")
        mesh.apply(rule)
        await eventually(
            lambda: "resource refused by Envoy" in mesh.plane.tail(100),
            timeout=60,
            what="the rule is held back",
        )
        mesh.service("other", "ns", {"http": (80, 8081)}, selector={"app": "web"})

        async def other_is_served() -> bool:
            return (await client.client.get("http://other.ns/")).ok

        await eventually(other_is_served, timeout=60, what="later changes are served")
        assert (await client.client.get("http://web.ns/")).ok

        async def problems() -> str:
            _, out, err = await run_xds("problems", f"--xds-address={mesh.plane.address}")
            return out + err

        async def is_reported() -> bool:
            found = await problems()
            return "destinationrule-ns-web.yaml:1" in found and "trusted CA certificates" in found

        await eventually(is_reported, timeout=60, what="the problem is reported with file and line")

        mesh.apply(destination_rule("web", "ns", "web", "ISTIO_MUTUAL"))
        await mesh.settled()
        assert (await client.client.get("http://web.ns/")).ok

        async def is_solved() -> bool:
            return "Envoy refuses" not in await problems()

        await eventually(is_solved, timeout=60, what="the problem is solved")


async def test_a_refused_rule_delays_no_mode_change_and_survives_a_restart(
    loopback: Loopback, tmp_path: Path
) -> None:
    """The sidecars reject nothing. The timeout of rollouts exceeds that of the test."""
    (tmp_path / "root.pem").write_text("not a certificate")
    mesh = LocalMesh(loopback, tmp_path)
    mesh.plane._options = ("--validate=block", "--rollout-timeout=600")
    async with mesh:
        client, web, api = mesh.pod("client", "ns"), mesh.pod("web", "ns"), mesh.pod("api", "shop")
        await mesh.serve(web, http=(8080, 8081))
        await mesh.serve(api, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)})
        mesh.service("api", "shop", {"http": (80, 8080)})
        await mesh.start(client, web, api)

        rule = destination_rule("web", "ns", "web", "SIMPLE")
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = str(tmp_path / "root.pem")
        mesh.apply(rule)

        async def rollout() -> str:
            _, out, err = await run_xds("status", "--rollout", f"--xds-address={mesh.plane.address}")
            return re.sub(r"\s+", " ", out + err)

        refused = re.compile(
            r"DestinationRule ns/web waiting for api.shop, client.ns, web.ns, rejected: held back, "
            r"Envoy refuses Cluster outbound\|80\|\S*\|web.ns.svc.cluster.local: Failed to load trusted CA"
        )

        async def names_the_resource() -> bool:
            return refused.search(await rollout()) is not None

        await eventually(names_the_resource, timeout=60, what="the rollout names the resource")

        mesh.apply(peer_authentication("shop", "STRICT"))

        async def is_strict() -> bool:
            return "xds_rollout_plaintext_disabled_total 1.0" in await mesh.plane.metrics()

        await eventually(is_strict, timeout=60, what="the mode has changed")
        assert "xds_rollout_skipped_total 0.0" in await mesh.plane.metrics()
        assert (await client.client.get("http://api.shop/")).ok
        assert refused.search(await rollout()), await rollout()

        await mesh.plane.stop()
        mesh.service("other", "ns", {"http": (80, 8081)}, selector={"app": "web"})
        await mesh.plane.start()

        async def other_is_served() -> bool:
            return (await client.client.get("http://other.ns/")).ok

        await eventually(other_is_served, timeout=2 * RECONNECTED, what="the client is served again")
        assert (await client.client.get("http://web.ns/")).ok

        async def is_reported() -> bool:
            _, out, _ = await run_xds("problems", f"--xds-address={mesh.plane.address}")
            return "Envoy refuses Cluster outbound|80|" in out

        await eventually(is_reported, timeout=2 * RECONNECTED, what="the problem is reported")
        assert (await client.client.get("http://web.ns/")).ok
        mesh.apply(destination_rule("web", "ns", "web", "ISTIO_MUTUAL"))
        await mesh.settled(timeout=2 * RECONNECTED)
        assert (await client.client.get("http://web.ns/")).ok


@pytest.mark.parametrize("mode", ["warn", "block"])
async def test_without_envoy_changes_are_served_or_held_back(
    loopback: Loopback, tmp_path: Path, mode: str
) -> None:
    """The program in place of Envoy fails, until it runs Envoy."""
    binary = tmp_path / "envoy"

    def write(commands: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\n{commands}\n")
        new.chmod(0o755)
        new.replace(binary)

    write("exit 1")
    mesh = LocalMesh(loopback, tmp_path)
    mesh.plane._options = (f"--validate={mode}", f"--envoy={binary}")
    async with mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        await mesh.serve(web, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)})

        async def metric(name: str) -> float:
            found = re.search(
                rf"^xds_validation_{re.escape(name)} (\S+)$", await mesh.plane.metrics(), re.MULTILINE
            )
            return float(found[1]) if found else -1

        async def is_unavailable() -> bool:
            return await metric("unavailable") == 1

        starting = asyncio.create_task(mesh.start(client, web))
        await eventually(is_unavailable, timeout=60, what="Envoy is unavailable")
        effect = "changes are served without validation" if mode == "warn" else "all changes are held back"

        async def is_reported() -> bool:
            _, out, _ = await run_xds("problems", f"--xds-address={mesh.plane.address}")
            return f"{effect}: Envoy does not load the bootstrap" in out

        await eventually(is_reported, timeout=60, what="the problem is reported")
        if mode == "block":
            assert not starting.done()
            assert 'xds_pushes_total{type="cds"} 0.0' in await mesh.plane.metrics()
            write(f'exec {find_envoy()} "$@"')
        await starting
        assert (await client.client.get("http://web.ns/")).ok
        assert (await metric('resources_total{result="accepted"}') > 0) == (mode == "block")
        assert (await metric('resources_total{result="unvalidated"}') > 0) == (mode == "warn")
        assert await metric("unavailable") == (mode == "warn")


async def test_no_resource_of_the_golden_cases_is_refused() -> None:
    validator = ValidationOptions(validate_resources=Validation.BLOCK).validator()
    assert validator
    meshes = [load(case.values[0]) for case in CASES]
    snapshots = [translate(mesh, pod) for mesh in meshes for pod in mesh.pods()]
    resources = {one for each in snapshots for found in each.types.values() for one in found.values()}
    assert len(resources) > 200
    assert not await validator.validate(tuple(resources))
