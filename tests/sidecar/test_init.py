"""`xds init` in real network namespaces: where connections go once the rules are active."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing

import pytest
import pytest_asyncio

from tests.sidecar.pods import AS_SIDECAR, as_user
from tests.support.cluster import Cluster, ClusterPod
from tests.support.places import Namespace
from tests.support.tcp import LineApp
from xds.mesh.envoy.names import PASSTHROUGH_SOURCES
from xds.mesh.inject.containers import PROXY_GROUP as INJECTED_GROUP
from xds.mesh.model.families import LOCALHOST, Family
from xds.mesh.model.objects import ADMIN_PORT
from xds.mesh.sidecar.settings import PROXY_ID

pytestmark = pytest.mark.netns

OTHERS = "*nat\n-A PREROUTING -p udp --dport 53 -j RETURN\n-A OUTPUT -p udp --dport 53 -j RETURN\nCOMMIT\n"


def init(place: Namespace, *flags: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `xds init` as an init container does."""
    return subprocess.run(
        place.command(*before, sys.executable, "-m", "xds", "init", *flags),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def answer_on_terminal(place: Namespace, answer: str, *flags: str) -> int:
    """Run `xds init` with a terminal on which somebody answers; return the exit status."""
    terminal, end = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    command = place.command(sys.executable, "-m", "xds", "init", *flags)
    try:
        return subprocess.run(command, stdin=end, capture_output=True, check=False, timeout=120).returncode
    finally:
        os.close(terminal)
        os.close(end)


def assert_success(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def rules(place: Namespace, tool: str = "iptables-save") -> list[str]:
    """Return all rules and chains of the nat table, without comments, which contain the time."""
    return [line for line in place.run(tool, "-t", "nat").splitlines() if not line.startswith("#")]


class Pods:
    """A pod with an application and listeners in place of the sidecar, and another pod."""

    def __init__(self, cluster: Cluster, family: Family) -> None:
        self.family = family
        self.localhost = LOCALHOST[family]
        self.pod = cluster.pod("web", "ns", sidecar=False, families=[family])
        self.other = cluster.pod("other", "ns", sidecar=False, families=[family])

    def apps(self) -> list[LineApp]:
        listeners = [(15001, "outbound"), (15006, "inbound"), (15020, "probes"), (8080, "app"), (8081, "app")]
        return [
            *(LineApp(name, port, place=self.pod.place, address="::") for port, name in listeners),
            *(LineApp("other", port, place=self.other.place, address="::") for port in (8080, 8081)),
        ]

    async def reached(self, client: ClusterPod, server: ClusterPod | str, port: int) -> str:
        """Return the name of the application that answers a connection."""
        address = server if isinstance(server, str) else server.address
        async with client.client.tcp(address, port) as conversation:
            return (await conversation.ask("hello")).partition(":")[0]

    async def comes(self, port: int) -> str:
        return await self.reached(self.other, self.pod, port)

    async def leaves(self, port: int) -> str:
        return await self.reached(self.pod, self.other, port)

    async def leaves_as(self, user: tuple[str, ...], address: str, *, source: str = "") -> str:
        """Return the name of the application that answers a process in the pod that runs as another user."""
        # Only a process, not a thread, can run as another user.
        program = (
            "import socket, sys; s = socket.create_connection((sys.argv[1], 8080), 30, (sys.argv[2], 0));"
            "s.sendall(b'hello\\n'); print(s.makefile().readline().partition(':')[0])"
        )
        command = (*user, sys.executable, "-c", program, address, source)
        return (await asyncio.to_thread(self.pod.place.run, *command)).strip()


@pytest_asyncio.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
async def pods(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Pods]:
    pods = Pods(cluster, request.param)
    async with AsyncExitStack() as stack:
        for app in pods.apps():
            await stack.enter_async_context(app)
        yield pods


class TestRedirection:
    async def test_traffic_is_redirected_until_undo(self, pods):
        assert [await pods.comes(8080), await pods.leaves(8080)] == ["app", "other"]

        assert_success(init(pods.pod.place))
        assert [await pods.comes(8080), await pods.comes(8081)] == ["inbound", "inbound"]
        assert await pods.comes(15020) == "probes"
        assert await pods.leaves(8080) == "outbound"

        assert_success(init(pods.pod.place, "--undo"))
        assert [await pods.comes(8080), await pods.leaves(8080)] == ["app", "other"]

    async def test_people_are_asked_first(self, pods):
        assert answer_on_terminal(pods.pod.place, "n") == 1
        assert await pods.leaves(8080) == "other"
        assert answer_on_terminal(pods.pod.place, "y") == 0
        assert await pods.leaves(8080) == "outbound"
        assert answer_on_terminal(pods.pod.place, "", "--undo") == 0
        assert await pods.leaves(8080) == "other"
        assert answer_on_terminal(pods.pod.place, "", "--yes") == 0
        assert await pods.leaves(8080) == "outbound"

    async def test_local_traffic_is_not_redirected(self, pods):
        assert_success(init(pods.pod.place))

        for address in (pods.pod.address, pods.localhost):
            assert await pods.reached(pods.pod, address, 8080) == "app"

    async def test_sidecar_traffic_bypasses_redirection(self, pods):
        assert_success(init(pods.pod.place))

        assert await pods.leaves_as(AS_SIDECAR, pods.other.address) == "other"
        assert await pods.leaves_as(AS_SIDECAR, pods.pod.address) == "inbound"
        assert await pods.leaves_as(AS_SIDECAR, pods.localhost) == "app"
        source = PASSTHROUGH_SOURCES[pods.family]
        assert await pods.leaves_as(AS_SIDECAR, pods.pod.address, source=source) == "app"

    @pytest.mark.parametrize(("uid", "gid"), [(1337, 0), (1337, 1000), (0, 1337), (1000, 1337)])
    async def test_application_with_the_sidecar_uid_or_gid_is_redirected(self, pods, uid, gid):
        assert_success(init(pods.pod.place))
        application = as_user(uid, gid)

        assert await pods.leaves_as(application, pods.other.address) == "outbound"
        for address in (pods.pod.address, pods.localhost):
            assert await pods.leaves_as(application, address) == "app"

    async def test_injected_group_identifies_the_sidecar(self, pods):
        # Injection gives the sidecar a group that no image uses by chance.
        assert_success(init(pods.pod.place, "-u", str(PROXY_ID), "-g", str(INJECTED_GROUP)))

        assert await pods.leaves_as(as_user(PROXY_ID, PROXY_ID), pods.other.address) == "outbound"
        assert await pods.leaves_as(as_user(PROXY_ID, INJECTED_GROUP), pods.other.address) == "other"

    @pytest.mark.parametrize("flags", [(), ("-d", ""), ("-b", "15000,8080")])
    async def test_admin_port_is_never_redirected(self, pods, flags):
        assert_success(init(pods.pod.place, *flags))

        # It listens on loopback, as Envoy's does. The sidecar gets no connection that it could forward there.
        async with LineApp("admin", ADMIN_PORT, place=pods.pod.place, address=pods.localhost):
            with pytest.raises(ConnectionRefusedError):
                await pods.comes(ADMIN_PORT)
            assert await pods.comes(8080) == "inbound"

    @pytest.mark.parametrize(
        ("flags", "comes", "leaves"),
        [
            (["-b", "8080"], ["inbound", "app"], ["outbound", "outbound"]),
            (["-b", ""], ["app", "app"], ["outbound", "outbound"]),
            (["-d", "15020,8081"], ["inbound", "app"], ["outbound", "outbound"]),
            (["-o", "8081"], ["inbound", "inbound"], ["outbound", "other"]),
            (["-x", "10.77.0.0/16"], ["inbound", "inbound"], ["other", "other"]),
            (["-i", "10.77.0.0/16"], ["inbound", "inbound"], ["outbound", "outbound"]),
            (["-i", "10.96.0.0/16"], ["inbound", "inbound"], ["other", "other"]),
            (["-i", "", "-q", "8081"], ["inbound", "inbound"], ["other", "outbound"]),
            (["-c", "eth0"], ["app", "app"], ["other", "other"]),
            (["-p", "15006", "-z", "15001"], ["outbound", "outbound"], ["inbound", "inbound"]),
            (
                ["--istio-inbound-ports=8080", "--istio-local-outbound-ports-exclude=8080"],
                ["inbound", "app"], ["other", "outbound"],
            ),
        ],
    )  # fmt: skip
    async def test_flags_limit_redirection(self, pods, flags, comes, leaves):
        if pods.family == 6:
            flags = [flag.replace("10.77.0.0/16", "fd77::/64") for flag in flags]
        assert_success(init(pods.pod.place, *flags))

        assert [await pods.comes(8080), await pods.comes(8081)] == comes
        assert [await pods.leaves(8080), await pods.leaves(8081)] == leaves


class TestRules:
    @pytest.fixture
    def place(self, cluster: Cluster) -> Namespace:
        place = cluster.pod("web", "ns", sidecar=False).place
        place.run("iptables-restore", "--noflush", stdin=OTHERS)
        return place

    def test_init_is_idempotent(self, place):
        assert_success(init(place))
        once = rules(place)
        assert_success(init(place))

        assert rules(place) == once
        assert len([line for line in once if line.startswith("-A OUTPUT")]) == 2

    def test_second_init_replaces_the_rules(self, place):
        assert_success(init(place, "-b", "80"))
        assert_success(init(place, "-b", "81"))

        assert [line for line in rules(place) if "--dport 8" in line] == [
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 81 -j ISTIO_IN_REDIRECT"
        ]

    def test_undo_keeps_foreign_rules_and_is_idempotent(self, place):
        before = rules(place)
        assert_success(init(place))
        assert rules(place) != before

        assert_success(init(place, "--undo"))
        assert_success(init(place, "--undo"))

        assert rules(place) == before

    def test_dry_run_only_prints_the_rules(self, place):
        before = rules(place)

        printed = init(place, "--dry-run", "-o", "5432")

        assert printed.returncode == 0
        assert rules(place) == before
        place.run("iptables-restore", "--noflush", stdin=printed.stdout)
        by_hand = rules(place)
        assert_success(init(place, "-o", "5432"))
        assert sorted(rules(place)) == sorted(by_hand)

    def test_mode_none_changes_nothing(self, place):
        before = rules(place)

        done = init(place, "-m", "NONE")

        assert (done.returncode, done.stderr) == (0, "interception mode is NONE: no traffic is redirected\n")
        assert rules(place) == before

    def test_failed_init_changes_nothing(self, place):
        before = rules(place)

        done = init(place, "-u", str(2**40))

        assert done.returncode == 1
        assert "iptables-restore: exit status" in done.stderr
        assert rules(place) == before


class TestIpv6:
    @pytest.fixture
    def places(self, cluster: Cluster) -> tuple[Namespace, Namespace]:
        """Two pods with a link that supports IPv6."""
        pod, other = (cluster.pod(name, "ns", sidecar=False).place for name in ("web", "other"))
        other.run("ip", "link", "add", "v6", "type", "veth", "peer", "name", "v6", "netns", pod.name)
        for number, place in enumerate((pod, other), 1):
            place.run("ip", "addr", "add", f"fd77::{number}/64", "dev", "v6", "nodad")
            place.run("ip", "link", "set", "v6", "up")
        return pod, other

    def connects(self, places: tuple[Namespace, Namespace]) -> bool:
        """Whether the other pod reaches the application over IPv6."""
        pod, other = places
        with pod.entered():
            listener = socket.create_server(("fd77::1", 8080), family=socket.AF_INET6)
        with closing(listener), other.entered():
            try:
                socket.create_connection(("fd77::1", 8080), timeout=30).close()
            except ConnectionRefusedError:
                return False
            return True

    def test_ipv6_does_not_bypass_the_sidecar(self, places):
        assert self.connects(places)
        assert_success(init(places[0]))
        assert not self.connects(places)

        once = rules(places[0], "ip6tables-save")
        assert_success(init(places[0]))
        assert rules(places[0], "ip6tables-save") == once

        assert_success(init(places[0], "--undo"))
        assert self.connects(places)
        assert "::6/128" not in places[0].run("ip", "addr", "show", "dev", "lo")

    def test_missing_ip6tables_is_an_error_with_ipv6_addresses(self, places, tmp_path):
        for tool in ("iptables-save", "iptables-restore"):
            (tmp_path / tool).symlink_to(shutil.which(tool) or "")

        done = init(places[0], before=("env", f"PATH={tmp_path}"))

        assert done.returncode == 1
        message = "has IPv6 addresses, whose traffic would bypass the sidecar: ip6tables-restore is missing"
        assert message in done.stderr

    @pytest.mark.parametrize("disabled", ["0", "1"])
    def test_later_ipv6_address_does_not_bypass_the_sidecar(self, places, disabled):
        pod, _ = places
        pod.run("ip", "-6", "addr", "flush", "dev", "v6")
        pod.run("ip", "-6", "addr", "flush", "dev", "eth0")
        pod.sysctl("net.ipv6.conf.all.disable_ipv6", disabled)
        assert_success(init(pod))

        pod.sysctl("net.ipv6.conf.all.disable_ipv6", "0")
        pod.run("ip", "addr", "add", "fd77::1/64", "dev", "v6", "nodad")
        assert not self.connects(places)

    def test_missing_ip6tables_is_a_warning_without_addresses(self, cluster, tmp_path):
        place = cluster.pod("web", "ns", sidecar=False).place
        place.run("ip", "-6", "addr", "flush", "dev", "eth0")
        for tool in ("iptables-save", "iptables-restore"):
            (tmp_path / tool).symlink_to(shutil.which(tool) or "")
        env = ("env", f"PATH={tmp_path}")

        done = init(place, before=env)

        assert done.returncode == 0
        assert "no global IPv6 address now" in done.stderr
        assert_success(init(place, "--undo", before=env))

    def test_disabled_ipv6_needs_no_ip6tables(self, cluster, tmp_path):
        place = cluster.pod("web", "ns", sidecar=False).place
        place.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        for tool in ("iptables-save", "iptables-restore"):
            (tmp_path / tool).symlink_to(shutil.which(tool) or "")

        assert_success(init(place, before=("env", f"PATH={tmp_path}")))


class TestMissingRequirements:
    @pytest.fixture
    def place(self, cluster: Cluster) -> Namespace:
        return cluster.pod("web", "ns", sidecar=False).place

    def test_missing_iptables_is_an_error(self, place):
        done = init(place, before=("env", "PATH=/nowhere"))

        assert done.returncode == 1
        assert done.stderr.startswith(
            "xds: iptables-restore is missing (Debian, Ubuntu: apt-get install iptables;"
        )

    def test_missing_capability_is_an_error(self, place):
        done = init(place, before=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))

        assert done.returncode == 1
        assert "needs the capability NET_ADMIN (securityContext.capabilities.add" in done.stderr

    def test_user_other_than_root_is_an_error(self, place):
        as_nobody = ("setpriv", "--reuid=65534", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")

        done = init(place, before=as_nobody)

        assert (done.returncode, done.stderr) == (1, "xds: must run as root (securityContext.runAsUser: 0)\n")

    def test_working_iptables_variant_is_used(self, place, tmp_path):
        if not shutil.which("iptables-legacy-restore"):
            pytest.skip("needs iptables-legacy-restore beside iptables-restore")
        place.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        for tool in ("iptables-save", "iptables-restore"):
            (tmp_path / tool).write_text("#!/bin/sh\necho this kernel has no nf_tables >&2\nexit 1\n")
            (tmp_path / tool).chmod(0o755)
            legacy = tool.replace("-", "-legacy-")
            (tmp_path / legacy).symlink_to(shutil.which(legacy) or "")
        env = ("env", f"PATH={tmp_path}")

        assert_success(init(place, before=env))
        assert "-A OUTPUT -p tcp -j ISTIO_OUTPUT" in rules(place, "iptables-legacy-save")
        assert not [line for line in rules(place, "iptables-nft-save") if "ISTIO" in line]

        assert_success(init(place, before=env))
        assert len([line for line in rules(place, "iptables-legacy-save") if "-A OUTPUT" in line]) == 1
        done = init(place, "--undo", before=env)
        assert done.returncode == 0, done.stderr
        assert not [line for line in rules(place, "iptables-legacy-save") if "ISTIO" in line]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-b", "http"], "'-b': 'http' is not a port"),
        (["-x", "10.0.0.1/33"], "'-x': '10.0.0.1/33' does not appear to be"),
        (["-x", "*"], "'-x': '*' is not allowed"),
        (["-m", "TPROXY"], "'-m': 'TPROXY' is not REDIRECT or NONE"),
    ],
)
def test_invalid_flag_value_is_named(flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "xds", "init", "-n", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
