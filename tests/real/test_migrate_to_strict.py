"""The steps of docs/how-to/change-modes.md with real sidecars: from observe to explain."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support import manifests
from tests.support.controlplane import run_xds
from tests.support.local import LocalMesh
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually

pytestmark = pytest.mark.envoy

HTTP = 8080
URL = "http://web.ns/"


async def run(*arguments: object) -> tuple[int, str]:
    """Run an xds command, and return its exit status and output."""
    status, out, err = await run_xds(*arguments)
    assert status < 2, err
    return status, out


async def test_namespace_becomes_strict_as_planned(loopback, tmp_path: Path) -> None:
    async with LocalMesh(loopback, tmp_path) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns")
        old = mesh.pod("old", "ns", sidecar=False)
        await mesh.serve(web, http=[HTTP])
        mesh.service("web", "ns", {"http": (80, HTTP)})
        await mesh.start(client, web)
        assert (await old.client.get(URL)).ok
        control_plane = f"--xds-address={mesh.plane.address}"
        strict = tmp_path / "strict.yaml"
        strict.write_text(yaml.safe_dump(peer_authentication("ns", "STRICT")))

        async def plaintext_is_observed() -> bool:
            _, observed = await run("observe", "--namespace=ns", "--plaintext", control_plane)
            # The pods share this machine: requests of a pod without a sidecar come from 127.0.0.1.
            rows = [line.split()[:3] for line in observed.splitlines()[1:]]
            return ["127.0.0.1", "web.ns:80", "plaintext"] in rows

        await eventually(plaintext_is_observed, timeout=90)
        status, planned = await run("plan", "-f", strict, "--observed=10m", control_plane)
        assert status == 1
        assert ["127.0.0.1", "web.ns:80", "plaintext"] in [line.split()[:3] for line in planned.splitlines()]
        assert "not safe to lock: plaintext traffic of 127.0.0.1 was observed" in planned
        assert [line.split()[:3] for line in planned.splitlines()[1:2]] == [["breaks", "ns/old", "web.ns:80"]]
        assert "add a sidecar to ns/old" in planned

        mesh.delete(manifests.pod(old.name, old.namespace, old.address, sidecar=False, **old.said))
        new = mesh.pod("new", "ns")
        await mesh.start(new)
        status, planned = await run("plan", "-f", strict, control_plane)
        assert (status, "breaks" in planned) == (0, False)
        status, planned = await run("plan", "-f", strict, "--observed=10m", control_plane)
        assert (status, "plaintext traffic of 127.0.0.1 was observed" in planned) == (1, True)

        async def is_safe() -> bool:
            status, planned = await run("plan", "-f", strict, "--observed=3s", control_plane)
            return status == 0 and "safe to lock: no plaintext traffic was observed for 3s" in planned

        await eventually(is_safe, timeout=90)
        status, manifest = await run("lock", "ns", "--observed=3s", "--dry-run", "-o", "yaml", control_plane)
        assert (status, yaml.safe_load(manifest)) == (0, peer_authentication("ns", "STRICT"))

        mesh.apply(yaml.safe_load(manifest))
        status, waited = await run("wait", "PeerAuthentication/ns/default", control_plane)
        assert (status, waited.split(": ")[1][:8]) == (0, "in force")
        status, explained = await run("explain", "client.ns", "web.ns", control_plane)
        assert status == 0
        in_use, outcome = (line for line in explained.splitlines() if "In use" in line or "Outcome" in line)
        assert in_use.split()[2] == "yes:"
        assert "mutual TLS" in outcome

        assert (await client.client.get(URL)).ok
        assert (await new.client.get(URL)).ok
        assert not (await old.client.get(URL)).ok
