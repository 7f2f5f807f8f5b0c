"""The HTTP API below /api/v1, and who may see it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest

from tests.cli.commands import xds
from tests.cli.serve_process import ServeProcess, serving
from tests.page.meshes import INVALID, NODE_ID, STRICT, connected_sidecar, istio_task
from tests.support.waiting import eventually
from xds.mesh.controlplane.page import api
from xds.mesh.controlplane.page.access import SECURITY_HEADERS, Access, check_token
from xds.mesh.controlplane.page.api import MAX_COMPUTATIONS
from xds.mesh.controlplane.page.events import MAX_STREAMS
from xds.server.http import HttpClient

TOKEN = "a-token-of-many-characters"
VIEWS = ("proxies", "problems", "rollouts", "map", "migration", "access")
MALFORMED = ("Basic é", "Basic \xff", "Bearer é", "Bearer \xff")
REMOTE = {"X-Forwarded-For": "192.0.2.1"}
"""A header that makes a request of this machine count as one of another machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServeProcess]:
    folder = istio_task(tmp_path_factory.mktemp("api") / "mesh")
    (folder / "invalid.yaml").write_text(INVALID)
    with serving(folder) as process, connected_sidecar(process.xds):
        yield process


def fetch(server: ServeProcess, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.admin}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, dict(response.headers), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def view(server: ServeProcess, name: str, /, **query: str) -> dict:
    status, _, text = fetch(server, f"/api/v1/{name}?{urlencode(query)}")
    assert status == 200, text
    return json.loads(text)


def command(server: ServeProcess, *arguments: str) -> dict:
    return json.loads(xds(*arguments, "-o", "json", "--xds-address", f"127.0.0.1:{server.xds}").stdout)


def without_ages(value):
    """Drop what changes with time: timestamps of responses, and durations in texts."""
    if isinstance(value, dict):
        return {name: without_ages(item) for name, item in value.items() if name != "time"}
    if isinstance(value, list):
        return [without_ages(item) for item in value]
    return re.sub(r"\b(\d+m)?\d+s\b|\b\d+m\b", "Ns", value) if isinstance(value, str) else value


# --- the same data as the gRPC services ---------------------------------------------------------------------


def test_messages_are_those_of_the_grpc_services(server):
    def are_equal(shown: Callable[[], dict], *arguments: str) -> None:
        """Compare until both are from the same time: meanwhile, objects without effect become problems."""
        server.wait_for(lambda: without_ages(shown()) == without_ages(command(server, *arguments)))

    def proxies() -> dict:
        listed = view(server, "proxies", unsynced="true")
        (proxy,) = listed["proxies"]
        assert proxy["state"] == "waiting"
        assert "CDS waiting" in proxy["status"]
        for name in ("state", "status", "certificate", "words"):
            del proxy[name]
        for kind in proxy["streams"][0]["types"]:
            del kind["status"]
        return listed

    explained = {"client": "sleep.full", "service": "httpbin.full"}
    are_equal(lambda: view(server, "explain", **explained), "explain", *explained.values())
    are_equal(lambda: view(server, "problems"), "problems")
    are_equal(lambda: view(server, "rollouts"), "status", "--rollout")
    are_equal(proxies, "status")


def test_configuration_is_listed_and_redacted(server):
    listed = view(server, "config", proxy=NODE_ID)["resources"]
    assert {row["type"] for row in listed} == {"CDS"}
    assert any("Service full/httpbin" in source for row in listed for source in row["sources"])
    name = next(row["name"] for row in listed if "httpbin.full" in row["name"])
    content = view(server, "config", proxy=NODE_ID, type="CDS", name=name)["content"]
    assert content["name"] == name


def test_xds_config_prints_the_same_list(server):
    words = ("config", "slee", "--xds-address", f"127.0.0.1:{server.xds}")
    rows = xds(*words).stdout.splitlines()
    assert rows[0].split() == ["TYPE", "NAME", "STATE", "MADE", "FROM"]
    listed = view(server, "config", proxy=NODE_ID)["resources"]
    shown = {(row["name"], row["state"], ", ".join(row["sources"]) or "-") for row in listed}
    assert len(listed) == len(shown) == len(rows) - 1
    assert {tuple(re.split(" {2,}", row, maxsplit=3)[1:]) for row in rows[1:]} == shown
    assert {row.split()[0] for row in rows[1:]} == {"clusters"}
    printed = json.loads(xds(*words, "-o", "json").stdout)["clusters"]
    assert {cluster["name"] for cluster in printed} == {row["name"] for row in listed}
    assert len(xds(*words, "--type", "listeners").stdout.splitlines()) == 1
    missing = xds(*words, "--name", "x")
    assert (missing.exit_code, missing.stderr) == (2, "xds: sleep.full is not served a resource x\n")


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("map?only=x", 400, "only must be one of possible, problems, plaintext, denied, not 'x'"),
        ("map?width=x", 400, "width must be a number of pixels, not 'x'"),
        ("problems?notices=x", 400, "notices must be true or false, not 'x'"),
        ("explain?client=x&service=httpbin.full", 404, "pod x not found"),
        ("explain?client=sleep.full&service=x", 404, "service x not found"),
        ("config?proxy=x", 404, "no proxy with the node ID 'x' is connected"),
        (f"config?proxy={NODE_ID}&type=CDS&name=x", 404, "the proxy is not served a resource CDS x"),
        (f"config?proxy={NODE_ID}&type=XDS&name=x", 404, "the proxy is not served a resource XDS x"),
    ],
)
def test_invalid_requests_get_an_error(server, path, status, error):
    code, headers, text = fetch(server, f"/api/v1/{path}")
    assert code == status
    assert error in json.loads(text)["error"]
    assert SECURITY_HEADERS.items() <= headers.items()


