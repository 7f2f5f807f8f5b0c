"""httpbin, as the demo starts it."""

import sys
import time

import pytest

from tests.support.loopback import free_port
from xds.demo.curl import curl
from xds.demo.play import Answer
from xds.demo.pods import find_not_listening
from xds.demo.processes import Processes

pytest.importorskip("httpbin", reason="the extra `demo` is not installed")

WHERE = ("127.10.9.3", free_port())


@pytest.fixture(scope="module")
def httpbin(tmp_path_factory):
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        processes.start("httpbin", sys.executable, "-m", "xds.demo.httpbin", WHERE[0], str(WHERE[1]))
        processes.wait_for("httpbin", lambda: find_not_listening({"httpbin": WHERE}), timeout=60)
        yield


@pytest.mark.usefixtures("httpbin")
def test_httpbin_answers():
    url = "http://httpbin.full:8000/headers"
    how = {"source": "127.10.9.4", "to": WHERE, "timeout": 30.0}
    assert curl(url, **how) == Answer("200")
    assert curl("http://httpbin.full:8000/status/503", **how) == Answer("503")


@pytest.mark.parametrize("attempt", range(5))
def test_httpbin_stops_on_sigterm_once_it_listens(tmp_path, attempt):
    where = (f"127.10.9.{5 + attempt}", free_port())
    with Processes(tmp_path) as processes:
        httpbin = processes.start(
            "httpbin", sys.executable, "-m", "xds.demo.httpbin", where[0], str(where[1])
        )
        deadline = time.monotonic() + 60
        while find_not_listening({"httpbin": where}):  # without a delay, unlike `wait_for`
            assert time.monotonic() < deadline
            processes.check()
        httpbin.process.terminate()
        assert httpbin.process.wait(60) == 0
