"""Measure the time from a change until the last of many clients has it: `make bench`.

`python benchmarks/bench.py --help` lists the options. The server, the clients and the floor are child
processes. Ratios to the floor of the same round are comparable between machines; seconds are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from control import raise_file_limit
from report import as_json, as_markdown, as_table
from rounds import Bench, Measurement, Size, library, mesh

_SPARE = 200
"""Number of open files that a process needs in addition to its connections."""


def main() -> None:
    """Run the benchmark and print the results."""
    options = _options()
    size = Size(
        streams=options.streams,
        services=options.services,
        endpoints=options.endpoints,
        namespaces=options.namespaces,
        rounds=options.rounds,
        starts=options.starts,
        quiet=0.2 if options.quick else 0.5,
    )
    raise_file_limit(2 * size.streams + _SPARE)
    results: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(size, Path(folder), stack, lambda line: print(line, file=sys.stderr, flush=True))
        if "library" in options.only:
            library(bench, results)
        for kinds in options.kinds if "mesh" in options.only else ():
            mesh(bench, kinds, results)
    print({"table": as_table, "markdown": as_markdown, "json": as_json}[options.output](size, results))


def _options() -> argparse.Namespace:
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument("--quick", action="store_true", help="run a small benchmark that takes a few seconds")
    parser.add_argument("--streams", type=int, default=20 if quick else 1000)
    parser.add_argument("--services", type=int, default=20 if quick else 1000)
    parser.add_argument("--endpoints", type=int, default=3 if quick else 10, help="endpoints of each service")
    parser.add_argument("--namespaces", type=int, default=2 if quick else 10)
    parser.add_argument("--rounds", type=int, default=2 if quick else 7)
    parser.add_argument("--starts", type=int, default=1 if quick else 3, help="number of server cold starts")
    parser.add_argument(
        "--kinds",
        type=lambda text: [int(kind) for kind in text.split(",")],
        default=[2] if quick else [1, 5],
        help="number of namespaces with sidecars; a comma-separated list runs each in turn "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        choices=("library", "mesh"),
        nargs=1,
        default=["library", "mesh"],
        help="run only one half of the benchmark (default: both)",
    )
    parser.add_argument("-o", "--output", choices=("table", "markdown", "json"), default="table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
