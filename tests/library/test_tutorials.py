"""The library's tutorials, followed by a reader who types all of each page, with a real Envoy."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.library.programs import TIMEOUT
from tests.support.clients import Client
from tests.support.loopback import free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
PORTS = (8001, 8002, 8080, 9901, 10000, 18000)
_PORT = re.compile(rf"\b(?:{'|'.join(map(str, PORTS))})\b")
ENVOY = "envoy --disable-hot-restart --log-level warning -c envoy.yaml"
_BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Reader:
    """Saves the files of a tutorial and types its commands, in their order, with ports of its own."""

    def __init__(self, page: str, folder: Path) -> None:
        self._folder = folder
        self._ports = {port: free_port() for port in PORTS}
        text = (ROOT / "docs" / "tutorials" / page).read_text()
        self._blocks = _BLOCK.findall(self.local(text))
        (copied,) = re.findall(r"^cp (.*) ~/xds-tutorial$", text, re.MULTILINE)
        (folder / Path(copied).name).write_text(self.local((ROOT / copied).read_text()))
        self._next = 0
        self.running: dict[str, Process] = {}
        """Programs by their command."""

    def local(self, text: str) -> str:
        """Replace the ports of the page by the reader's."""
        return _PORT.sub(lambda port: str(self._ports[int(port[0])]), text)

    async def follow(self, *, until: str = "") -> None:
        """Do all that the page says, up to a command and its output."""
        done = False
        while not done and self._next < len(self._blocks):
            kind, name, text = self._blocks[self._next]
            self._next += 1
            if name:
                (self._folder / name).write_text(text)
            elif kind == "console":
                for command, output in _commands(text):
                    await self.type(command, output)
                    done |= bool(until) and command.startswith(until)
        assert done or not until

    async def type(self, command: str, output: list[str]) -> None:
        """Run a command, and check its output. A program that runs already is restarted."""
        program = command.removesuffix(" &")
        if not program.startswith(("python ", "envoy ")):
            process = await self._start(program)
            text, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
            assert text.decode().splitlines() == output, command
            return
        if program in self.running:
            await self.stop(program)
        self.running[program] = await self._start(f"exec {program}")
        for line in output:
            await self.wait_for(program, re.sub(r"\d+", r"\\d+", re.escape(line)).replace(r"\.\.\.\ ", r".*"))
        if name := re.match(r"python (?:app.py \w+|-m http.server) (\d+)", program):
            await eventually(lambda: self._answers(int(name[1])), what=program)
        if program.startswith("envoy"):
            await eventually(lambda: self._answers(self._ports[10000]), what="Envoy serves")

    async def _answers(self, port: int) -> bool:
        return (await Client().get(f"http://127.0.0.1:{port}/")).code == "200"

    async def _start(self, command: str) -> Process:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        quiet = command.replace("curl ", "curl -s ")
        return await asyncio.create_subprocess_exec(
            "bash", "-c", quiet, cwd=self._folder, stdout=PIPE, stderr=STDOUT, env={"PATH": path}
        )  # fmt: skip

    async def wait_for(self, program: str, pattern: str) -> str:
        """Read the output of a program until a line matches."""
        lines = []
        stdout = self.running[program].stdout
        assert stdout
        async with asyncio.timeout(TIMEOUT):
            while line := (await stdout.readline()).decode():
                lines.append(line)
                if re.search(pattern, " ".join(line.split())):
                    return line
        raise AssertionError(f"no line of {program} matches {pattern!r}: {''.join(lines)}")

    async def stop(self, program: str) -> str:
        """Press Ctrl+C, and return the rest of the output."""
        process = self.running.pop(program)
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        text, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
        return text.decode()


def _commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of a block, with the lines that they print."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *output = part.splitlines()
        yield command, output


@asynccontextmanager
async def reading(page: str, folder: Path) -> AsyncIterator[Reader]:
    reader = Reader(page, folder)
    try:
        yield reader
    finally:
        for program in tuple(reader.running):
            await reader.stop(program)


@pytest.mark.envoy
async def test_first_server_serves_an_envoy(tmp_path):
    async with reading("library.md", tmp_path) as reader:
        await reader.follow()
        output = await reader.stop("python first.py")
        for event in ("Connected", "Subscribed", "Acked"):
            assert f"envoy-1 {event}(" in output
        assert "Traceback" not in output


@pytest.mark.envoy
async def test_blue_green_switches_under_load_and_rolls_back(tmp_path):
    async with reading("blue-green.md", tmp_path) as reader:
        await reader.follow(until=reader.local("curl -X PUT 127.0.0.1:8080/green/100"))
        load, counts = "python load.py", []
        # On a busy machine, a second can pass without any answer.
        while len(counts) < 3 or counts[-1]["blue"] != counts[-2]["blue"] or counts[-1] == counts[-2]:
            counts.append(ast.literal_eval(await reader.wait_for(load, "blue")))
        assert counts[-1]["green"] > counts[-2]["green"]
        await reader.follow(until=reader.local("curl -X PUT '127.0.0.1:8080/green/10?"))
        last = ast.literal_eval(await reader.wait_for(load, "blue"))
        while sum(last.values()) <= 100:
            last = ast.literal_eval(await reader.wait_for(load, "blue"))
        rest = await reader.stop(load)
        assert last.keys() == {"blue", "green"}
        for unexpected in ("failed", "Traceback"):
            assert unexpected not in rest

        # An Envoy that starts after the rejection gets the routes from before.
        await reader.type(ENVOY, [])
        await reader.type(reader.local("curl '127.0.0.1:10000/beta('"), ["green"])
        for percent in ("150", "-5", "abc", "007"):
            command = reader.local(f"curl -X PUT 127.0.0.1:8080/green/{percent} -w '%{{http_code}}'")
            await reader.type(command, ["the percentage is not a number from 0 to 100", "422"])

        await reader.follow()
        log = await reader.stop("python control.py")
        assert "proxy rejected configuration" in log
        assert "Traceback" not in log