def test_requests_only_read(server):
    for name in VIEWS:
        connection = http.client.HTTPConnection("127.0.0.1", server.admin)
        connection.request("POST", f"/api/v1/{name}", body="{}")
        response = connection.getresponse()
        response.read()
        assert response.status == 405
        connection.close()


def test_migration_says_how_much_was_observed(server, tmp_path):
    seen = view(server, "migration")["observation"]
    assert (seen["enabled"], seen["mayBeOnOtherReplica"], seen["dropped"]) == (True, False, "0")
    assert seen["since"] < seen["time"]
    with serving(istio_task(tmp_path / "mesh"), "--observe=false") as process:
        assert view(process, "migration")["observation"]["enabled"] is False


async def test_cpu_time_of_a_view_is_charged_to_its_client(monkeypatch):
    async def read(*_):
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        return {}

    monkeypatch.setattr(api, "client_of", lambda request: request.client)
    page = api.Page(Access())
    page.start(object())
    client = HttpClient("192.0.2.1")
    await page._json(read)(SimpleNamespace(query={}, client=client))
    assert client.share._used > 0.1


async def test_few_views_are_computed_at_a_time(monkeypatch):
    running, done, release = [], [], asyncio.Event()

    async def read(*_):
        running.append(1)
        await release.wait()
        running.pop()
        return {}

    monkeypatch.setattr(api, "client_of", lambda request: request.client)
    page = api.Page(Access())
    page.start(object())
    respond = page._json(read)

    async def request(address: str) -> None:
        response = await respond(SimpleNamespace(query={}, client=HttpClient(address)))
        done.append(response.status)
        assert len(running) <= MAX_COMPUTATIONS

    tasks = [asyncio.create_task(request(address)) for address in ("192.0.2.1", "192.0.2.2") * 5]
    await eventually(lambda: len(running) >= MAX_COMPUTATIONS)
    assert len(running) == MAX_COMPUTATIONS
    release.set()
    await asyncio.gather(*tasks)
    assert done == [200] * 10


async def test_view_of_access_is_computed_once_for_all_clients(monkeypatch):
    running, release = [], threading.Event()

    def compute(mesh: object, traffic: object) -> dict:
        running.append(mesh)
        assert release.wait(60)
        return {"rows": []}

    async def listed(_: object) -> None: ...

    monkeypatch.setattr(api.access_view, "view", compute)
    monkeypatch.setattr(api, "client_of", lambda request: request.client)
    traffic = SimpleNamespace(list=listed, traffic=False, connected=frozenset())
    page = api.Page(Access())
    page.start(SimpleNamespace(controller=SimpleNamespace(mesh="mesh"), traffic=traffic))
    respond = page._json(page._access_view, page._access_rows.get)
    requests = [
        asyncio.create_task(respond(SimpleNamespace(query={}, client=HttpClient(f"192.0.2.{number}"))))
        for number in range(20)
    ]
    await eventually(lambda: running)
    for request in requests[:10]:  # Their clients have disconnected.
        request.cancel()
    release.set()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert [answer.text for answer in answers[10:]] == ['{"rows":[]}'] * 10
    assert running == ["mesh"]
    assert (await respond(SimpleNamespace(query={}, client=HttpClient("192.0.2.1")))).status == 200
    assert running == ["mesh"], "it is up to date"


# --- files --------------------------------------------------------------------------------------------------


def test_files_need_no_inline_code_and_no_other_site(server):
    status, headers, text = fetch(server, "/")
    assert status == 200
    assert SECURITY_HEADERS.items() <= headers.items()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\bsrc=)", text)
    files = re.findall(r'(?:href|src)="(page/[^"]+)"', text)
    assert "page/app.js" in files
    for name in files:
        status, headers, text = fetch(server, f"/{name}")
        assert status == 200
        assert "charset=utf-8" in headers["Content-Type"]
        assert SECURITY_HEADERS.items() <= headers.items()
        assert not re.search(r"https?://(?!www\.w3\.org/)", text)


