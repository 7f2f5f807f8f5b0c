"""The output of the demo: tables in the format of the Istio task, JSON, and commands to try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from xds.demo.play import POLICY, Answers, StepResult
from xds.demo.pods import PROXY_PORT, SERVER_PORT, name_of
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import ADMIN_PORT


def table(result: StepResult, number: int) -> Text:
    """Return the answers of a step as the Istio task's commands print them, with a count of equal answers."""
    lines = [Text(f"{number}. {result.step.name}: {result.step.what}", style="bold")]
    margin = max(len(str(pair)) for pair in result.answers) + 2
    for pair, answers in result.answers.items():
        title = str(pair)
        for line in _lines(answers):
            lines.append(Text.assemble(title.ljust(margin), line))
            title = ""
    return Text("\n").join(lines)


def _lines(answers: Answers) -> Iterator[Text]:
    for answer, count in sorted(answers.items(), key=lambda item: (not item[0].identity, item[0])):
        if answer.identity:
            yield Text(f"URI={answer.identity}", style="green")
        yield Text(f"response code: {answer.code} ({count}x)", style="" if answer.code == "200" else "yellow")


def as_json(results: Iterable[StepResult]) -> list[dict[str, Any]]:
    """Return the answers as JSON values, one object per step and pair."""
    return [
        {
            "step": result.step.name,
            "from": pair.client,
            "to": pair.server,
            "codes": {code: _count(answers, code) for code in sorted({a.code for a in answers})},
            "identities": sorted({answer.identity for answer in answers if answer.identity}),
        }
        for result in results
        for pair, answers in result.answers.items()
    ]


def suggest_commands(mesh: Mesh, manifests: Path, examples: Path, xds: str, admin: str) -> list[str]:
    """Return the lines that `--keep` prints: commands to try with the running demo.

    Args:
        mesh: the mesh of the demo.
        manifests: the folder that the control plane reads.
        examples: the folder of example manifests.
        xds: the xDS address of the control plane, as HOST:PORT.
        admin: the admin address of the control plane, as HOST:PORT.
    """
    pods = {name_of(pod): pod for pod in mesh.pods()}
    proxy, server = pods["sleep.full"], pods["httpbin.full"]
    return [
        "The demo runs until Ctrl-C, and sends requests. Send others, as sleep.full and as sleep.legacy:",
        f"  curl --proxy http://{proxy.address}:{PROXY_PORT} http://httpbin.full:8000/headers",
        f"  curl http://{server.address}:{SERVER_PORT}/headers",
        "Open the control plane's page in a browser:",
        f"  http://{admin}/",
        "Change the manifests, and send the requests again:",
        f"  cp {examples / 'steps' / 'strict.yaml'} {manifests / POLICY}",
        f"  xds reach --manifests {manifests}",
        "Print the sync status of each sidecar, and the metrics of the control plane:",
        f"  xds status --xds-address {xds}",
        f"  curl http://{admin}/metrics",
        "Open the admin interfaces of the sidecars:",
        *(f"  http://{p.address}:{ADMIN_PORT}  {name}" for name, p in pods.items() if p.has_sidecar),
    ]


def _count(answers: Answers, code: str) -> int:
    return sum(count for answer, count in answers.items() if answer.code == code)
