"""Discovery over REST, on a real socket."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from structlog.testing import capture_logs

from tests.server.proxies import OneForAll
from xds.codec import encode
from xds.protocol.session import Variant
from xds.server import Refused
from xds.server.rest import MAX_REQUEST_SIZE, TYPES_BY_PATH, RestServer
from xds.snapshot import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

NODE = {"id": "sidecar~127.0.0.1~client.ns~ns.svc.cluster.local"}


def snapshot(*names: str, alt: str = "") -> Snapshot:
    return Snapshot(
        {
            CLUSTER: ResourceSet(
                Resource.of(CLUSTER, name, encode(Cluster(name=name, alt_stat_name=alt))) for name in names
            ),
            ENDPOINT: ResourceSet(
                Resource.of(ENDPOINT, name, encode(ClusterLoadAssignment(cluster_name=name)))
                for name in names
            ),
        }
    )


@pytest.fixture
def proxies() -> OneForAll:
    return OneForAll(snapshot("a", "b"))


@pytest.fixture
async def server(proxies) -> AsyncIterator[RestServer]:
    server = RestServer(proxies, "127.0.0.1", 0, identifier="xds-test", first_snapshot_timeout=0.05)
    await server.start()
    yield server
    await server.stop()


class Poller:
    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._base = f"http://127.0.0.1:{port}"

    async def send(self, path: str, body: bytes | io.BytesIO, method: str = "POST") -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self._session.request(method, self._base + path, data=body, headers=headers) as response:
            return response.status, await response.read()

    async def ask(self, what: str, *names: str, **fields: object):
        request = {"node": NODE, "resource_names": list(names), **fields}
        status, body = await self.send(f"/v3/discovery:{what}", json.dumps(request).encode())
        return status, json.loads(body) if status == 200 else body.decode()


@pytest.fixture
async def poller(server) -> AsyncIterator[Poller]:
    async with aiohttp.ClientSession() as session:
        yield Poller(session, server.port)


def test_r49_paths_are_those_of_envoys_protos():
    assert list(TYPES_BY_PATH) == [
        "/v3/discovery:clusters",
        "/v3/discovery:endpoints",
        "/v3/discovery:listeners",
        "/v3/discovery:routes",
        "/v3/discovery:scoped-routes",
        "/v3/discovery:secrets",
        "/v3/discovery:runtime",
        "/v3/discovery:extension_configs",
    ]


async def test_r49_poll_returns_json_with_expanded_any_messages(proxies, poller):
    status, response = await poller.ask("clusters")
    assert status == 200
    assert response == {
        "version_info": response["version_info"],
        "resources": [{"@type": CLUSTER, "name": "a"}, {"@type": CLUSTER, "name": "b"}],
        "type_url": CLUSTER,
        "nonce": response["version_info"],
        "control_plane": {"identifier": "xds-test"},
    }
    assert proxies.streams[0].peer.startswith("ipv4:127.0.0.1:")
    assert (proxies.streams[0].variant, proxies.streams[0].type_url) == (Variant.SOTW, CLUSTER)
    assert proxies.subscribers == []


async def test_json_accepts_both_field_spellings_and_unknown_fields(poller):
    request = {"node": NODE | {"newer": [1]}, "resourceNames": ["b"], "typeUrl": ENDPOINT, "newer": {}}
    status, body = await poller.send("/v3/discovery:endpoints", json.dumps(request).encode())
    assert status == 200
    assert [resource["cluster_name"] for resource in json.loads(body)["resources"]] == ["b"]


async def test_r49_poll_gets_304_until_a_change(proxies, poller):
    _, response = await poller.ask("clusters")
    version = response["version_info"]
    assert await poller.ask("clusters", version_info=version) == (304, "")
    proxies.publish(snapshot("a", "b", alt="other"))
    status, changed = await poller.ask("clusters", version_info=version)
    assert status == 200
    assert changed["version_info"] != version
    assert {resource["alt_stat_name"] for resource in changed["resources"]} == {"other"}


async def test_poll_for_other_names_does_not_get_304(poller):
    _, response = await poller.ask("endpoints", "a")
    version = response["version_info"]
    assert (await poller.ask("endpoints", "a", version_info=version))[0] == 304
    status, response = await poller.ask("endpoints", "a", "b", version_info=version)
    assert status == 200
    assert len(response["resources"]) == 2


async def test_type_without_resources_is_an_empty_response(poller):
    for what, names in (("endpoints", ("none",)), ("runtime", ()), ("secrets", ("default",))):
        status, response = await poller.ask(what, *names)
        assert status == 200
        assert "resources" not in response
        assert response["version_info"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b"{", "line 1 column 2"),
        (b"\xff", "invalid start byte"),
        (b"null", "NoneType"),
        (b"[]", "node.id"),
        (b'"x"', "node.id"),
        (b'{"node": {"id": 5}}', "Failed to parse id field"),
        (b'{"node": {"id": "x"}, "resource_names": "a"}', "resource_names must be in []"),
        (b'{"node": {"cluster": "x"}}', "node.id"),
        (b'{"node": {"id": "x"}, "type_url": "y"}', "not y"),
        (b"[" * 20_000, "nested too deeply"),
        (b'{"node": {"id": ' + b"1" * 5000 + b"}}", "a number with more than 32 characters"),
    ],
)
async def test_invalid_request_is_400_with_the_reason(proxies, poller, body, problem):
    with capture_logs() as logs:
        status, text = await poller.send("/v3/discovery:clusters", body)
    assert status == 400
    assert problem in text.decode()
    assert [line["event"] for line in logs] == ["malformed request"]
    assert proxies.streams == []


async def test_unknown_paths_and_methods_are_errors(poller):
    status, text = await poller.send("/v3/discovery:cluster", b"{}")
    assert status == 404
    assert b"/v3/discovery:clusters" in text
    status, text = await poller.send("/v3/discovery:clusters", b"", method="GET")
    assert (status, text) == (405, b"/v3/discovery:clusters accepts POST, not GET\n")


async def test_request_beyond_the_limit_is_413(poller):
    assert (await poller.send("/v3/discovery:clusters", io.BytesIO(bytes(MAX_REQUEST_SIZE + 1))))[0] == 413


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.ABORTED, 500),
    ],
)
async def test_refused_proxy_gets_the_reason(proxies, poller, code, status):
    proxies.refusal = Refused(code, "not you")
    assert await poller.ask("clusters") == (status, "not you\n")


async def test_r59_poll_without_a_snapshot_is_503(proxies, poller):
    known, proxies.snapshot = proxies.snapshot, None
    status, text = await poller.ask("clusters")
    assert status == 503
    assert "no configuration for sidecar~127.0.0.1~client.ns" in text
    assert proxies.subscribers == []
    proxies.publish(known)
    assert (await poller.ask("clusters"))[0] == 200


async def test_internal_error_is_500_and_logged_once(proxies, poller):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    proxies.observe = fail
    with capture_logs() as logs:
        assert await poller.ask("clusters") == (500, "internal error; see the server's log\n")
    (line,) = (line for line in logs if line["log_level"] == "error")
    assert "ZeroDivisionError" in line["stack"]
    assert proxies.subscribers == []


async def test_resource_without_json_form_is_500(proxies, poller):
    proxies.publish(Snapshot({CLUSTER: ResourceSet([Resource.of(CLUSTER, "a", b"\xff")])}))
    with capture_logs() as logs:
        assert (await poller.ask("clusters"))[0] == 500
    assert "error" in {line["log_level"] for line in logs}


async def test_port_in_use_is_an_error(proxies, server):
    with pytest.raises(OSError, match="address already in use"):
        await RestServer(proxies, "127.0.0.1", server.port).start()
