"""Istio's task *Automatic mutual TLS* on a real cluster, as printed, from `create ns` to `delete ns`."""

from __future__ import annotations

import pytest

from tests.kubernetes import page
from tests.kubernetes.environment.pods import PodCluster
from tests.kubernetes.player import PATIENCE, Player
from tests.support.waiting import eventually
from xds.demo.play import STEPS, Pair

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(600)]


async def test_istio_task_with_kubectl(pod_cluster: PodCluster, player: Player) -> None:
    await player.types(page.INSTALL)
    for commands in page.DEPLOY:
        await player.types(commands)
    await eventually(player.ready, timeout=PATIENCE, every=0.3, what="all pods are ready")

    policies = (await player.types(page.POLICIES)).splitlines()
    assert [line.split() for line in policies] == [["mode:", "PERMISSIVE"]]
    rules = await player.terminal.run(page.RULES)
    assert not [line for line in rules.output.splitlines() if any(name in line for name in page.READY)]
    pair = Pair("sleep.full", "httpbin.full")
    first = page.answers(await player.types(page.FIRST_CHECK))
    assert first.keys() == STEPS[0].expected[pair].answers(pair)
    assert first.total() == 1

    assert [step.name for step in STEPS] == list(page.STEPS)
    for step in STEPS:
        await player.perform(step)

    await player.types(page.CLEAN_UP)
    assert (await player.terminal.run("kubectl get ns full partial legacy")).error.count("NotFound") == 3
