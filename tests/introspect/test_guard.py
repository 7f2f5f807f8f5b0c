"""Authorization of callers by address."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from xds.introspect.guard import GuardedServer, is_local

IN_A_NAMESPACE = Path(__file__).with_name("beyond_loopback.py")


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:127.0.0.1:4711",
        "ipv4:127.20.1.1:4711",
        "ipv6:[::1]:4711",
        "ipv6:%5B::1%5D:4711",
        "ipv6:%5B::ffff:127.0.0.1%5D:4711",
        "unix:",
        "unix:/run/xds.sock",
        "unix-abstract:xds",
    ],
)
def test_callers_of_this_machine_are_local(peer):
    assert is_local(peer)


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:10.1.2.3:4711",
        "ipv4:128.0.0.1:4711",
        "ipv4:0.0.0.0:4711",
        "ipv4:127.0.0.6:4711",
        "ipv6:%5B2001:db8::1%5D:4711",
        "ipv6:%5B::ffff:10.1.2.3%5D:4711",
        "ipv6:%5Bfe80::1%25lo%5D:4711",
        "ipv4:localhost:4711",
        "unknown:127.0.0.1",
        "127.0.0.1:4711",
        "vsock:2:4711",
        "",
    ],
)
def test_other_peers_are_not_local(peer):
    assert not is_local(peer)


async def test_a_method_that_would_run_in_a_thread_is_refused():
    class Blocking(health_pb2_grpc.HealthServicer):
        pass

    with pytest.raises(TypeError, match="is not asynchronous"):
        health_pb2_grpc.add_HealthServicer_to_server(Blocking(), GuardedServer(grpc.aio.server()))


async def test_a_service_without_one_of_its_methods_is_refused():
    async def check(*_):
        """Answer nothing."""

    with pytest.raises(KeyError, match="List"):
        GuardedServer(grpc.aio.server()).add_service("grpc.health.v1.Health", Check=check, Watch=check)


@pytest.mark.netns
def test_from_another_address_only_discovery_and_health_answer():
    """Query a server on all addresses with grpcurl, from loopback and from another address."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, IN_A_NAMESPACE],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "as it should be"
