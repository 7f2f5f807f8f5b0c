"""Query a server from loopback and from other addresses. Run as root, in a network namespace."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xds.introspect.guard import REFUSAL

GRPCURL = Path(sys.executable).with_name("grpcurl")
PORT = 15010
LOCAL = (f"127.0.0.1:{PORT}", f"127.9.9.9:{PORT}", f"[::1]:{PORT}")
BEYOND = (f"10.1.2.3:{PORT}", f"[fd00::1]:{PORT}")
WATCH = "xds.mesh.v1.Proxies/Watch"
GUARDED = (
    "grpc.channelz.v1.Channelz/GetServers",
    "grpc.channelz.v1.Channelz/GetTopChannels",
    "envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
    "envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus",
    "xds.mesh.v1.Objects/ListProblems",
    "xds.mesh.v1.Proxies/List",
    "xds.mesh.v1.Rollouts/List",
    "xds.mesh.v1.Policies/Explain",
    "xds.mesh.v1.Reports/Create",
    WATCH,
    "xds.mesh.v1.Proxies/List",
)
HEALTH = "grpc.health.v1.Health/Check"
FETCH = "envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
NODE = '{"node": {"id": "sidecar~127.9.0.1~web.shop~shop.svc.cluster.local"}}'
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {security.istio.io/tlsMode: istio}}
status: {podIP: 10.1.2.3}
"""


def grpcurl(target: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [GRPCURL, "-plaintext", "-max-time", "20", *arguments[:-1], target, arguments[-1]],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def described(folder: Path) -> tuple[str, ...]:
    """Make a descriptor set of the services, for callers that reflection does not answer."""
    found = folder / "protoset"
    status, output = grpcurl(LOCAL[0], "-protoset-out", str(found), "describe")
    assert status == 0, output
    return ("-protoset", str(found))


def main() -> None:
    for command in (
        "ip link set lo up",
        "ip address add 10.1.2.3/32 dev lo",
        "ip -6 address add fd00::1/128 dev lo",
    ):
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as folder:
        manifests = Path(folder, "m")
        manifests.mkdir()
        (manifests / "pod.yaml").write_text(POD)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "xds", "serve", "--manifests", manifests, "--insecure-xds"),
                *("--xds-address", f"[::]:{PORT}", "--admin-address", "127.0.0.1:0"),
            ]
        )
        try:
            end = time.monotonic() + 40
            while not listens():
                assert time.monotonic() < end
                assert server.poll() is None
                time.sleep(0.1)
            check(described(Path(folder)))
        finally:
            server.kill()
            server.wait()


def check(files: tuple[str, ...]) -> None:
    for target in LOCAL:
        status, output = grpcurl(target, "list")
        assert status == 0, output
    for method in set(GUARDED) - {WATCH}:  # It does not end on its own.
        status, output = grpcurl(LOCAL[0], *files, "-d", "{}", method)
        assert status in {0, 64 + 5}, output  # NOT_FOUND: the request of Explain names no pod.
    for target in BEYOND:
        status, output = grpcurl(target, "list")
        assert status, output
        refusal = REFUSAL.split("{", maxsplit=1)[0]
        assert refusal in output, output
        for method in GUARDED:
            status, output = grpcurl(target, *files, "-d", "{}", method)
            assert status == 64 + 7, output
            assert "PermissionDenied" in output
            assert refusal in output
            assert target.rpartition(":")[0].strip("[]") in output
    for target in (*LOCAL, *BEYOND):
        assert "SERVING" in grpcurl(target, *files, HEALTH)[1]
        status, output = grpcurl(target, *files, "-d", NODE, FETCH)
        assert "versionInfo" in output, output
    print("as it should be")


main()
