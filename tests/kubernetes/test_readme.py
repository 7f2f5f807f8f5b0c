"""The README's Kubernetes section, word for word, and what `make cluster` deploys, on a real node."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kubernetes.developing import NAMESPACES
from tests.kubernetes.environment.images import ROOT
from tests.kubernetes.player import PATIENCE, Player
from tests.support.waiting import eventually
from xds.demo.play import STEPS, Pair

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(600)]

SECTION = re.compile(r"\*\*In a Kubernetes cluster\.\*\*.*?```sh\n(.*?)```", re.DOTALL)
BEFORE = """
kubectl create namespace full
kubectl apply -n full -f samples/httpbin/httpbin.yaml -f samples/sleep/sleep.yaml
"""
AFTER = f"""
kubectl rollout status deployment -n full --timeout={PATIENCE}s
"""


async def test_section_about_kubernetes_is_true(player: Player) -> None:
    [commands] = SECTION.findall((ROOT / "README.md").read_text())
    await player.types(BEFORE)
    first, *rest = commands.splitlines()
    await player.types(first)
    await player.types("kubectl wait -n istio-system deployment/xds --for=condition=Available --timeout=90s")
    await player.types("\n".join(rest) + AFTER)
    pair = Pair("sleep.full", "httpbin.full")
    [step] = [step for step in STEPS if step.name == "PERMISSIVE"]
    await eventually(lambda: player.brings(pair, step.expected[pair]), timeout=PATIENCE, every=0.3)


def test_make_cluster_runs_until_it_is_interrupted(skip_without_nodes: None, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, "-m", "tests.kubernetes.developing", str(kubeconfig)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout
            shown = ""
            while not shown.endswith("Ctrl-C ends the cluster.\n"):
                line = process.stdout.readline()
                assert line, shown
                shown += line
            [export] = [line for line in shown.splitlines() if line.startswith("export ")]
            script = (
                f"{export}\nfor n in {' '.join(NAMESPACES)}; do kubectl get pods -n $n --no-headers; done"
            )
            pods = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True).stdout
            assert sorted(line.split()[1] for line in pods.splitlines()) == ["1/1"] * 3 + ["2/2"] * 3
            asked = next(line for line in shown.splitlines() if line.startswith("kubectl exec"))
            identity = "URI=spiffe://cluster.local/ns/full/sa/sleep"
            until_it_is_shown = f"{export}\nuntil {asked} | grep {identity}; do sleep 0.5; done"
            subprocess.run(["bash", "-c", until_it_is_shown], check=True, timeout=PATIENCE)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    assert process.returncode == 0
    assert not kubeconfig.exists()
