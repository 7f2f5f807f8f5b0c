"""`xds serve` as a process, with real sidecars: input, faults, output and shutdown."""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from tests.support import controlplane, manifests
from tests.support.answers import Answer
from tests.support.clients import Client
from tests.support.controlplane import ControlPlane
from tests.support.envoy import EnvoyProcess
from tests.support.local import RECONNECTED, LocalMesh, file_of
from tests.support.places import HERE, Namespace
from tests.support.sidecars import DEADLINE, Sidecars, everything, service_at, text_of, updates, version_infos
from tests.support.tcp import Relay
from tests.support.waiting import eventually
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET

pytestmark = pytest.mark.envoy

REJECTED = "proxy rejected configuration"


@pytest.fixture
async def sidecars(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        made = Sidecars(mesh)
        await made.start()
        yield made


class TestFiles:
    async def test_file_changes_reach_sidecars_within_a_second(self, sidecars):
        folder, aside = sidecars.folder, sidecars.folder.parent
        file, below, mounted = folder / "svc.yaml", folder / "below", folder / "mounted"

        def create() -> None:
            file.write_text(text_of(service_at("svc", "10.0.0.1")))

        def edit() -> None:
            file.write_text(text_of(service_at("svc", "10.0.0.2")))

        def replace() -> None:
            (aside / "new").write_text(text_of(service_at("svc", "10.0.0.3")))
            (aside / "new").replace(file)

        def move() -> None:
            below.mkdir()
            file.write_text(text_of(service_at("svc", "10.0.0.4")))
            file.replace(below / "other.yml")

        def delete() -> None:
            (below / "other.yml").unlink()

        def mount(number: int) -> None:
            # As a kubelet updates a ConfigMap: all files at once.
            version = mounted / f"..{number}"
            version.mkdir(parents=True)
            (version / "svc.yaml").write_text(text_of(service_at("svc", f"10.0.0.{number}")))
            (mounted / "..new").symlink_to(version.name)
            (mounted / "..new").replace(mounted / "..data")
            if not (mounted / "svc.yaml").exists():
                (mounted / "svc.yaml").symlink_to("..data/svc.yaml")

        steps: list[tuple[Callable[[], None], str | None]] = [
            (create, "10.0.0.1"),
            (edit, "10.0.0.2"),
            (replace, "10.0.0.3"),
            (move, "10.0.0.4"),
            (delete, None),
            (lambda: mount(5), "10.0.0.5"),
            (lambda: mount(6), "10.0.0.6"),
        ]
        took = []
        for step, expected in steps:
            step()
            took.append(await sidecars.find("svc", expected))
        # Usually less than one, but the machine may have other things to do.
        assert min(took) < 3
        print(f"seconds from a file to both sidecars: {[round(seconds, 2) for seconds in took]}")

    async def test_bad_input_is_reported_and_blocks_nothing(self, sidecars):
        kept = sidecars.folder / "kept.yaml"
        sidecars.write(kept.name, text_of(service_at("kept", "10.0.0.1")))
        await sidecars.find("kept", "10.0.0.1")

        changed = text_of(service_at("kept", "10.0.0.2"))
        sidecars.write(kept.name, changed.replace("  - ip:", "\t- ip:"))
        sidecars.write("other.yaml", text_of(service_at("other", "10.0.0.3")))
        await sidecars.find("other", "10.0.0.3")
        line = await sidecars.logged("level=warning", 'event="problem found"', str(kept))

        number = changed[: changed.index("  - ip:")].count("\n") + 1
        assert f"where={kept}:{number} " in line
        assert await sidecars.addresses("kept") == [{"10.0.0.1"}] * 2
        # Logged once, not every time the folder is read.
        assert sum(f'event="problem found" where={kept}' in line for line in sidecars.log()) == 1

        sidecars.write(kept.name, changed)
        await sidecars.find("kept", "10.0.0.2")
        await sidecars.logged('event="problem solved"', str(kept))


@pytest.mark.parametrize("sotw", [True, False], ids=["sotw", "delta"])
async def test_rejection_is_logged_and_affects_nothing_else(loopback, tmp_path, sotw):
    async with LocalMesh(loopback, tmp_path, sotw=sotw) as mesh:
        client, web = mesh.pod("client", "ns"), mesh.pod("web", "ns", sidecar=False)
        await mesh.serve(web, http=(8080,))
        mesh.service("web", "ns", {"http": (80, 8080)}, address="10.96.0.1")
        mesh.service("bad", "ns", {"http": (80, 8080)}, address="10.96.0.2", selector={"app": "web"})
        await mesh.start(client, may_reject=True)
        sidecars = Sidecars(mesh, client)

        rule = manifests.destination_rule("bad", "ns", "bad", "SIMPLE")
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = "/no/such/file.pem"
        mesh.apply(rule)
        line = await sidecars.logged("level=warning", REJECTED, "/no/such/file.pem")

        where = sidecars.folder / f"{file_of(rule)}.yaml"
        assert f"proxy=sidecar~{client.address}~client.ns~ns.svc.cluster.local" in line
        assert "bad.ns.svc.cluster.local: Invalid path: /no/such/file.pem" in line
        assert f"DestinationRule ns/bad ({where}:1)" in line
        assert await sidecars.rejections() == 1

        # The rejected resource keeps its version without a retry, and all others are updated.
        for host in ("web", "bad"):
            assert (await client.client.get(f"http://{host}/headers")).pod == "web.ns"
        await sidecars.follow("svc")
        assert await sidecars.rejections() == 1

        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = "/not/there/either.pem"
        mesh.apply(rule)
        await sidecars.logged("level=warning", REJECTED, "/not/there/either.pem")
        assert await sidecars.rejections() == 2

        rule["spec"]["trafficPolicy"]["tls"] = {"mode": "ISTIO_MUTUAL"}
        mesh.apply(rule)
        await mesh.settled()
        assert (await client.client.get("http://bad/headers")).code == "503"
        await sidecars.follow("svc")
        assert await sidecars.rejections() == 2
        assert sum(REJECTED in line for line in sidecars.log()) == 2


class TestRestart:
    async def test_restart_sends_only_new_keys(self, sidecars):
        (sidecars.folder / "before.yaml").write_text(text_of(service_at("before", "10.0.0.1")))
        await sidecars.find("before", "10.0.0.1")
        mesh, (sotw, delta) = sidecars.mesh, sidecars.envoys
        await mesh.settled()
        before = [await everything(mesh.plane.port, pod) for pod in sidecars.pods]
        updated = await updates(delta)
        versions = await version_infos(sotw)

        began = time.monotonic()
        assert await mesh.plane.stop() == 0
        assert time.monotonic() - began < DEADLINE
        assert 'event="control plane stopped"' in sidecars.log()[-1]
        await mesh.plane.start()

        secrets = "sds.default.update_success"
        await eventually(lambda: is_more(delta, secrets, updated[secrets]), timeout=RECONNECTED)
        await eventually(lambda: is_more(sotw, "control_plane.connected_state", 0), timeout=RECONNECTED)
        for was, pod in zip(before, sidecars.pods, strict=True):
            now = await everything(mesh.plane.port, pod)
            # Keys are not stored; all other resources have the same bytes.
            assert now.pop((SECRET, "default")) != was.pop((SECRET, "default"))
            assert now == was
            assert {type_url for type_url, _ in now} == {CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET}
        (sidecars.folder / "after.yaml").write_text(text_of(service_at("after", "10.0.0.2")))
        await sidecars.find("after", "10.0.0.2")

        async def took_only_news() -> bool:
            since = await updates(delta)
            changed = {name: count - updated.get(name, 0) for name, count in since.items()}
            assert {name: count for name, count in changed.items() if count} == {
                "cluster_manager.cds.update_success": 1,
                "cluster.outbound|80||after.ns.svc.cluster.local;.update_success": 1,
                "http.outbound_http_proxy.rds.http_proxy.update_success": 1,
                secrets: 1,
                "sds.ROOTCA.update_success": 1,
            }
            return True

        # Endpoints may arrive before routes and roots.
        await mesh.settled()
        await eventually(took_only_news)
        (sidecars.folder / "after.yaml").unlink()
        await sidecars.find("after", None)
        await mesh.settled()
        assert await version_infos(sotw) == versions
        assert not any("Traceback" in line for line in sidecars.log())


class TestAddresses:
    async def test_health_and_readiness_are_served(self, tmp_path):
        plane = ControlPlane(tmp_path, tmp_path)
        starting = asyncio.create_task(plane.start())
        codes = []
        try:
            async with asyncio.timeout(60):
                while "200" not in codes:
                    codes.append((await Client().get(f"http://{plane._admin}/ready")).code)
                    await asyncio.sleep(0.02)
            await starting
            # In this order, but each may be over before it is seen.
            assert codes == sorted(codes, key=("000", "503", "200").index)
            for path, text in (("healthz", "ok\n"), ("ready", "ready\n")):
                answer = await Client().get(f"http://{plane._admin}/{path}")
                assert (answer.code, answer.text) == ("200", text)
        finally:
            assert await plane.stop() == 0
        assert (await Client().get(f"http://{plane._admin}/healthz")).code == "000"

    @pytest.mark.parametrize(
        "address", ["0.0.0.0:15010", "10.0.0.1:15010", "[::]:15010", "example.org:15010"]
    )
    async def test_plaintext_needs_loopback_or_an_option(self, tmp_path, address):
        status, out, err = await controlplane.run_xds(
            "serve", f"--manifests={tmp_path}", f"--xds-address={address}"
        )
        assert (status, out) == (2, "")
        assert address in err
        assert "--insecure-xds" in err

    @pytest.mark.netns
    async def test_plaintext_off_loopback_serves_no_private_key(self, loopback, tmp_path):
        mesh = LocalMesh(loopback, tmp_path)
        client = mesh.pod("client", "ns")
        mesh.service("client", "ns", {"http": (80, 8080)}, address="10.96.0.1")
        async with mesh:
            assert b"PRIVATE KEY" in (await everything(mesh.plane.port, client))[SECRET, "default"][1]
        with ExitStack() as places:
            place = Namespace(f"xds-insecure-{mesh.plane.port}")
            places.callback(place.close)
            serve = ("serve", f"--manifests={mesh.manifests.directory}", "--xds-address=0.0.0.0:15010")
            process = await asyncio.create_subprocess_exec(
                *place.command(controlplane.XDS, *serve, "--insecure-xds"), stdout=PIPE, stderr=PIPE
            )
            try:
                await eventually(lambda: is_ok(Client(place).get("http://127.0.0.1:15014/ready")), timeout=60)
                door = HERE.listener(loopback.address(), 0)
                async with Relay(door, lambda: Client(place).connect("127.0.0.1", 15010)):
                    host, port = door.getsockname()
                    resources = await everything(port, client, host=host)
            finally:
                process.terminate()
                out, err = await process.communicate()

        assert {type_url for type_url, _ in resources} == {CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET}
        assert [name for type_url, name in resources if type_url == SECRET] == ["ROOTCA"]
        assert not any(b"PRIVATE KEY" in body for _, body in resources.values())
        assert (process.returncode, out) == (0, b"")
        assert b"gets no certificate" in err


async def is_more(envoy: EnvoyProcess, name: str, than: int) -> bool:
    return await envoy.admin.stat(name) > than


async def is_ok(asking: Awaitable[Answer]) -> bool:
    return (await asking).ok
