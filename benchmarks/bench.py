"""Measure how fast changes reach many sidecars, and what they cost: `make bench`.

The server, the clients and two floors are processes of their own. A round starts a new server, connects all
sidecars, and runs each scenario once. Ratios to the floors of the same round are comparable between machines;
seconds are not. `python benchmarks/bench.py --help` lists the options.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cluster import Kubernetes
from control import raise_file_limit
from plot import as_svg
from report import Report, Run, as_comparison, as_markdown, as_table
from rounds import Bench, Churn, Round
from scenarios import SCENARIOS, Scenario
from sources import Files, Library, Size, Source

_SPARE = 200
"""Number of open files that a process needs in addition to its connections."""
_FACTORS = (0.1, 1, 3)
"""Sizes of --growth, as multiples of --services and of --streams."""


def main() -> None:
    """Run the benchmark, or load its results, and print them."""
    options = _options()
    old = Report.load([options.compare]) if options.compare else None
    report = Report.load(options.load) if options.load else Report.measured(_measure(options))
    if options.save:
        options.save.write_text(report.as_json())
    if options.plot:
        options.plot.write_text(as_svg(report))
    if old:
        print(as_comparison(old, report))
    else:
        print({"table": as_table, "markdown": as_markdown, "json": Report.as_json}[options.output](report))


def _measure(options: argparse.Namespace) -> list[Run]:
    size = Size(
        source=options.source,
        services=options.services,
        endpoints=options.endpoints,
        namespaces=options.namespaces,
        streams=options.streams,
        at_once=options.at_once,
        tls=options.tls,
        replicas=options.replicas,
    )
    sizes = [size]
    if options.growth:
        sizes = [replace(size, services=max(1, round(size.services * factor))) for factor in _FACTORS]
        sizes += [replace(size, streams=round(size.streams * factor)) for factor in _FACTORS if factor != 1]
    raise_file_limit(max(size.streams for size in sizes) + _SPARE)
    return [run for size in sizes for run in _runs(options, size)]


def _runs(options: argparse.Namespace, size: Size) -> list[Run]:
    """Run the rounds of one size. With istiod, policies or a Sidecar, the rounds of both alternate."""
    scenarios = [each for each in SCENARIOS if _is_chosen(each, options.scenario, size.source)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        churn = Churn(options.rate, options.seconds)
        bench = Bench(size, churn, options.quiet, folder, stack)
        _log(f"{size.services:,} services, {size.streams:,} streams: creating the objects")
        sources = [_source(size, folder, stack)]
        runs = [Run(size, {})]
        if options.policies or options.visible:
            other = replace(size, policies=options.policies, visible=options.visible)
            sources.append(_source(other, folder / "other", stack))
            runs.append(Run(other, {}))
        if options.istiod:
            assert isinstance(sources[0], Kubernetes)
            sources.append(sources[0].served_by_istiod(options.istiod))
            runs.append(Run(replace(size, source="istiod"), {}))
        for number in range(options.rounds):
            for source, run in zip(sources, runs, strict=True):
                with ExitStack() as running:
                    measured = Round(bench, source, running)
                    for scenario in scenarios:
                        _log(f"round {number + 1} of {options.rounds}, {run.title}: {scenario.title}")
                        run.results.setdefault(scenario.title, []).append(scenario.measure(measured))
    return runs


def _source(size: Size, folder: Path, stack: ExitStack) -> Source:
    match size.source:
        case "kubernetes":
            return Kubernetes(size, folder, stack)
        case "library":
            return Library(size, folder)
    return Files(size, folder)


def _is_chosen(scenario: Scenario, chosen: list[str], source: str) -> bool:
    """Return whether to run a scenario. Without the first two, there are no connected sidecars."""
    if source not in scenario.sources:
        return False
    is_default = scenario.is_default and "default" in chosen
    return is_default or scenario.name in ("start", "connect", *chosen) or "every" in chosen


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="run a small benchmark that takes a few seconds")
    parser.add_argument("--source", choices=("files", "kubernetes", "library"), default="files")
    parser.add_argument(
        "--scenario",
        nargs="+",
        choices=[*names, "default", "every"],
        default=["default"],
        metavar="NAME",
        help=f"{', '.join(names)}, default (the default) or every; start and connect always run",
    )
    parser.add_argument("--rounds", type=int, default=1 if quick else 3)
    parser.add_argument("--services", type=int, default=20 if quick else 1000)
    parser.add_argument("--endpoints", type=int, default=3 if quick else 10, help="endpoints of each service")
    parser.add_argument("--namespaces", type=int, default=2 if quick else 10)
    parser.add_argument("--streams", type=int, default=20 if quick else 1000)
    parser.add_argument(
        "--at-once",
        type=int,
        default=100,
        help="sidecars that connect at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--replicas", type=int, default=1, help="servers that share the sidecars (default: %(default)s)"
    )
    parser.add_argument(
        "--istiod",
        metavar="PROGRAM",
        help="also measure this program of istiod (pilot-discovery), in alternating rounds",
    )
    parser.add_argument(
        "--policies",
        type=int,
        default=0,
        metavar="COUNT",
        help="also measure with this number of AuthorizationPolicies, in alternating rounds",
    )
    parser.add_argument(
        "--visible",
        type=int,
        default=0,
        metavar="COUNT",
        help="also measure with a Sidecar that shows COUNT services to clients, in alternating rounds",
    )
    parser.add_argument("--tls", action="store_true", help="use TLS, and a token for each pod")
    parser.add_argument(
        "--growth", action="store_true", help="run with 0.1, 1 and 3 times the services and streams"
    )
    parser.add_argument(
        "--rate", type=float, default=1000, help="changes a second of churn (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=1 if quick else 30, help="duration of churn")
    parser.add_argument("-o", "--output", choices=("table", "markdown", "json"), default="table")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also plot the results of --growth, as SVG")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="print ratios to these results instead")
    parser.add_argument(
        "--load", type=Path, nargs="+", metavar="FILE", help="do not measure, but merge these results"
    )
    options = parser.parse_args()
    if options.replicas > 1 and options.source != "files":
        parser.error("--replicas requires --source files")
    for name in ("policies", "visible"):
        if vars(options)[name] and options.source != "files":
            parser.error(f"--{name} requires --source files")
    if options.tls and options.source == "library":
        parser.error("--tls cannot be combined with --source library")
    if options.istiod and (options.source != "kubernetes" or options.tls):
        parser.error("--istiod requires --source kubernetes, without --tls")
    if options.istiod and not shutil.which(options.istiod):
        parser.error(
            f"--istiod: {options.istiod} is not a program; build it with "
            "`go install istio.io/istio/pilot/cmd/pilot-discovery@VERSION`"
        )
    options.quiet = 0.1 if quick else 1.0
    return options


if __name__ == "__main__":
    main()
