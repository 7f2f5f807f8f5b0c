"""The steps of the demo for other programs, such as examples/envoy/compose/play.

`python -m xds.demo.tour script` prints the steps as commands, one per line. `stale` prints a sidecar that
differs from its expected configuration. `compare` reads the output of requests, in the format of the Istio
task, and compares the answers with the expected ones.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from xds.demo import proxies, tables
from xds.demo.play import (
    DESTINATION_RULE,
    MAX_REQUESTS,
    POLICY,
    REQUESTS,
    STEPS,
    Answer,
    Answers,
    IdentityShare,
    Pair,
    Step,
    StepResult,
)
from xds.demo.pods import name_of
from xds.mesh.envoy.dump import active_config, difference, expected_config
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.files import Folder

MANIFESTS = Path("/mesh")
_TITLE = re.compile(r"^(sleep\.\w+ to httpbin\.\w+)$", flags=re.MULTILINE)


# --- steps --------------------------------------------------------------------------------------------------


def script(mesh: Mesh) -> Iterator[str]:
    """Yield the steps as commands, each a verb and its arguments.

    step NAME: start a step. The output of later commands belongs to it.
    apply FILE EXAMPLE: copy an example to the manifests folder.
    delete FILE: delete a file of the manifests folder.
    auto true|false: restart the control plane with this value of values.global.mtls.auto.
    await AUTO drained|applied POD...: wait until the pods' sidecars have their expected configuration.
    request POD SERVICE TIMES: send requests.
    """
    sidecars = " ".join(name_of(pod) for pod in mesh.pods() if pod.has_sidecar)
    auto = True
    for step in STEPS:
        yield f"step {step.name}"
        yield from (f"delete {name}" for name in step.delete)
        yield from (f"apply {name} {example}" for name, example in step.apply.items())
        if step.auto != auto:
            auto = step.auto
            yield f"auto {_word(auto)}"
        yield f"await {_word(auto)} {'drained' if step.drained else 'applied'} {sidecars}"
        for pair, expected in step.expected.items():
            requests = MAX_REQUESTS // 2 if expected.identity_share is IdentityShare.SOME else REQUESTS
            yield f"request {pair.client} {pair.server} {requests}"
    yield from (f"delete {name}" for name in (POLICY, DESTINATION_RULE))
    yield "auto true"


def _word(value: bool) -> str:
    return str(value).lower()


# --- configuration of sidecars ------------------------------------------------------------------------------


def find_stale(mesh: Mesh, dumps: str, *, drained: bool) -> str:
    """Return which sidecar differs from its expected configuration, and how; empty if none does.

    Args:
        mesh: the expected mesh.
        dumps: three JSON values for each sidecar: the name of its pod, and the admin interface's responses to
            `/config_dump?include_eds` and `proxies.DRAINING_STATS_PATH`.
        drained: whether a draining listener also makes a sidecar stale.
    """
    values = _json_values(dumps)
    pods = {name_of(pod): pod for pod in mesh.pods()}
    for name, dump, stats in zip(values, values, values, strict=True):
        if mismatch := difference(expected_config(translate(mesh, pods[name])), active_config(dump)):
            return f"{name} {mismatch}"
        if drained and (draining := proxies.draining_stats(stats)):
            return f"{name} has {draining}"
    return ""


def _json_values(text: str) -> Iterator[Any]:
    decoder, remaining = json.JSONDecoder(), text.lstrip()
    while remaining:
        value, end = decoder.raw_decode(remaining)
        yield value
        remaining = remaining[end:].lstrip()


# --- output of requests -------------------------------------------------------------------------------------


def answers(output: str) -> Answers:
    """Parse the output for one pair: that of the Istio task's command, once per request."""
    counts: Answers = Counter()
    identity = ""
    for line in output.splitlines():
        if line.startswith("URI="):
            identity = line.removeprefix("URI=")
        elif match := re.fullmatch(r"response(?: code:)? (\d+)", line):
            counts[Answer(match[1], identity)] += 1
            identity = ""
    return counts


def table(output: str) -> Mapping[Pair, Answers]:
    """Parse the output for several pairs: a title such as `sleep.full to httpbin.full`, then the answers."""
    _, *sections = _TITLE.split(output)
    return {
        Pair(*title.split(" to ")): answers(text)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }


def compare(lines: Iterable[str], out: Console) -> int:
    """Print a table for each step as it arrives. Return 0 if all answers match the Istio task, else 1."""
    results: list[StepResult] = []
    for step, output in _steps(lines):
        results.append(StepResult(step, table(output)))
        out.print(tables.table(results[-1], len(results)) if results[-1].answers else step.name, end="\n\n")
    differences = [difference for result in results for difference in result.differences()]
    differences += [f"{step.name}: was not executed" for step in STEPS[len(results) :]]
    summary = f"{len(results)} steps, {sum(result.requests for result in results)} requests"
    if differences:
        out.print("\n  ".join([f"does not match the Istio task: {summary}", *differences]), style="red")
        return 1
    out.print(f"matches the Istio task: {summary}", style="bold green")
    return 0


def _steps(lines: Iterable[str]) -> Iterator[tuple[Step, str]]:
    """Yield each completed step with its output."""
    names = [step.name for step in STEPS]
    output: list[str] = []
    step: Step | None = None
    for line in lines:
        if line.startswith("step "):
            if step:
                yield step, "".join(output)
            step, output = STEPS[names.index(line.removeprefix("step ").strip())], []
        output.append(line)
    if step:
        yield step, "".join(output)


def main(arguments: list[str]) -> int:
    """Run a subcommand; return the exit status."""
    match arguments:
        case ["script"]:
            print(*script(_mesh(auto=True)), sep="\n")  # noqa: T201 -- the result
        case ["stale", auto, drained]:
            if mismatch := find_stale(
                _mesh(auto=auto == "true"), sys.stdin.read(), drained=drained == "drained"
            ):
                print(mismatch)  # noqa: T201 -- the result
                return 1
        case ["compare"]:
            return compare(sys.stdin, Console(highlight=False))
        case _:
            print(  # noqa: T201
                "usage: python -m xds.demo.tour script | stale AUTO drained|applied | compare\n"
                "These subcommands are for programs such as examples/envoy/compose/play.",
                file=sys.stderr,
            )
            return 2
    return 0


def _mesh(*, auto: bool) -> Mesh:
    report = Folder(MANIFESTS).load()
    return Mesh(report.change.applied, MeshConfig(enable_auto_mtls=auto))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