# --- access -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/api/v1/proxies", "/api/v1/events"])
def test_foreign_host_is_refused(server, path):
    assert fetch(server, path, Host="evil.example:15014")[0] == 421
    assert fetch(server, "/healthz", Host="evil.example")[0] == 200
    if path != "/api/v1/events":
        for host in ("localhost", f"127.0.0.1:{server.admin}", "[::1]:1", "xds"):
            assert fetch(server, path, Host=host)[0] == 200


def test_pages_of_other_sites_are_refused(server):
    assert fetch(server, "/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200
    for site in ("cross-site", "same-site"):
        assert fetch(server, "/api/v1/proxies", **{"Sec-Fetch-Site": site})[0] == 403
    assert fetch(server, "/api/v1/proxies", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_only_local_clients_are_admitted_without_a_token(server):
    for path in ("/", "/api/v1/proxies"):
        status, _, text = fetch(server, path, **REMOTE)
        assert status == 403
        assert "--admin-token" in text
    assert fetch(server, "/metrics", **REMOTE)[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "Via",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-Host",
        "x-forwarded-proto",
        "X-Real-IP",
    ],
)
def test_clients_of_a_reverse_proxy_are_not_local(server, name):
    assert fetch(server, "/", **{name: "x"})[0] == 403


def test_token_admits_clients(tmp_path):
    folder = istio_task(tmp_path / "mesh")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    basic = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    with serving(folder, "--admin-token", tmp_path / "token") as process:
        assert fetch(process, "/api/v1/proxies")[0] == 401
        assert fetch(process, "/api/v1/proxies", Authorization=f"Bearer {TOKEN}")[0] == 200
        status, headers, _ = fetch(process, "/", **REMOTE)
        assert (status, headers["WWW-Authenticate"][:5]) == (401, "Basic")
        for credentials in (
            "Bearer x",
            "Basic x",
            f"Basic {basic[:-4]}",
            "Bearer",
            f"Digest {TOKEN}",
            "é",
            *MALFORMED,
        ):
            assert fetch(process, "/", Authorization=credentials, **REMOTE)[0] == 401
        for credentials in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", f"Basic {basic}"):
            assert fetch(process, "/", Authorization=credentials, **REMOTE)[0] == 200
        log = process.log.read_text()
        assert TOKEN not in log
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("short", "has 5 characters; at least 16"),
        ("x" * 15 + "é", "printable ASCII"),
        ("x y" * 9, "without spaces"),
    ],
)
def test_unusable_token_is_an_error(tmp_path, text, problem):
    with pytest.raises(ValueError, match=problem):
        check_token(text)
    (tmp_path / "token").write_text(text)
    arguments = ("serve", "--manifests", str(tmp_path), "--admin-token", str(tmp_path / "token"))
    done = subprocess.run(
        [sys.executable, "-m", "xds", *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert problem in done.stderr


# --- events -------------------------------------------------------------------------------------------------


class Listener:
    """An event stream."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request("GET", "/api/v1/events")
        self.response = self._connection.getresponse()

    def event(self) -> tuple[str, dict]:
        """Return the next event."""
        lines: list[str] = []
        while True:
            line = self.response.readline().decode().strip()
            if line.startswith(("event:", "data:")):
                lines.append(line.partition(": ")[2])
            if not line and lines:
                return lines[0], json.loads(lines[1])

    def close(self) -> None:
        self.response.close()
        self._connection.close()


def test_events_name_the_changed_views(tmp_path):
    folder = istio_task(tmp_path / "mesh")
    with serving(folder) as process:
        listener = Listener(process.admin)
        assert SECURITY_HEADERS.items() <= dict(listener.response.headers).items()
        assert listener.event() == ("hello", {})
        view(process, "map")
        (folder / "strict.yaml").write_text(STRICT)
        seen: set[str] = set()

        def is_strict() -> bool:
            return any(edge["predicted"]["result"] == "fails" for edge in view(process, "map")["edges"])

        # The first event can name the map because it was computed for the first time.
        while not ({"map", "migration", "access"} <= seen and is_strict()):
            name, data = listener.event()
            assert name == "changed"
            seen |= set(data["views"])
        with connected_sidecar(process.xds):
            while "proxies" not in seen:
                seen |= set(listener.event()[1]["views"])
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(60) == 0
        assert b"event: changed" not in listener.response.read().split(b"\n\n")[-1]
        listener.close()


def test_streams_of_events_are_limited(server):
    listeners = [Listener(server.admin) for _ in range(MAX_STREAMS)]
    assert {listener.response.status for listener in listeners} == {200}
    assert fetch(server, "/api/v1/events")[0] == 503
    for listener in listeners:
        listener.close()
    server.wait_for(lambda: _is_admitted(server))


def _is_admitted(server: ServeProcess) -> bool:
    listener = Listener(server.admin)
    listener.close()
    return listener.response.status == 200
