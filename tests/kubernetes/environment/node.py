"""Nodes: containerd, kubelet and kube-proxy, in network, mount and process namespaces of their own.

Everything that a node has started ends with it: its first process ends when the test's process does, and the
kernel then ends all processes of the namespace.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.compose.environment import MissingError
from tests.kubernetes.environment import binaries
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.environment.go_programs import CONTAINERD, COREDNS, CTR, NODE_PROGRAMS, SHIM
from tests.kubernetes.environment.images import PLUGINS, SOCKET, Images, configuration, prepared
from tests.kubernetes.environment.network import GATEWAY, IPV4, IPV6, Network
from tests.support.places import why_no_namespaces
from xds.demo.processes import DemoError, Processes, Running

DOMAIN = "cluster.local"
"""Domain of the cluster's DNS."""

CGROUPS = Path("/sys/fs/cgroup")
# The node has folders and settings of the kernel of its own: containerd, CNI plug-ins and kubelet use fixed
# paths there, and kubelet changes the settings.
_FIRST_PROCESS = """
mount -t tmpfs tmpfs /run && mkdir -p /run/netns &&
mount -t tmpfs tmpfs /var/log &&
mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni &&
for setting in kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes \\
    vm/overcommit_memory vm/panic_on_oom; do
  mkdir -p $(dirname /run/sys/$setting) && cat /proc/sys/$setting > /run/sys/$setting &&
  mount --bind /run/sys/$setting /proc/sys/$setting || exit
done
mount --make-rshared / && echo ready && read
"""
_COREFILE = """
.:53 {{
  bind {address}
  kubernetes {domain} {{
    kubeconfig {kubeconfig}
    ttl 1
  }}
  loop
}}
"""
_START = 120
"""Time limit for a start or an end on a busy machine, in seconds."""
_CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}
_PROGRAMS = ("buildah", "runc", "nft", "conntrack", "nsenter", "unshare")


def why_no_nodes() -> str:
    """Return what is missing for nodes, and how to get it; empty if nothing is missing."""
    if reason := why_no_namespaces():
        return reason
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not (PLUGINS / "bridge").exists():
        missing.append(str(PLUGINS / "bridge"))
    if missing:
        return (
            f"needs {', '.join(missing)} (Debian: apt-get install buildah runc "
            "containernetworking-plugins nftables conntrack util-linux)"
        )
    if not all(os.access(hierarchy, os.W_OK) for hierarchy in _hierarchies()):
        return f"needs cgroups: {CGROUPS} is read-only"
    enabled = CGROUPS / "cgroup.subtree_control"
    if enabled.exists() and (lacking := _CONTROLLERS - {*enabled.read_text().split()}):
        return f"needs the cgroup controllers {', '.join(sorted(lacking))} in {enabled}"
    if unbuilt := [program.name for program in NODE_PROGRAMS if not program.path.exists()]:
        return f"needs {', '.join(unbuilt)}: `make kubernetes` builds them with Go"
    absent = [name for name in binaries.NODE_NAMES if name not in binaries.find()]
    if absent:
        return f"needs {', '.join(absent)}, which KUBEBUILDER_ASSETS has not: unset it and `make kubernetes`"
    return ""


