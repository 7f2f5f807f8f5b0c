"""`xds demo` with real Envoys: its output, and that it leaves no process or file behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from xds.demo.play import AUTHORIZATION_STEPS, STEPS, IdentityShare

pytest.importorskip("envoy", reason="the extra `demo` is not installed")
pytest.importorskip("httpbin", reason="the extra `demo` is not installed")

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(600)]


class Demo:
    """A running demo and all its processes."""

    def __init__(self, folder, *options):
        self.mark = f"XDS_DEMO_TEST={uuid.uuid4()}"
        self.folder = folder
        name, value = self.mark.split("=")
        with (folder.parent / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xds", "demo", *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, name: value, "TMPDIR": str(folder)},
                text=True,
            )

    @property
    def progress(self):
        return (self.folder.parent / "stderr").read_text()

    def wait_for_output(self, text, within=200.0):
        """Wait for a text on stderr."""
        deadline = time.monotonic() + within
        while text not in self.progress:
            assert self.process.poll() is None, self.progress
            assert time.monotonic() < deadline, self.progress
            time.sleep(0.02)

    def wait_for_exit(self, within=300.0):
        """Wait until the demo exits; return the exit status and stdout."""
        output, _ = self.process.communicate(timeout=within)
        return self.process.returncode, output

    def find_processes(self):
        """Return the command lines of running processes by PID.

        Each process inherits a variable that marks it.
        """
        processes = {}
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environment.read_bytes().split(b"\0"):
                    command = (environment.parent / "cmdline").read_text().replace("\0", " ")
                    processes[int(environment.parent.name)] = command
            except OSError:
                continue
        return processes

    def pid_of(self, text, within=60.0):
        """Return the PID of the process with a text in its command line, which is empty during an exec."""
        deadline = time.monotonic() + within
        while True:
            running = self.find_processes()
            processes = [pid for pid, command in running.items() if text in command]
            if processes:
                (pid,) = processes
                return pid
            assert time.monotonic() < deadline, running
            time.sleep(0.02)

    def has_no_processes(self, within=60.0):
        """Wait until no process runs: the kernel needs a moment to kill what the demo could not stop."""
        deadline = time.monotonic() + within
        while (processes := self.find_processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes == {}
        return True


@pytest.fixture
def start(tmp_path, alone):
    folder = tmp_path / "tmp"
    folder.mkdir()
    demos = []

    def start(*options):
        demos.append(Demo(folder, *options))
        return demos[-1]

    yield start
    for demo in demos:
        demo.process.kill()
        demo.process.communicate()


@pytest.mark.parametrize(
    ("option", "steps", "summary"),
    [
        ("--sotw", STEPS, "matches the Istio task: 9 steps, "),
        (
            "--authorization",
            (*STEPS, *AUTHORIZATION_STEPS),
            "matches the Istio task and the AuthorizationPolicy: 11 steps, ",
        ),
    ],
)
def test_demo_matches_the_istio_task(start, option, steps, summary):
    demo = start("-o", "json", option)
    status, output = demo.wait_for_exit()
    assert status == 0, demo.progress
    rows = {(row["step"], row["from"], row["to"]): row for row in json.loads(output)}
    expected = {(step.name, *pair): (pair, e) for step in steps for pair, e in step.expected.items()}
    assert rows.keys() == expected.keys()
    for key, (pair, e) in expected.items():
        (code,) = rows[key]["codes"]
        assert code == e.code, key
        assert rows[key]["codes"][code] >= 10, key
        assert rows[key]["identities"] == (
            [] if e.identity_share is IdentityShare.NONE else [pair.identity]
        ), key
    assert summary in demo.progress
    assert demo.has_no_processes()
    assert list(demo.folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_everything(start, number):
    demo = start()
    demo.wait_for_output("4/9")
    demo.process.send_signal(number)
    status, _ = demo.wait_for_exit()
    assert status == 128 + number
    assert demo.has_no_processes()
    assert list(demo.folder.iterdir()) == []


def test_killed_demo_leaves_nothing_running(start):
    demo = start()
    demo.wait_for_output("1/9")
    assert len(demo.find_processes()) > 7
    demo.process.kill()
    demo.wait_for_exit()
    assert demo.has_no_processes()


def test_exited_process_fails_the_demo_and_logs_remain(start):
    demo = start()
    demo.wait_for_output("1/9")
    os.kill(demo.pid_of("sleep.full.json"), signal.SIGKILL)
    status, _ = demo.wait_for_exit()
    assert status == 1
    assert "sidecar of sleep.full exited with status -9" in demo.progress
    assert demo.has_no_processes()
    assert list(demo.folder.glob("*/logs/sidecar-of-sleep.full.log"))


def requests_seen(page: str) -> int:
    with urllib.request.urlopen(f"{page}api/v1/explain?client=sleep.legacy&service=httpbin.full") as response:
        return sum(int(edge["requestsPerDay"]) for edge in json.load(response)["observed"])


def test_keep_suggests_commands_until_ctrl_c(start):
    demo = start("--keep")
    demo.wait_for_output("The demo runs until Ctrl-C")
    demo.wait_for_output("127.10.1.2:15000")
    (proxy,) = (line for line in demo.progress.splitlines() if "curl --proxy" in line)
    body = subprocess.run(proxy.split(), check=True, capture_output=True, text=True).stdout
    assert "URI=spiffe://cluster.local/ns/full/sa/sleep" in body
    (status_command,) = (line for line in demo.progress.splitlines() if "xds status" in line)
    page = next(line.strip() for line in demo.progress.splitlines() if line.startswith("  http://127.0.0.1:"))
    with urllib.request.urlopen(page) as response:
        assert "<title>xds</title>" in response.read().decode()
    _, *arguments = status_command.split()
    done = subprocess.run(
        [sys.executable, "-m", "xds", *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, *rows = done.stdout.partition("\n\n")[0].splitlines()
    assert {row.split()[0] for row in rows} == {
        "httpbin.full",
        "sleep.full",
        "httpbin.partial",
    }
    before = requests_seen(page)
    while requests_seen(page) == before:  # Sidecars report every 10 s.
        time.sleep(0.5)
    demo.process.send_signal(signal.SIGINT)
    status, output = demo.wait_for_exit()
    assert (status, "matches the Istio task" in output) == (0, True)
    assert demo.has_no_processes()
    assert list(demo.folder.iterdir()) == []


TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "least-privilege.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.-]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_least_privilege_tutorial(start, tmp_path):
    demo = start("--keep")
    demo.wait_for_output("admin interfaces")
    (mesh,) = re.findall(r"xds reach --manifests (\S+)", demo.progress)
    (address,) = re.findall(r"xds status --xds-address (\S+)", demo.progress)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "MESH": mesh, "XDS_ADDRESS": address, "HOME": str(tmp_path)}

    def run(command):
        quiet = command.replace("curl ", "curl -s ", 1)
        done = subprocess.run(
            quiet, shell=True, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    page, commands = TUTORIAL.read_text(), 0
    for kind, name, text in BLOCK.findall(page):
        if name:
            (tmp_path / name).write_text(text)
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if kind == "console" else ():
            command, *lines = part.splitlines()
            # A reader types slower than files are read, and sidecars report every 10 s.
            deadline = time.monotonic() + 60
            while not re.fullmatch(pattern(lines), output := run(command)):
                assert time.monotonic() < deadline, f"{command}\n{output}"
                time.sleep(0.2)
            commands += 1
    assert commands == page.count("\n$ ")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait_for_exit()[0] == 0


def pattern(lines):
    """Return a regular expression for lines of output: "..." stands for any lines, and times differ.

    So does the number of flows: not every request is in each period.
    """
    found = ""
    for line in lines:
        exact = r"\s+".join(map(re.escape, line.split()))
        measured = re.sub(r"\d+", r"[\\d.]+", exact) if line.endswith(" ago") else exact
        measured = re.sub(r"\d{4}\\-\d\d\\-\d\d(\\s\+)\d\d:\d\d", r"[-\\d]+\1[\\d:]+", measured)
        measured = re.sub(r"\d+(\\s\+recorded\\s\+flows)", r"\\d+\1", measured)
        found += r"(?:.*\n)*" if line == "..." else rf"{measured}\s*\n?"
    return found


def test_address_in_use_exits_with_2(start):
    with socket.create_server(("127.10.1.1", 8080)):
        demo = start()
        status, output = demo.wait_for_exit()
    assert (status, output) == (2, "")
    assert "httpbin.full cannot listen on 127.10.1.1:8080" in demo.progress
    assert demo.has_no_processes()
