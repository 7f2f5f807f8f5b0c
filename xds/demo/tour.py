"""The play for those who perform it by other means, such as the shell script of the demo in containers.

`python -m xds.demo.tour script` says what to do, line by line; `lacking` whether sidecars have what they should; `compare`
reads what requests printed, as on Istio's page, and says whether it matches.
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
    Pair,
    Shown,
    Step,
    StepResult,
)
from xds.demo.pods import name_of
from xds.mesh.envoy.translate import translate
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.files import Folder

MANIFESTS = Path("/mesh")
_TITLE = re.compile(r"^(sleep\.\w+ to httpbin\.\w+)$", flags=re.MULTILINE)


# --- what to do ----------------------------------------------------------------------------------------------------------


def script(mesh: Mesh) -> Iterator[str]:
    """Yield what to do: one thing a line, a verb and its words.

    apply FILE EXAMPLE, delete FILE: in the folder of manifests. auto true|false: install with that. settle AUTO
    drained|applied POD...: wait until these pods' sidecars lack nothing. ask POD SERVICE TIMES: send requests. step NAME:
    what is printed from here on belongs to it.
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
        yield f"settle {_word(auto)} {'drained' if step.drained else 'applied'} {sidecars}"
        for pair, expected in step.expected.items():
            yield f"ask {pair.client} {pair.server} {MAX_REQUESTS // 2 if expected.shown is Shown.SOME else REQUESTS}"
    yield from (f"delete {name}" for name in (POLICY, DESTINATION_RULE))
    yield "auto true"


def _word(value: bool) -> str:
    return str(value).lower()


# --- whether it is in force ----------------------------------------------------------------------------------------------


def find_stale(mesh: Mesh, shown: str, *, drained: bool) -> str:
    """Say what a sidecar does not have in force yet; empty when all have everything.

    Args:
        mesh: as it should be.
        shown: of each sidecar its pod's name, as a JSON string, then what its admin page has at `/config_dump?include_eds`
            and at `proxies.DRAINING_STATS_PATH`.
        drained: whether connections of before must be gone too.
    """
    values = _values(shown)
    pods = {name_of(pod): pod for pod in mesh.pods()}
    for name, dump, stats in zip(values, values, values, strict=True):
        if missing := proxies.difference(
            proxies.expected_config(translate(mesh, pods[name])), proxies.active_config(dump)
        ):
            return f"{name} {missing}"
        if drained and (left := proxies.draining_stats(stats)):
            return f"{name} has {left}"
    return ""


def _values(text: str) -> Iterator[Any]:
    decoder, rest = json.JSONDecoder(), text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield value
        rest = rest[end:].lstrip()


# --- what was seen -------------------------------------------------------------------------------------------------------


def answers(output: str) -> Answers:
    """Read what the page's command prints for one pair, any number of times."""
    seen: Answers = Counter()
    identity = ""
    for line in output.splitlines():
        if line.startswith("URI="):
            identity = line.removeprefix("URI=")
        elif found := re.fullmatch(r"response(?: code:)? (\d+)", line):
            seen[Answer(found[1], identity)] += 1
            identity = ""
    return seen


def table(output: str) -> Mapping[Pair, Answers]:
    """Read what it prints for every pair: `sleep.full to httpbin.full`, then the answers."""
    _, *sections = _TITLE.split(output)
    return {
        Pair(*title.split(" to ")): answers(text)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }


def compare(lines: Iterable[str], out: Console) -> int:
    """Show a table for every step as soon as it is there; return 0 if all is as on the page, 1 if not."""
    seen: list[StepResult] = []
    for step, output in _steps(lines):
        seen.append(StepResult(step, table(output)))
        out.print(tables.table(seen[-1], len(seen)) if seen[-1].answers else step.name, end="\n\n")
    differences = [difference for each in seen for difference in each.differences()]
    differences += [f"{step.name}: was not played" for step in STEPS[len(seen) :]]
    figures = f"{len(seen)} steps, {sum(each.requests for each in seen)} requests"
    if differences:
        out.print("\n  ".join([f"does not match the page: {figures}", *differences]), style="red")
        return 1
    out.print(f"matches the page: {figures}", style="bold green")
    return 0


def _steps(lines: Iterable[str]) -> Iterator[tuple[Step, str]]:
    """Yield each step that was played to its end, in the order of the play."""
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
    """Do what the command line says, and return an exit status."""
    match arguments:
        case ["script"]:
            print(*script(_mesh(auto=True)), sep="\n")  # noqa: T201 -- the result
        case ["lacking", auto, drained]:
            if missing := find_stale(
                _mesh(auto=auto == "true"), sys.stdin.read(), drained=drained == "drained"
            ):
                print(missing)  # noqa: T201 -- the result
                return 1
        case ["compare"]:
            return compare(sys.stdin, Console(highlight=False))
        case _:
            print(  # noqa: T201
                "usage: python -m xds.demo.tour script | lacking AUTO DRAINED | compare\n"
                "These are what a performance of the play asks: ./play, in examples/envoy/compose, is one.",
                file=sys.stderr,
            )
            return 2
    return 0


def _mesh(*, auto: bool) -> Mesh:
    report = Folder(MANIFESTS).load()
    return Mesh(report.change.applied, MeshConfig(enable_auto_mtls=auto))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
