"""`xds status` against a real server: its output and exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from tests.protocol.stream import world
from tests.server.proxies import Client, OneForAll
from tests.support.processes import started
from tests.support.rows import read_table
from xds.cli import app
from xds.introspect import Introspection
from xds.mesh.controlplane.absence import Absences, Absent
from xds.mesh.controlplane.proxies_service import ProxiesService
from xds.mesh.model.objects import Problem
from xds.protocol.session import Variant
from xds.server import XdsServer
from xds.snapshot import CLUSTER, SECRET

TIMEOUT = 30.0
NOT_SYNCED = [("--not-synced", *words) for words in (("web.shop",), ("--rollout",), ("--watch",))]
MISSING = {"lost.shop": "its pod is not known"}


def node(name: str) -> str:
    return f"sidecar~127.0.0.1~{name}~{name.partition('.')[2]}.svc.cluster.local"


class Mesh:
    """The absent sidecars and the problems that a test sets."""

    def __init__(self) -> None:
        self.absences = Absences()
        self.problems: list[Problem] = []
        self.expiry: datetime | None = None

    def set_absent(self, *names: str, since: float | None = None, elsewhere: bool = False) -> None:
        parts = (name.partition(".") for name in names)
        pods = tuple(Absent(namespace, pod, since) for pod, _, namespace in parts)
        self.absences = Absences(pods, elsewhere)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
async def server(mesh: Mesh) -> AsyncIterator[XdsServer]:
    proxies = OneForAll(world(CDS="a=1 b=1", SDS="s=1"))
    missing = {node(name): why for name, why in MISSING.items()}
    service = ProxiesService(
        lambda subscriber: missing.get(subscriber.node.id, ""),
        expiry_of=lambda _: mesh.expiry,
        absences=lambda: mesh.absences,
        problems=lambda: mesh.problems,
    )
    server = XdsServer(proxies, "127.0.0.1:0", grace=0.2, added=[Introspection([service])])
    # Without capture_logs, structlog prints to the stdout that CliRunner captures.
    with capture_logs():
        await server.start()
        yield server
        await server.stop()


@pytest.fixture
async def channel(server: XdsServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def xds(*words: object, port: int) -> Result:
    arguments = ["status", *map(str, words), "--xds-address", f"127.0.0.1:{port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="xds")


async def synced(channel: grpc.aio.Channel, server: XdsServer, name: str) -> Client:
    client = Client(channel, Variant.DELTA, node=node(name))
    await client.ask(SECRET, "s")
    response = await client.get()
    await client.ask(SECRET, nonce=response.nonce)
    streams = [each for each in server.discovery.streams if each.node.id == node(name)]
    async with asyncio.timeout(TIMEOUT):
        while not all(stream.session.synced for stream in streams):
            await asyncio.sleep(0.01)
    return client


async def rejecting(
    channel: grpc.aio.Channel, server: XdsServer, name: str, error: str = "cluster b is nonsense"
) -> Client:
    client = Client(channel, Variant.DELTA, node=node(name))
    await client.ask(CLUSTER)
    response = await client.get()
    await client.ask(CLUSTER, nonce=response.nonce, error=error)
    [stream] = [each for each in server.discovery.streams if each.node.id == node(name)]
    async with asyncio.timeout(TIMEOUT):
        while not any(status.last_error for status in stream.session.status()):
            await asyncio.sleep(0.01)
    return client


async def test_table_has_a_row_per_proxy(server: XdsServer, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    result = await xds(port=server.port)
    assert (result.exit_code, result.stderr) == (0, "")
    [good], footer = read_table(result.stdout)
    assert footer == "1 synced\n"
    assert [*good] == ["PROXY", "CDS", "EDS", "SDS", "LDS", "RDS", "CERT", "CONNECTED", "STATUS"]
    assert [good[title] for title in ("PROXY", "CDS", "SDS", "CERT")] == ["good.shop", "-", "synced", "-"]
    assert good["STATUS"].startswith("synced ")

    await rejecting(channel, server, "bad.shop")
    waits = Client(channel, Variant.DELTA, node=node("lost.shop"))
    await waits.ask(CLUSTER)
    await waits.get()
    result = await xds(port=server.port)
    assert result.exit_code == 1
    (bad, _, lost), footer = read_table(result.stdout)
    assert footer == "1 synced, 1 waiting, 1 rejected\n"
    assert (bad["PROXY"], bad["CDS"], bad["SDS"]) == ("bad.shop", "rejected", "-")
    assert bad["STATUS"] == "CDS rejected: cluster b is nonsense (from Object ns/b)"
    assert (lost["PROXY"], lost["CDS"].split()[0]) == ("lost.shop", "waiting")
    assert lost["STATUS"].startswith("its pod is not known; CDS waiting ")
    assert "\x1b" not in result.stdout


async def test_not_synced_omits_synced_proxies(server: XdsServer, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    result = await xds("--not-synced", port=server.port)
    assert (result.exit_code, result.stdout) == (0, "\n1 synced\n")
    await rejecting(channel, server, "bad.shop")
    result = await xds("--not-synced", port=server.port)
    [bad], footer = read_table(result.stdout)
    assert (result.exit_code, bad["PROXY"], footer) == (1, "bad.shop", "1 synced, 1 rejected\n")
    result = await xds("--not-synced", "-o", "yaml", port=server.port)
    assert [proxy["pod"] for proxy in yaml.safe_load(result.stdout)["proxies"]] == ["bad"]


async def test_numbers_in_names_are_sorted_by_value(server: XdsServer, channel: grpc.aio.Channel):
    for name in ("s10.shop", "s2.shop", "s1.shop10", "s1.shop9"):
        await synced(channel, server, name)
    rows, _ = read_table((await xds(port=server.port)).stdout)
    assert [row["PROXY"] for row in rows] == ["s2.shop", "s10.shop", "s1.shop9", "s1.shop10"]


async def test_certificate_expiry_is_shown(server: XdsServer, channel: grpc.aio.Channel, mesh: Mesh):
    mesh.expiry = datetime.now(UTC) + timedelta(hours=5, seconds=55)  # Less than a minute is not shown.
    await synced(channel, server, "good.shop")
    [good], _ = read_table((await xds(port=server.port)).stdout)
    assert good["CERT"] == "5h"
    assert "good.shop: certificate expires in 5h\n" in (await xds("good", port=server.port)).stdout
    mesh.expiry = datetime.now(UTC) - timedelta(seconds=1)
    [good], _ = read_table((await xds(port=server.port)).stdout)
    assert good["CERT"] == "expired"


async def test_wide_table_has_more_columns(server: XdsServer, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    header, row = (await xds("-o", "wide", port=server.port)).stdout.splitlines()[:2]
    assert header.split()[8:] == ["ACKED", "RESOURCES", "STREAMS", "AGENT", "STATUS"]
    assert " ago " in row
    assert row[header.index("RESOURCES") :].split()[:3] == ["1/1", "1", "-"]


async def test_one_proxy_is_printed_with_its_resources(server: XdsServer, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    await rejecting(channel, server, "bad.shop")
    for proxy in ("bad.shop", "bad", node("bad.shop")):
        result = await xds(proxy, port=server.port)
        assert result.exit_code == 1
        about, _, header, line, _, _, *resources = result.stdout.splitlines()
        assert about.startswith("bad.shop:")
        assert ", delta ADS from ipv4:127.0.0.1:" in about
        assert header.startswith("PROXY")
        assert line.split(maxsplit=3)[:3] == ["bad.shop", "CDS", "0/2"]
        assert [line.split(maxsplit=2) for line in resources][1] == [
            "CDS",
            "b",
            "rejected, made from Object ns/b",
        ]
    result = await xds("good", port=server.port)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("good.shop")


async def test_json_is_the_service_response(server: XdsServer, channel: grpc.aio.Channel):
    await rejecting(channel, server, "bad.shop")
    result = await xds("-o", "json", port=server.port)
    assert result.exit_code == 1
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["time"].endswith("Z")
    [proxy] = answer["proxies"]
    assert (proxy["pod"], proxy["namespace"], proxy["problem"]) == ("bad", "shop", "")
    [kind] = proxy["streams"][0]["types"]
    assert (kind["state"], kind["typeUrl"], kind["names"]) == ("REJECTED", CLUSTER, 0)
    assert kind["rejection"]["sources"] == ["Object ns/b"]
    assert {each["name"] for each in kind["unsynced"]} == {"a", "b"}


async def test_row_is_one_line_when_piped(server: XdsServer, channel: grpc.aio.Channel):
    name = f"{'long-' * 30}name.shop"
    await rejecting(channel, server, name, f"cluster b is {'nonsense ' * 500}")
    result = await xds(port=server.port)
    _, line, _, _ = result.stdout.splitlines()
    assert line.startswith(f"{name}  rejected  -    -")
    assert "  CDS rejected: cluster b is nonsense nonsense" in line
    assert len(line) > 4000
    assert line.endswith("(from Object ns/b)")


async def test_view_of_one_proxy_limits_its_streams(server: XdsServer, channel: grpc.aio.Channel):
    clients = [Client(channel, Variant.DELTA, node=node("many.shop")) for _ in range(12)]
    for client in clients:
        await client.ask(SECRET, "s")
        await client.get()
    [many], _ = read_table((await xds(port=server.port)).stdout)
    assert (many["PROXY"], many["SDS"].split()[0]) == ("many.shop", "waiting")
    result = await xds("many", port=server.port)
    about, rows, resources = result.stdout.split("\n\n")
    assert about.count(" from ipv4:127.0.0.1:") == 8
    assert about.splitlines()[-1] == "many.shop: 12 streams in total"
    assert len(rows.splitlines()) == 10
    assert rows.splitlines()[-1].split(maxsplit=3) == [
        *("many.shop", "-", "-"),
        "4 more streams, 4 of them not synced; -o json lists all",
    ]
    assert len(resources.splitlines()) == 9
    result = await xds("-o", "json", port=server.port)
    assert len(json.loads(result.stdout)["proxies"][0]["streams"]) == 12


async def test_watch_json_streams_until_the_server_stops(server: XdsServer, channel: grpc.aio.Channel):
    client = await synced(channel, server, "good.shop")
    async with started(
        *(sys.executable, "-u", "-m", "xds", "status", "--watch", "-o", "json"),
        *("--xds-address", f"127.0.0.1:{server.port}"),
        stderr=asyncio.subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        async with asyncio.timeout(3 * TIMEOUT):
            first = json.loads(await process.stdout.readline())
            assert [each["pod"] for each in first["proxies"]] == ["good"]
            client.call.cancel()
            while not (gone := json.loads(await process.stdout.readline())["gone"]):
                pass
            assert gone == [node("good.shop")]
            await server.stop()
            assert await process.wait() == 3
            error = (await process.stderr.read()).decode()
            assert error == f"xds: the control plane at 127.0.0.1:{server.port} closed the stream\n"


async def test_watch_table_exits_with_0_on_ctrl_c(server: XdsServer, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    async with started(
        *(sys.executable, "-u", "-m", "xds", "status", "-w", "--xds-address", f"127.0.0.1:{server.port}"),
        stderr=asyncio.subprocess.PIPE,
    ) as process:
        assert process.stdout
        async with asyncio.timeout(3 * TIMEOUT):
            assert (await process.stdout.readline()).startswith(b"PROXY ")
            assert (await process.stdout.readline()).startswith(b"good.shop ")
            await rejecting(channel, server, "bad.shop")
            line = b""
            while b"rejected: cluster b is nonsense" not in line:
                line = await process.stdout.readline()
                assert line.startswith((b"bad.shop ", b"PROXY")), "a changed row, or a wider column"
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
            assert (process.returncode, errors) == (0, b"")


async def test_watch_prints_only_changed_rows(server: XdsServer, channel: grpc.aio.Channel):
    client = await synced(channel, server, "good.shop")
    async with started(
        *(sys.executable, "-u", "-m", "xds", "status", "-w", "--xds-address", f"127.0.0.1:{server.port}"),
    ) as process:
        assert process.stdout
        async with asyncio.timeout(3 * TIMEOUT):
            header = (await process.stdout.readline()).decode()
            lines = [(await process.stdout.readline()).decode()]
            await client.ask(CLUSTER)
            response = await client.get()
            await client.ask(CLUSTER, nonce=response.nonce)
            while not lines[-1].startswith("good.shop  synced"):
                line = (await process.stdout.readline()).decode()
                # The column of the waiting type may have become wider.
                lines += [line] if not line.startswith("PROXY") else []
            await synced(channel, server, "longer-than-good.shop")
            again = [(await process.stdout.readline()).decode() for _ in range(2)]
            assert again[0].split() == header.split(), "the columns are wider, and good.shop has not changed"
            assert again[1].startswith("longer-than-good.shop  -")
            client.call.cancel()
            # The state of the other sidecar may have been printed before its ACK.
            while (line := (await process.stdout.readline()).decode()).startswith("longer-than-good.shop "):
                pass
            assert (line.split()[0], line.split()[-1]) == ("good.shop", "disconnected")


async def test_watch_prints_new_absent_sidecars(server: XdsServer, mesh: Mesh, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    mesh.set_absent("dead.shop")
    async with started(
        *(sys.executable, "-u", "-m", "xds", "status", "-w", "--xds-address", f"127.0.0.1:{server.port}"),
    ) as process:
        assert process.stdout
        async with asyncio.timeout(3 * TIMEOUT):
            lines = [(await process.stdout.readline()).decode() for _ in range(3)]
            assert lines[2].split(maxsplit=8) == ["dead.shop", *("-" * 7), "not connected (never)\n"]
            mesh.set_absent("dead.shop", "web.shop")
            line = (await process.stdout.readline()).decode()
            assert line.split(maxsplit=1)[0] == "web.shop", "only new ones"


async def test_no_connected_proxy_exits_with_2(server: XdsServer):
    result = await xds(port=server.port)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"xds: no proxy is connected to 127.0.0.1:{server.port}: nothing was checked\n"
    result = await xds("-o", "json", port=server.port)
    assert (result.exit_code, json.loads(result.stdout)["proxies"]) == (2, [])
    result = await xds("-n", "shop", port=server.port)
    assert result.exit_code == 2
    assert "no proxy of namespace shop is connected" in result.stderr
    result = await xds("web.shop", port=server.port)
    assert result.exit_code == 2
    assert "proxy web.shop not found: no proxy is connected" in result.stderr


async def test_absent_sidecar_exits_with_1(server: XdsServer, mesh: Mesh, channel: grpc.aio.Channel):
    await synced(channel, server, "good.shop")
    assert (await xds(port=server.port)).exit_code == 0
    mesh.set_absent("dead.shop", since=asyncio.get_running_loop().time() - 7200)  # Seconds are not shown.
    result = await xds(port=server.port)
    assert (result.exit_code, result.stderr) == (1, "")
    (good, dead), footer = read_table(result.stdout)
    assert (good["PROXY"], footer) == ("good.shop", "1 synced, 1 not connected\n")
    assert (dead["PROXY"], dead["CDS"], dead["STATUS"]) == ("dead.shop", "-", "not connected (2h)")
    for words in (("dead",), ("dead.shop",), ("-n", "shop")):
        result = await xds(*words, port=server.port)
        assert result.exit_code == 1
        assert "not connected (2h)" in result.stdout
    assert (await xds("good", port=server.port)).exit_code == 0
    assert "proxy deaf.shop not found (POD.NAMESPACE); did you mean dead.shop" in (
        (await xds("deaf.shop", port=server.port)).stderr
    )
    result = await xds("-n", "bank", port=server.port)
    assert (result.exit_code, result.stdout) == (2, "")
    result = await xds("-o", "json", port=server.port)
    assert result.exit_code == 1
    found = json.loads(result.stdout)["notConnected"]
    assert (found["total"], found["pods"][0]["pod"], found["mayBeOnOtherReplica"]) == (1, "dead", False)


async def test_only_absent_sidecars_exits_with_1(server: XdsServer, mesh: Mesh):
    mesh.set_absent("web-1.shop", "web-2.shop")
    result = await xds(port=server.port)
    assert (result.exit_code, result.stderr) == (1, "")
    rows, footer = read_table(result.stdout)
    assert [row["STATUS"] for row in rows] == ["not connected (never)"] * 2
    assert footer == "2 not connected\n"
    result = await xds("web", port=server.port)
    assert result.exit_code == 2
    assert "web is ambiguous: it matches web-1.shop, web-2.shop" in result.stderr


async def test_sidecars_of_another_replica_do_not_fail(
    server: XdsServer, mesh: Mesh, channel: grpc.aio.Channel
):
    mesh.set_absent("web-1.shop", "web-2.shop", elsewhere=True)
    result = await xds(port=server.port)
    assert (result.exit_code, result.stdout) == (2, ""), "nothing was checked"
    assert "nothing was checked" in result.stderr
    await synced(channel, server, "web-3.shop")
    result = await xds(port=server.port)
    assert result.exit_code == 0
    assert read_table(result.stdout)[1] == "1 synced\n"
    assert result.stderr == (
        "2 sidecars are not connected to this replica; other replicas may serve them (-o json lists them)\n"
    )
    assert (await xds("web", port=server.port)).exit_code == 0, "the only one that is here"
    result = await xds("web-1", port=server.port)
    assert result.exit_code == 2
    assert "not connected here (never)" in result.stdout


async def test_many_absent_sidecars_are_counted(server: XdsServer, mesh: Mesh):
    mesh.set_absent(*(f"web-{n}.shop" for n in range(1500)))
    result = await xds(port=server.port)
    assert result.exit_code == 1
    rows, footer = read_table(result.stdout)
    assert (len(rows), footer) == (1000, "1500 not connected\n")
    assert result.stderr == "500 more sidecars are not connected\n"


async def test_problems_do_not_change_the_exit_status(
    server: XdsServer, mesh: Mesh, channel: grpc.aio.Channel
):
    await synced(channel, server, "good.shop")
    mesh.problems = [
        Problem(where="m/a.yaml:3", what="is\x1b wrong", hint="mend it"),
        Problem(where="m/a.yaml:4", what="was passed over", notice=True),
        *(Problem(where=f"Service shop/s{n}", what="is wrong") for n in range(200)),
    ]
    result = await xds(port=server.port)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[0] == "m/a.yaml:3: problem: is\\x1b wrong (mend it)"
    assert len(lines) == 101
    assert lines[-1] == "... and 101 more problems"
    assert (await xds("good", port=server.port)).stderr == ""


async def test_unknown_or_ambiguous_proxy_exits_with_2(server: XdsServer, channel: grpc.aio.Channel):
    for name in ("web-1.shop", "web-2.shop", "db.bank"):
        await synced(channel, server, name)
    result = await xds("webb.shop", port=server.port)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "proxy webb.shop not found (POD.NAMESPACE); did you mean web-" in result.stderr
    result = await xds("web", port=server.port)
    assert result.exit_code == 2
    assert "web is ambiguous: it matches web-1.shop, web-2.shop" in result.stderr
    result = await xds("db", "-n", "shop", port=server.port)
    assert result.exit_code == 2


async def test_unreachable_control_plane_exits_with_3():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = await xds(port=port)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"cannot connect to a control plane at 127.0.0.1:{port}: start `xds serve`" in result.stderr
    assert result.stderr.count("\n") == 1


async def test_server_without_the_service_exits_with_3():
    server = XdsServer(OneForAll(), "127.0.0.1:0", grace=0.2)
    await server.start()
    try:
        result = await xds(port=server.port)
        assert result.exit_code == 3
        assert (
            f"the server at 127.0.0.1:{server.port} does not implement xds.mesh.v1.Proxies" in result.stderr
        )
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "words", [("--xds-address", "x"), ("-o", "xml"), ("a", "b"), ("",), ("-n", ""), *NOT_SYNCED]
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...]):
    result = CliRunner().invoke(app, ["status", *words], prog_name="xds")
    assert result.exit_code == 2


def test_help_documents_the_exit_status():
    result = CliRunner().invoke(app, ["status", "--help"], prog_name="xds")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "Exit status: 0 all sidecars are synced, 1 a sidecar is not synced" in text
    assert not set(result.stdout) & set("`\x1b│╭"), "no markup, no frames"
