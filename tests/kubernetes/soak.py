"""A long run with random policies and faults under a steady load."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.compose.environment import MissingError
from tests.kubernetes.environment.node import NodeCluster, why_no_nodes
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.installing import SYSTEM, install
from tests.kubernetes.workloads import (
    apply,
    disruption_budget,
    evicted,
    gone,
    node_of,
    restarted,
    restarts,
    rolled_out,
    server,
    service,
    spread,
    url,
)
from tests.support.authorization import authorization_policy, operation, source
from tests.support.load import Load
from tests.support.manifests import peer_authentication
from tests.support.waiting import eventually
from xds.demo.processes import DemoError

NAMESPACE = "soak"
PATIENCE = 600
"""Time limit for a restart, in seconds: a container that was killed often restarts after up to 5 minutes."""
LOSSY = ("kill a sidecar", "kill an application")
"""Actions that may fail requests, until the pod is no endpoint any more."""
RECOVERY = 10.0
"""Time that this may take, in seconds."""
PERMISSIONS: dict[str, Mapping[str, Any]] = {
    "all": {},
    "GET": operation(methods=["GET"]),
    "the client": source(serviceAccounts=["default"]),
}
"""Rules of the AuthorizationPolicy. Each allows the client's requests, the last one only with mutual TLS."""


@dataclass(slots=True)
class Action:
    """Something that was done to the cluster."""

    name: str
    detail: str = ""
    began: float = field(default_factory=time.monotonic)


