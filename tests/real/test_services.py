"""A real Envoy without ADS, which requests each type by REST or on streams of both variants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from tests.server.proxies import OneForAll
from tests.support.apps import EchoApp
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.codec import message_class, pool
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import certificate_secret
from xds.resources import resource
from xds.server import XdsServer
from xds.server.rest import TYPES_BY_PATH, RestServer
from xds.snapshot import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    Resource,
    ResourceSet,
    Snapshot,
)

HOST = "127.0.0.1"
TYPE = "type.googleapis.com/envoy.extensions"
KINDS = ("REST", "GRPC", "DELTA_GRPC")
SERVER = "xds"


def made(type_url: str, value: Mapping[str, Any]) -> Resource:
    message = message_class(type_url.rpartition("/")[2])()
    json_format.ParseDict(value, message, descriptor_pool=pool)
    return resource(message.SerializeToString(deterministic=True), type_url=type_url)


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def asked_by(kind: str) -> dict[str, Any]:
    """Return the config source of a type: our server, by one kind of API."""
    api: dict[str, Any] = {"api_type": kind, "transport_api_version": "V3"}
    if kind == "REST":
        api |= {"cluster_names": [SERVER], "refresh_delay": "0.1s", "request_timeout": "3s"}
    else:
        api["grpc_services"] = [{"envoy_grpc": {"cluster_name": SERVER}}]
    return {"resource_api_version": "V3", "api_config_source": api}


@dataclass
class World:
    """One resource of each type. All of them alternate between two contents, by version."""

    kind: str
    apps: tuple[EchoApp, EchoApp]
    secrets: tuple[Resource, Resource]

    def __post_init__(self) -> None:
        self.ports = free_port(), free_port(), free_port()
        """Plaintext, TLS and scoped routes; the second version has one more listener."""
        self.another = free_port()

    def bootstrap(self, server: int) -> dict[str, Any]:
        http2 = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
        runtime = {"name": "runtime", "rtds_config": asked_by(self.kind)}
        return {
            "node": {"id": "proxy", "cluster": "test"},
            "admin": {"address": address(free_port())},
            "dynamic_resources": {"cds_config": asked_by(self.kind), "lds_config": asked_by(self.kind)},
            "layered_runtime": {"layers": [{"name": "runtime", "rtds_layer": runtime}]},
            "static_resources": {
                "clusters": [
                    {
                        "name": SERVER,
                        "load_assignment": {
                            "cluster_name": SERVER,
                            "endpoints": [
                                {"lb_endpoints": [{"endpoint": {"address": address(server)}}]},
                            ],
                        },
                        **({} if self.kind == "REST" else {"typed_extension_protocol_options": http2}),
                    }
                ]
            },
        }

    def snapshot(self, version: int) -> Snapshot:
        app = self.apps[version - 1]
        cluster = {
            "name": "app",
            "alt_stat_name": f"app-{version}",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": asked_by(self.kind)},
        }
        endpoints = {"lb_endpoints": [{"endpoint": {"address": address(app.port)}}]}
        shown = {"header": {"key": "x-route", "value": str(version)}}
        routes = {
            "name": "routes",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                    "response_headers_to_add": [shown],
                }
            ],
        }
        mutation = {"append": {"header": {"key": "x-extension", "value": str(version)}}}
        extension = {
            "name": "marks",
            "typed_config": {
                "@type": f"{TYPE}.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"response_mutations": [mutation]},
            },
        }
        scope = {
            "name": "scope",
            "route_configuration_name": "routes",
            "key": {"fragments": [{"string_key": f"scope-{version}"}]},
        }
        resources = {
            CLUSTER: [made(CLUSTER, cluster)],
            ENDPOINT: [made(ENDPOINT, {"cluster_name": "app", "endpoints": [endpoints]})],
            LISTENER: [
                self._listener("plain", self.ports[0]),
                self._listener("tls", self.ports[1], tls=True),
                self._listener("scoped", self.ports[2], scoped=True),
                *((self._listener("another", self.another),) if version == 2 else ()),
            ],
            ROUTE: [made(ROUTE, routes)],
            EXTENSION_CONFIG: [made(EXTENSION_CONFIG, extension)],
            SCOPED_ROUTE: [made(SCOPED_ROUTE, scope)],
            RUNTIME: [made(RUNTIME, {"name": "runtime", "layer": {"test": {"version": version}}})],
            SECRET: [self.secrets[version - 1]],
        }
        return Snapshot({type_url: ResourceSet(messages) for type_url, messages in resources.items()})

    def _listener(self, name: str, port: int, *, tls: bool = False, scoped: bool = False) -> Resource:
        source = asked_by(self.kind)
        http: dict[str, Any] = {
            "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "http_filters": [
                {
                    "name": "marks",
                    "config_discovery": {
                        "config_source": source,
                        "type_urls": [f"{TYPE}.filters.http.header_mutation.v3.HeaderMutation"],
                    },
                },
                {"name": "router", "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}},
            ],
        }
        if scoped:
            by_header = {"header_value_extractor": {"name": "x-scope", "index": 0}}
            http["scoped_routes"] = {
                "name": "scopes",
                "scope_key_builder": {"fragments": [by_header]},
                "rds_config_source": source,
                "scoped_rds": {"scoped_rds_config_source": source},
            }
        else:
            http["rds"] = {"route_config_name": "routes", "config_source": source}
        chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": http}]}
        if tls:
            secret = {"name": "default", "sds_config": source}
            chain["transport_socket"] = {
                "name": "tls",
                "typed_config": {
                    "@type": f"{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {"tls_certificate_sds_secret_configs": [secret]},
                },
            }
        return made(LISTENER, {"name": name, "address": address(port), "filter_chains": [chain]})

    async def check(self, envoy: EnvoyProcess, version: int) -> bool:
        """Assert that clients see this version of each type."""
        client = Client()
        plain, _, scoped = (f"http://{HOST}:{port}/" for port in self.ports)
        app = self.apps[version - 1].name
        for url, headers in ((plain, {}), (scoped, {"x-scope": f"scope-{version}"})):
            answer = await client.get(url, headers=headers)
            assert answer.ok, f"{url}: {answer}"
            assert answer.pod == app
            assert (answer.headers["x-route"], answer.headers["x-extension"]) == (str(version), str(version))
        assert (await client.get(scoped, headers={"x-scope": f"scope-{3 - version}"})).code == "404"
        assert await self._certificate() == self._served(version)
        assert (await envoy.admin.json("/runtime"))["entries"]["test.version"]["final_value"] == str(version)
        assert (await envoy.admin.stat(f"cluster.app-{version}.membership_total")) == 1
        another = await client.get(f"http://{HOST}:{self.another}/")
        assert another.ok is (version == 2)
        return True

    async def _certificate(self) -> bytes:
        context = ssl._create_unverified_context()
        _, writer = await asyncio.open_connection(HOST, self.ports[1], ssl=context)
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return certificate

    def _served(self, version: int) -> bytes:
        message = message_class(SECRET.rpartition("/")[2]).FromString(self.secrets[version - 1].body)
        chain = message.tls_certificate.certificate_chain.inline_bytes.decode()
        end = "-----END CERTIFICATE-----\n"
        return ssl.PEM_cert_to_DER_cert(chain.partition(end)[0] + end)


def secrets() -> tuple[Resource, Resource]:
    now = datetime.now(UTC)
    authority = Authority.create(PrivateKey.generate(), "cluster.local", now)
    first, second = (
        certificate_secret(authority.issue(f"spiffe://cluster.local/ns/x/sa/{name}", now)) for name in "ab"
    )
    return first, second


@asynccontextmanager
async def serving(kind: str, proxies: OneForAll, **options: Any) -> AsyncIterator[int]:
    server: RestServer | XdsServer = (
        RestServer(proxies, HOST, 0) if kind == "REST" else XdsServer(proxies, f"{HOST}:0", **options)
    )
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()


@pytest.mark.envoy
@pytest.mark.parametrize("kind", KINDS)
async def test_r49_r50_each_type_is_served_separately(tmp_path: Path, kind: str) -> None:
    proxies = OneForAll()
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(EchoApp(name, 0, address=HOST)) for name in ("one", "two")
        ]
        world = World(kind, (one, two), secrets())
        proxies.publish(world.snapshot(1))
        port = await stack.enter_async_context(serving(kind, proxies))
        envoy = await stack.enter_async_context(EnvoyProcess("proxy", world.bootstrap(port), tmp_path))
        await eventually(lambda: world.check(envoy, 1))
        asked = {stream.type_url for stream in proxies.streams}
        assert asked == set(TYPES_BY_PATH.values())
        proxies.publish(world.snapshot(2))
        await eventually(lambda: world.check(envoy, 2))
        proxies.publish(world.snapshot(1))
        await eventually(lambda: world.check(envoy, 1))
        if kind == "REST":
            await only_news_is_sent(envoy)
        rejections = await envoy.rejections()
        assert not any(rejections.values()), rejections


@pytest.mark.envoy
@pytest.mark.parametrize("kind", ["GRPC", "DELTA_GRPC"])
async def test_r55_envoy_reconnects_at_the_maximum_age(tmp_path: Path, kind: str) -> None:
    proxies = OneForAll()
    age = {"max_connection_age": 0.5, "options": (("grpc.max_connection_age_grace_ms", 100),)}
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(EchoApp(name, 0, address=HOST)) for name in ("one", "two")
        ]
        world = World(kind, (one, two), secrets())
        proxies.publish(world.snapshot(1))
        port = await stack.enter_async_context(serving(kind, proxies, **age))
        envoy = await stack.enter_async_context(EnvoyProcess("proxy", world.bootstrap(port), tmp_path))
        await eventually(lambda: world.check(envoy, 1))
        clusters = "/envoy.config.cluster.v3.Cluster"

        def connections() -> set[str]:
            return {stream.peer for stream in proxies.streams if stream.type_url.endswith(clusters)}

        await eventually(lambda: len(connections()) >= 3, timeout=60)
        assert await world.check(envoy, 1)
        proxies.publish(world.snapshot(2))
        await eventually(lambda: world.check(envoy, 2), timeout=60)


async def only_news_is_sent(envoy: EnvoyProcess) -> None:
    """Assert that a synced Envoy keeps polling and gets no updates."""
    updates = r"^(cluster_manager\.cds|listener_manager\.lds)\.update_success$"
    polls = r"^(cluster_manager\.cds|listener_manager\.lds)\.update_attempt$"
    had, asked = await envoy.admin.total(updates), await envoy.admin.total(polls)

    async def polled() -> bool:
        return await envoy.admin.total(polls) >= asked + 6

    await eventually(polled)
    assert await envoy.admin.total(updates) == had > 0
