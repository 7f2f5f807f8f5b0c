"""Run the demo: start the mesh, execute the steps, compare the responses with the Istio task, stop."""

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
from pathlib import Path
from typing import Literal, TypeAlias

from rich.console import Console

from xds.demo.interrupt import Interrupted, defer_signals
from xds.demo.play import AUTHORIZATION_STEPS, INITIAL_STATE, STEPS, StepResult
from xds.demo.processes import DemoError, Processes, UnavailableError
from xds.demo.stage import EXAMPLES, Stage
from xds.demo.tables import as_json, suggest_commands, table
from xds.validation import EnvoyNotFoundError, find_envoy

Progress: TypeAlias = Callable[[str], AbstractContextManager[object]]


Output = Literal["table", "json"]
"""An output format."""


@dataclass(frozen=True, slots=True)
class Options:
    """Command-line options of `xds demo`."""

    keep: bool = False
    """Whether to keep the processes running after the last step."""
    authorization: bool = False
    """Whether to add the steps with an AuthorizationPolicy."""
    sotw: bool = False
    """Whether sidecars use state-of-the-world xDS."""
    output: Output = "table"
    """The output format."""


def run(options: Options) -> int:
    """Run the demo and return the exit status, as described in `xds demo --help`."""
    errors = Console(stderr=True, highlight=False)
    try:
        with defer_signals():
            check_requirements()
            with _folder(errors) as folder, Processes(folder / "logs") as processes:
                _run_steps(Stage(folder, processes, sotw=options.sotw), processes, options, errors)
    except Interrupted as interrupted:
        return interrupted.status
    except DemoError as error:
        errors.print(f"xds demo: {error}", style="red", markup=False, soft_wrap=True)
        return error.status
    return 0


def check_requirements() -> None:
    """Raise UnavailableError if a requirement of the demo is missing."""
    if sys.platform != "linux":
        raise UnavailableError("requires Linux, where each pod can have its own loopback address (127.x.y.z)")
    missing = [] if importlib.util.find_spec("httpbin") else ["httpbin"]
    try:
        find_envoy()
    except EnvoyNotFoundError:
        missing.insert(0, "envoy")
    if missing:
        raise UnavailableError(f"requires {' and '.join(missing)}: pip install 'xds-mesh[demo]'")


def _run_steps(stage: Stage, processes: Processes, options: Options, errors: Console) -> None:
    as_table = options.output == "table"
    out = Console(highlight=False)
    progress = _progress(errors)
    start_time = time.monotonic()
    with progress("Starting the control plane, applications and sidecars"):
        stage.start()
    results: list[StepResult] = []
    steps = (*STEPS, *AUTHORIZATION_STEPS) if options.authorization else STEPS
    for number, step in enumerate(steps, 1):
        with progress(f"{number}/{len(steps)} {step.name}"):
            stage.perform(step)
            results.append(stage.send_requests(step))
        if as_table:
            out.print(table(results[-1], number), end="\n\n")
    duration = time.monotonic() - start_time
    if options.output == "json":
        print(json.dumps(as_json(results), indent=2), flush=True)  # noqa: T201 -- the result, not a message
    differences = [difference for result in results for difference in result.differences()]
    summary = f"{len(results)} steps, {sum(result.requests for result in results)} requests, {duration:.0f} s"
    expected = "the Istio task and the AuthorizationPolicy" if options.authorization else "the Istio task"
    failure = "\n  ".join([f"does not match {expected}: {summary}", *differences])
    if not differences:
        (out if as_table else errors).print(f"matches {expected}: {summary}", style="bold green")
    if options.keep:
        if differences:
            errors.print(failure, style="red", markup=False, soft_wrap=True)
        _keep(stage, processes, errors, progress)
    if differences:
        raise DemoError(failure)


def _keep(stage: Stage, processes: Processes, errors: Console, progress: Progress) -> None:
    with progress("Restoring the initial state"):
        stage.perform(INITIAL_STATE)
    for line in suggest_commands(stage.mesh(), stage.manifests, EXAMPLES, stage.xds, stage.admin):
        errors.print(line, markup=False, soft_wrap=True)
    requests = stage.keep_requesting(INITIAL_STATE)
    with suppress(Interrupted):  # Ctrl-C stops the demo.
        processes.wait_for("Ctrl-C", lambda: next(requests), timeout=math.inf)


def _progress(errors: Console) -> Progress:
    """Return a function that shows progress: a spinner on a terminal, a line per task elsewhere."""

    def show(what: str) -> AbstractContextManager[object]:
        if errors.is_terminal:
            return errors.status(what)
        errors.print(f"{what} ...", markup=False, soft_wrap=True)
        return nullcontext()

    return show


@contextmanager
def _folder(errors: Console) -> Iterator[Path]:
    """Create a temporary folder. Remove it afterwards, unless the demo failed: it contains the logs."""
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
