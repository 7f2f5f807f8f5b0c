"""Plays the Istio task: types its commands, and checks the results of requests."""

from __future__ import annotations

import json
from collections import Counter

from tests.kubernetes import page
from tests.kubernetes.environment.pods import Pod, PodCluster
from tests.kubernetes.terminal import Terminal
from tests.support.waiting import eventually
from xds.demo.play import Answers, Expected, Pair, Step, StepResult

PATIENCE = 90
"""Time limit for a step on a busy machine, in seconds."""
URL = "http://httpbin.full.svc.cluster.local:8000/headers"
"""What clients ask under load."""
CAREFUL = json.dumps(
    {
        "name": "httpbin",
        "readinessProbe": {"httpGet": {"path": "/status/200", "port": 80}, "periodSeconds": 1},
        # httpbin ends at once when asked to: not before nobody sends it requests any more.
        "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
    }
)
"""Container settings of a server that can be replaced without losing a request."""


async def uses_mutual_tls(cluster: PodCluster, pod: Pod) -> bool:
    """Whether httpbin sees the identity of a pod of sleep."""
    _, output, _ = await cluster.execute(pod, "sleep", "curl", "-s", "--max-time", "5", URL)
    return "URI=spiffe://cluster.local/ns/full/sa/sleep" in output


class Player:
    """Performs the steps of the task and checks their results."""

    def __init__(self, cluster: PodCluster, terminal: Terminal) -> None:
        self.cluster, self.terminal = cluster, terminal

    async def types(self, commands: str) -> str:
        """Run commands that must succeed, and return their output."""
        printed = await self.terminal.run(f"set -e -o pipefail\n{commands}")
        assert printed.status == 0, f"{commands}\n{printed.error}"
        return printed.output

    async def ask(self, pair: Pair, times: int) -> Answers:
        """Send requests as the task does, but look up the pod's name only once."""
        name, namespace = pair.client.split(".")
        (pod,) = await self.cluster.pods(namespace, name)
        request = (
            f'curl http://{pair.server}:8000/headers -s -w "response code: %{{http_code}}\\n"'
            " | grep -E -o 'URI=spiffe.*sa/[a-z]*|response.*$'"
        )
        _, output, _ = await self.cluster.execute(
            pod, name, "sh", "-c", f"for i in $(seq {times}); do {request}; done"
        )
        return page.answers(output)

    async def see(self, step: Step) -> StepResult:
        """Send requests for each pair until there are no new answers."""
        seen: dict[Pair, Answers] = {}
        for pair, expected in step.expected.items():
            answers = seen[pair] = Counter()
            while not expected.is_settled(pair, answers):
                answers += await self.ask(pair, 10)
        return StepResult(step, seen)

    async def holds(self, step: Step) -> bool:
        """Whether the first requests have the step's results. AssertionError shows the actual results."""
        for pair, expected in step.expected.items():
            await self.brings(pair, expected)
        return True

    async def brings(self, pair: Pair, expected: Expected) -> bool:
        """Whether a pair's first requests have the expected results. AssertionError shows the actual ones."""
        # Enough for each of Envoy's worker threads: one may still have an old connection that drains.
        seen = await self.ask(pair, 20)
        assert seen.keys() <= expected.answers(pair), f"{pair}: {dict(seen)}"
        return True

    async def perform(self, step: Step) -> None:
        """Type the step's commands; check the table as the Istio task prints it, and many more requests."""
        await self.types(page.STEPS[step.name])
        await eventually(lambda: self.holds(step), timeout=PATIENCE, every=0.3, what=step.name)
        one_by_one = page.TEN_TIMES_PARTIAL if step.name == "migration" else page.EVERY_PAIR
        printed = await self.terminal.run(one_by_one)
        if step.name == "migration":
            (pair,) = step.expected
            table = {pair: page.answers(printed.output)}
            assert table[pair].total() == 10
        else:
            table = page.table(printed.output)
            assert all(answers.total() == 1 for answers in table.values()), printed
        assert table.keys() == step.expected.keys()
        for pair, answers in table.items():
            assert answers.keys() <= step.expected[pair].answers(pair), f"{step.name}: {pair}: {printed}"
        refused = sum(expected.code == "000" for expected in step.expected.values())
        assert printed.error.count("command terminated with exit code") == refused
        seen = await self.see(step)
        assert not list(seen.differences())

    async def ready(self) -> bool:
        """Whether `kubectl get pods` prints the task's output. AssertionError shows the actual output."""
        for namespace, command in zip(page.READY, page.PODS.strip().splitlines(), strict=True):
            output = await self.types(command)
            rows = [line.split() for line in output.splitlines()[1:]]
            assert sorted(row[1] for row in rows) == page.READY[namespace], output
            assert all(row[2] == "Running" for row in rows), output
        return True
