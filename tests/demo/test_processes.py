"""Child processes are stopped, however the demo ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xds.demo.processes import PDEATHSIG_SCRIPT, DemoError, Processes

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('on', flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie counts as dead: its new parent has not reaped it yet.
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def eventually(condition, within=60.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_exit_stops_all_processes(tmp_path):
    with Processes(tmp_path) as processes:
        pids = [processes.start(name, "/bin/sleep", "600").process.pid for name in ("a", "b")]
        assert all(map(alive, pids))
    assert not any(map(alive, pids))


def test_process_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("xds.demo.processes.STOP_TIMEOUT", 0.1)
    with Processes(tmp_path) as processes:
        running = processes.start("stubborn", sys.executable, "-c", STUBBORN)
        eventually(lambda: "on" in running.log_tail())
    assert running.process.returncode == -signal.SIGKILL


def test_exception_stops_all_processes(tmp_path):
    pids = []

    def fail():
        with Processes(tmp_path) as processes:
            pids.append(processes.start("a", "/bin/sleep", "600").process.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(map(alive, pids))


def test_child_is_killed_with_its_parent():
    program = f"""
import os, subprocess, sys, time
script = {str(PDEATHSIG_SCRIPT)!r}
child = subprocess.Popen([sys.executable, "-I", "-S", script, str(os.getpid()), "/bin/sleep", "600"])
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with parent:
        child = int(parent.stdout.readline())
        eventually(lambda: b"sleep\x00600" in Path(f"/proc/{child}/cmdline").read_bytes())
        parent.kill()
    eventually(lambda: not alive(child))


def test_process_of_a_dead_parent_does_not_start():
    assert subprocess.run([sys.executable, PDEATHSIG_SCRIPT, "1", "/bin/true"], check=False).returncode == 1


def test_wait_ends_when_nothing_is_missing(tmp_path):
    answers = iter(["much", "little", ""])
    with Processes(tmp_path) as processes:
        processes.wait_for("a thing", lambda: next(answers))
    assert next(answers, None) is None


def test_wait_timeout_reports_what_is_missing(tmp_path):
    with Processes(tmp_path) as processes, pytest.raises(DemoError, match=r"a thing: a part of it"):
        processes.wait_for("a thing", lambda: "a part of it", timeout=0.05)


def test_wait_fails_with_the_log_of_an_exited_process(tmp_path):
    with Processes(tmp_path) as processes:
        processes.start("the one", sys.executable, "-c", "print('out of luck'); raise SystemExit(3)")
        with pytest.raises(DemoError, match="the one exited with status 3:\nout of luck"):
            processes.wait_for("a thing", lambda: "everything", timeout=60)


def test_stopped_process_is_not_checked(tmp_path):
    with Processes(tmp_path) as processes:
        processes.stop(processes.start("a", "/bin/sleep", "600"))
        processes.check()
