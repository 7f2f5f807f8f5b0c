"""One run of `envoy --mode validate`, which loads a bootstrap and exits."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import tempfile
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple

MAX_MEMORY = 1 << 30
"""Maximum size of Envoy's data in bytes. It uses 60 MB, and 0.1 MB for each resource."""
_MAX_OUTPUT = 64 * 1024
"""Bytes of Envoy's output to read."""
_NICENESS = 10
"""Priority of Envoy, below that of the control plane."""
_CONSTRAINT = "Proto constraint validation failed"
_OUTER = ("BootstrapValidationError.", "StaticResourcesValidationError.")
"""Beginnings of the steps from a bootstrap to a resource in an error message."""
_MAX_MESSAGE = 10_000
"""Maximum length of an error message, in characters."""


class LoadOutcome(Enum):
    """How a run ended."""

    LOADED = "loaded"
    """Envoy loaded the bootstrap."""
    REFUSED = "refused"
    """Envoy refused the bootstrap, or crashed when it loaded it."""
    UNAVAILABLE = "unavailable"
    """Envoy could not be started, or did not end in time."""


class Run(NamedTuple):
    """Result of a run."""

    outcome: LoadOutcome
    """How it ended."""
    message: str = ""
    """Why the bootstrap was not loaded, without private keys; empty if it was."""


async def load(binary: str, bootstrap: bytes, timeout: float) -> Run:  # noqa: ASYNC109 - a result, not an exception
    """Have an Envoy load an encoded bootstrap.

    The bootstrap, which may contain private keys, goes through a named pipe. It is never written to disk.

    Args:
        binary: Path of the Envoy binary.
        bootstrap: Encoded bootstrap.
        timeout: Seconds until Envoy is killed.
    """
    with tempfile.TemporaryDirectory(prefix="xds-validation-") as directory:
        # Envoy recognizes the encoding by the extension. It accepts no path of a file in memory.
        pipe = Path(directory, "bootstrap.pb")
        os.mkfifo(pipe, 0o600)
        command = (binary, "--mode", "validate", "--config-path", str(pipe), "--concurrency", "1")
        # Clients accept unknown fields in dynamic configuration.
        options = ("--allow-unknown-static-fields", "--log-level", "critical", "--log-format", "%v")
        try:
            process = await asyncio.create_subprocess_exec(
                *(*command, *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=directory,
            )
        except OSError as error:
            return Run(LoadOutcome.UNAVAILABLE, f"cannot start {binary}: {error.strerror}")
        writing = asyncio.create_task(asyncio.to_thread(_write, pipe, bootstrap))
        try:
            async with asyncio.timeout(timeout):
                _restrict(process.pid)
                output = await _read(process)
                await process.wait()
        except TimeoutError:
            return Run(LoadOutcome.UNAVAILABLE, f"Envoy did not end within {timeout:g} s")
        finally:
            await _end(process, writing, pipe)
    if process.returncode == 0:
        return Run(LoadOutcome.LOADED)
    if process.returncode == -signal.SIGKILL:
        return Run(LoadOutcome.UNAVAILABLE, "Envoy was killed, maybe because the memory is exhausted")
    if process.returncode is not None and process.returncode < 0:
        return Run(LoadOutcome.REFUSED, f"Envoy crashed with {signal.Signals(-process.returncode).name}")
    return Run(LoadOutcome.REFUSED, _message(output, directory) or f"Envoy ended with {process.returncode}")


def _write(pipe: Path, data: bytes) -> None:
    with suppress(OSError), pipe.open("wb") as file:
        file.write(data)


def _restrict(pid: int) -> None:
    """Limit the memory of Envoy, and lower its priority."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICENESS)
        if hasattr(resource, "prlimit"):  # Linux only.
            resource.prlimit(pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))


async def _read(process: asyncio.subprocess.Process) -> str:
    """Return the beginning of Envoy's output, and discard the rest."""
    output = b""
    assert process.stdout  # noqa: S101 - it is a pipe
    while chunk := await process.stdout.read(_MAX_OUTPUT):
        output += chunk[: _MAX_OUTPUT - len(output)]
    return output.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process, writing: asyncio.Task[None], pipe: Path) -> None:
    """Kill Envoy if it runs, and release the thread that writes."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    # The thread waits until the pipe is opened for reading. Envoy may have ended before.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while not writing.done():
            with suppress(BlockingIOError):
                os.read(reader, _MAX_OUTPUT)
            await asyncio.wait([writing], timeout=0.01)
    finally:
        os.close(reader)
    await process.wait()


def _message(output: str, directory: str) -> str:
    """Return the error in Envoy's output, without private keys."""
    line = output.partition("error initializing configuration")[2] or output
    line = line.replace(f" '{directory}/bootstrap.pb': ", "", 1)
    if _CONSTRAINT in line:
        # Envoy quotes the bootstrap before, and names the way to the resource.
        steps = (
            line.rpartition(_CONSTRAINT)[2].strip().removeprefix("(").removesuffix(")").split(" | caused by ")
        )
        steps = [step for step in steps if not step.startswith(_OUTER)]
        line = f"{_CONSTRAINT} ({' | caused by '.join(steps)})"
    return line.partition("-----BEGIN")[0].strip()[:_MAX_MESSAGE]