class Node:
    """A node that has joined a control plane. Enter it in the main thread, once the API server is ready."""

    def __init__(self, number: int, network: Network, plane: ControlPlane, images: Images) -> None:
        self.name = f"node{number}"
        self._number, self._network, self._plane, self._images = number, network, plane, images
        self.folder = plane.folder / self.name
        self._cgroup = f"{network.name}-{self.name}"
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir()
            self.place, self.addresses, self._pods = self._network.attached(self._number)
            stack.callback(self._remove_cgroups)
            for hierarchy in _hierarchies():
                (hierarchy / self._cgroup).mkdir()
            self._containerd_root = self._images.copied()
            stack.callback(shutil.rmtree, self._containerd_root)
            self._start_first_process()
            stack.callback(self._end)
            self._processes = stack.enter_context(Processes(self.folder))
            self._start("containerd", str(CONTAINERD.path), f"--config={self._containerd_file()}")
            self._processes.wait_for("containerd", self._why_no_containerd)
            self.start_kubelet()
            self._start(
                "kube-proxy",
                str(binaries.find()["kube-proxy"]),
                f"--kubeconfig={self._kubeconfig('system:kube-proxy')}",
                f"--hostname-override={self.name}",
                "--proxy-mode=nftables",
                f"--cluster-cidr={','.join(str(version.pods) for version in self._network.versions)}",
                "--conntrack-max-per-core=0",
                "--nodeport-addresses=primary",
            )
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def start_kubelet(self) -> None:
        """Start the kubelet, also after it was stopped: containers keep running without it."""
        self.kubelet = self._start(
            "kubelet",
            str(binaries.find()["kubelet"]),
            f"--config={self._kubelet_file()}",
            f"--kubeconfig={self._kubeconfig(f'system:node:{self.name}', 'system:nodes')}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--node-ip={','.join(self.addresses)}",
            f"--hostname-override={self.name}",
        )

    def stop_kubelet(self) -> None:
        """Kill the kubelet, and wait until it has ended."""
        kubelet = os.pidfd_open(_child(self.kubelet.process.pid))
        self.kubelet.process.kill()
        _wait_for_end(kubelet)
        self._processes.stop(self.kubelet)

    def check(self) -> None:
        """Raise DemoError with the end of the log if a process of the node has ended."""
        self._processes.check()

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` in the namespaces of the node."""
        enter = ("/usr/bin/nsenter", f"--target={self._first}", "--mount", "--pid", "--net")
        return [*enter, "setpriv", "--pdeathsig=KILL", "--", *argv]

    def _start_first_process(self) -> None:
        self._outer = subprocess.Popen(
            [
                *("nsenter", f"--net={self.place.file}", "unshare", "--mount", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "--propagation=private", "bash", "-c", _FIRST_PROCESS),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._outer.stdout
        assert self._outer.stdout.readline() == b"ready\n", "the node's first process could not start"
        self._first = _child(self._outer.pid)
        self._first_descriptor = os.pidfd_open(self._first)

    def _end(self) -> None:
        """End all processes of the node."""
        self._outer.kill()
        self._outer.wait()
        _wait_for_end(self._first_descriptor)
        for pipe in (self._outer.stdin, self._outer.stdout):
            assert pipe
            pipe.close()

    def _start(self, name: str, *command: str) -> Running:
        path = f"{SHIM.path.parent}:{os.environ['PATH']}"
        return self._processes.start(name, *self.command(*command), env={"PATH": path})

    def _why_no_containerd(self) -> str:
        command = self.command(str(CTR.path), f"--address={SOCKET}", "version")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""

    def _kubeconfig(self, user: str, *groups: str) -> Path:
        return self._plane.inner_kubeconfig(self.folder / f"{user.replace(':', '-')}.json", user, *groups)

    def _kubelet_file(self) -> Path:
        certificates = self._plane.certificates
        certificate, key = certificates.server([self.name], self.addresses)
        return _written(
            self.folder / "kubelet.json",
            apiVersion="kubelet.config.k8s.io/v1beta1",
            kind="KubeletConfiguration",
            containerRuntimeEndpoint=f"unix://{SOCKET}",
            cgroupDriver="cgroupfs",
            cgroupRoot=f"/{self._cgroup}",
            enforceNodeAllocatable=["none"],
            failCgroupV1=False,
            failSwapOn=False,
            tlsCertFile=str(certificate),
            tlsPrivateKeyFile=str(key),
            authentication={
                "x509": {"clientCAFile": str(certificates.root)},
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
            },
            authorization={"mode": "Webhook"},
            clusterDNS=[GATEWAY],
            clusterDomain=DOMAIN,
            resolvConf="",
            # The disk is that of the whole machine, and images cannot be pulled again.
            evictionHard={"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            imageGCHighThresholdPercent=100,
            volumePluginDir=str(self.folder / "plugins"),
            nodeStatusUpdateFrequency="2s",
        )

    def _containerd_file(self) -> Path:
        networks = self.folder / "networks"
        networks.mkdir()
        _written(
            networks / "pods.conflist",
            cniVersion="1.0.0",
            name="pods",
            plugins=[
                {
                    "type": "bridge",
                    "bridge": "pods",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": subnet}] for subnet in self._pods],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(self._pods)],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        )
        file = self.folder / "containerd.toml"
        return configuration(file, root=self._containerd_root, networks=networks)

    def _remove_cgroups(self) -> None:
        for hierarchy in _hierarchies():
            root = hierarchy / self._cgroup
            for folder, _, _ in os.walk(root, topdown=False):
                _removed(Path(folder))


class NodeCluster:
    """A control plane with nodes. Enter it in the main thread."""

    def __init__(self, nodes: int = 1, *, dual_stack: bool = False) -> None:
        self._count = nodes
        self._versions = (IPV4, IPV6) if dual_stack else (IPV4,)
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            images = prepared()
            network = Network(f"xds-{os.getpid():x}-{next(_runs)}", self._versions)
            self.network = stack.enter_context(network)
            self.control_plane = stack.enter_context(ControlPlane(network=self.network))
            self._processes = stack.enter_context(Processes(self.control_plane.folder))
            self._start_dns()
            for number in range(1, self._count + 1):
                node = Node(number, self.network, self.control_plane, images)
                self.nodes.append(stack.enter_context(node))
            try:
                self._processes.wait_for("the nodes", self._why_not_ready, timeout=_START)
            except DemoError as error:
                error.add_note(self.control_plane.logs())
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_dns(self) -> None:
        folder = self.control_plane.folder
        config = self.control_plane.inner_kubeconfig(folder / "dns.json", "admin", "system:masters")
        file = folder / "Corefile"
        file.write_text(_COREFILE.format(address=GATEWAY, domain=DOMAIN, kubeconfig=config))
        command = self.network.place.command(str(COREDNS.path), f"-conf={file}")
        self._processes.start("coredns", *command)

    def _why_not_ready(self) -> str:
        for node in self.nodes:
            node.check()
        names = [node.name for node in self.nodes]
        return self.control_plane.why_not_ready(names)


_runs = itertools.count(1)


def _written(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def _child(process: int) -> int:
    [child] = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(child)


def _wait_for_end(process: int) -> None:
    """Wait for the end of a process, of which `process` is a descriptor, and close that."""
    ended, _, _ = select.select([process], [], [], _START)
    os.close(process)
    assert ended, "a killed process did not end"


def _hierarchies() -> list[Path]:
    """Return the roots of all cgroup hierarchies: one in version 2, one for each controller in version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink()]


def _removed(cgroup: Path) -> None:
    """Remove a cgroup whose processes have been killed, but may not be gone yet."""
    deadline = time.monotonic() + 10
    while cgroup.exists():
        try:
            cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> int:
    """Build the images of pods if this machine can run nodes; return an exit status."""
    if reason := why_no_nodes():
        print(f"Nodes cannot run here, so the tests that need them will be skipped: {reason}")
        return 0
    try:
        prepared()
    except MissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
