"""How long a change takes until the last of many clients has it: `make bench`, or `python benchmarks/bench.py --help`.

Servers, clients and the floor are processes of their own, started and ended by this one. Ratios to the floor, measured
in the same round, travel between machines; seconds do not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from control import raise_file_limit
from report import as_json, as_markdown, as_table
from rounds import Bench, Measured, Size, library, mesh

_SPARE = 200
"""Open files that a process needs besides its connections."""


def main() -> None:
    """Measure, and print."""
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
    results: dict[str, list[Measured]] = {}
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
    parser.add_argument("--quick", action="store_true", help="small, to see whether it works: seconds")
    parser.add_argument("--streams", type=int, default=20 if quick else 1000)
    parser.add_argument("--services", type=int, default=20 if quick else 1000)
    parser.add_argument("--endpoints", type=int, default=3 if quick else 10, help="of each service")
    parser.add_argument("--namespaces", type=int, default=2 if quick else 10)
    parser.add_argument("--rounds", type=int, default=2 if quick else 7)
    parser.add_argument("--starts", type=int, default=1 if quick else 3, help="of the server")
    parser.add_argument(
        "--kinds",
        type=lambda text: [int(kind) for kind in text.split(",")],
        default=[2] if quick else [1, 5],
        help="of how many namespaces the sidecars are; several: one after the other (default: %(default)s)",
    )
    parser.add_argument(
        "--only", choices=("library", "mesh"), nargs=1, default=["library", "mesh"], help="one half of it"
    )
    parser.add_argument("-o", "--output", choices=("table", "markdown", "json"), default="table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