class Soak:
    """Random actions on a client and three servers, which are on two nodes with the control plane."""

    def __init__(self, cluster: PodCluster, chance: random.Random) -> None:
        self._cluster, self._chance = cluster, chance
        self.done: list[Action] = []

    async def prepare(self) -> Load:
        """Install the mesh and the workloads; return a load from the client to the servers."""
        cluster = self._cluster
        await install(cluster)
        await rolled_out(cluster, SYSTEM, "deployment/xds", PATIENCE)
        await cluster.kubectl("create", "namespace", NAMESPACE)
        await cluster.kubectl("label", "namespace", NAMESPACE, "istio-injection=enabled")
        web = server("Deployment", "web", replicas=3, topologySpreadConstraints=[spread("web")])
        client = server("Deployment", "client")
        await apply(cluster, NAMESPACE, service("web"), disruption_budget("web"), web, client)
        [self._client] = await cluster.pods(NAMESPACE, "client")
        sender = await cluster.client(self._client)
        return Load(client=sender, url=url(NAMESPACE), connections=4, pause=0.1, seconds=1e9, at_most=10**9)

    async def run(self, load: Load, seconds: float) -> None:
        """Do one action after another until the time has passed. Each is complete before the next one."""
        actions: dict[str, Callable[[], Awaitable[str]]] = {
            "change the policy": self._change_policy,
            "restart the servers": self._restart,
            "drain a node": self._drain,
            "evict a server": self._evict,
            LOSSY[0]: lambda: self._kill(NAMESPACE, "web", "xds-proxy"),
            LOSSY[1]: lambda: self._kill(NAMESPACE, "web", "web"),
            "kill a control plane": lambda: self._kill(SYSTEM, "xds", "xds"),
            "restart a kubelet": lambda: self._restart_kubelet(load),
        }
        start = time.monotonic()
        async with load:
            await load.more(50, PATIENCE)
            while time.monotonic() < start + seconds:
                # Policies change more often than the rest happens.
                name = self._chance.choice([*actions, "change the policy", "change the policy"])
                action = Action(name)
                self.done.append(action)
                action.detail = await actions[name]()
                print(f"{action.began - start:7.1f} s  {name}: {action.detail}", flush=True)
                for namespace, deployment in ((NAMESPACE, "web"), (SYSTEM, "xds")):
                    await rolled_out(self._cluster, namespace, f"deployment/{deployment}", PATIENCE)
                await load.more(50, PATIENCE)

    def report(self, load: Load) -> int:
        """Print the requests and failures; return how many failures no killed process explains."""
        if not load.sent:
            return 0
        start = load.sent[0].began
        seconds = load.sent[-1].ended - start
        print(f"\n{len(load.sent)} requests in {seconds:.0f} s, {len(load.failures)} failed")
        for name, count in Counter(action.name for action in self.done).most_common():
            print(f"{count:4} x {name}")
        unexplained = 0
        for sent in load.failures:
            before = [action for action in self.done if action.began <= sent.ended]
            last = before[-1] if before else Action("nothing", began=start)
            answer = sent.answer
            unexplained += last.name not in LOSSY or sent.began > last.began + RECOVERY
            times = f"{sent.began - start:7.1f} s to {sent.ended - start:7.1f} s"
            after = f"{sent.ended - last.began:.1f} s after: {last.name}: {last.detail}"
            print(f"{times}: {answer.code} {answer.error or answer.text!r}, {after}")
        return unexplained

    async def _change_policy(self) -> str:
        """Change mode and permissions in one `kubectl apply`; both always allow the client's requests."""
        mode = self._chance.choice(("STRICT", "PERMISSIVE", "DISABLE"))
        # A client that sends plaintext has no identity.
        allowed = self._chance.choice(list(PERMISSIONS)[: 2 if mode == "DISABLE" else 3])
        policies = [
            authorization_policy(NAMESPACE, PERMISSIONS[allowed]),
            peer_authentication(NAMESPACE, mode),
        ]
        # kubectl applies one after the other: a policy that needs an identity last, any other one first.
        await apply(self._cluster, NAMESPACE, *(policies if allowed != "the client" else reversed(policies)))
        return f"{mode}, {allowed} allowed"

    async def _restart(self) -> str:
        await restarted(self._cluster, NAMESPACE, "web", PATIENCE)
        return "web"

    async def _drain(self) -> str:
        [node] = {node.name for node in self._cluster.nodes} - {node_of(self._client)}
        options = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE}s")
        await self._cluster.kubectl("drain", node, *options, timeout=PATIENCE + 10)
        await self._cluster.kubectl("uncordon", node)
        return node

    async def _evict(self) -> str:
        pod = await self._any(NAMESPACE, "web")
        await eventually(lambda: evicted(self._cluster, pod), timeout=PATIENCE, every=0.2)
        await gone(self._cluster, [pod], PATIENCE)
        return pod.name

    async def _kill(self, namespace: str, app: str, container: str) -> str:
        pod = await self._any(namespace, app)
        before = restarts(pod)[container]
        pod.kill(container)

        async def has_restarted() -> bool:
            return restarts(await self._cluster.pod(namespace, pod.name))[container] > before

        await eventually(has_restarted, timeout=PATIENCE, every=0.2)
        return pod.name

    async def _restart_kubelet(self, load: Load) -> str:
        node = self._chance.choice(self._cluster.nodes)
        node.stop_kubelet()
        await load.more(50, PATIENCE)
        node.start_kubelet()
        return node.name

    async def _any(self, namespace: str, app: str) -> Pod:
        return self._chance.choice(await self._cluster.pods(namespace, app))


async def soak(running: NodeCluster, seconds: float, seed: int) -> int:
    """Run; return an exit status."""
    async with PodCluster(running) as cluster:
        run = Soak(cluster, random.Random(seed))
        load = await run.prepare()
        try:
            await run.run(load, seconds)
        finally:
            unexplained = run.report(load)
    return int(unexplained > 0)


def main() -> int:
    """Parse the arguments and run; return an exit status: 1 if a request failed that no kill explains."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kubernetes.soak", description="Run random actions on a cluster under load."
    )
    parser.add_argument("--minutes", type=float, default=30, help="duration (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the actions (default: %(default)s)")
    arguments = parser.parse_args()
    if reason := why_no_nodes():
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with NodeCluster(nodes=2) as running:
            return asyncio.run(soak(running, arguments.minutes * 60, arguments.seed))
    except (MissingError, DemoError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
