"""Validation by the real Envoy."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import tempfile
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    Pipe,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import (
    AdditionalAddress,
    FilterChain,
    Listener,
    ListenerInternalListenerConfig,
)

# Not as `Filter`: Cluster has another one, which pydantic looks for in the first module that makes a Cluster.
from envoy_data_plane.envoy.config.listener.v3 import (
    Filter as NetworkFilter,
)
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.bootstrap.internal_listener.v3 import InternalListener
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    Secret,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher
from envoy_data_plane.google.protobuf import Any as AnyMessage

from tests.library.messages import api_listener, eds_cluster
from tests.library.messages import listener as rds_listener
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.loopback import free_port
from tests.support.upstream import Upstream
from tests.support.world import Cluster as WorldCluster
from tests.support.world import Listener as WorldListener
from tests.support.world import World
from xds.codec import pack
from xds.mesh.envoy.common import address
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.resources import CLUSTER, ENDPOINT, Resource, resource
from xds.server import XdsServer
from xds.store import Store, ValidationError
from xds.testing import bootstrap
from xds.validation import EnvoyValidator, envoy

pytestmark = [pytest.mark.envoy, pytest.mark.real]
PATIENCE = 60.0
"""Timeout of Envoy on a busy machine, in seconds. It takes far less."""


def virtual_host(regex: str) -> VirtualHost:
    match = RouteMatch(safe_regex=RegexMatcher(regex=regex))
    return VirtualHost(
        name="v", domains=["*"], routes=[Route(match=match, route=RouteAction(cluster="elsewhere"))]
    )


def routes(regex: str) -> RouteConfiguration:
    return RouteConfiguration(name="r", virtual_hosts=[virtual_host(regex)])


def listener(name: str, type_url: str = "", host: str = "127.0.0.1") -> Listener:
    if not type_url:
        made = rds_listener(name, "r")
        made.address = address(host, 80)
        return made
    unknown = NetworkFilter(name="x", typed_config=AnyMessage(type_url=type_url))
    return Listener(name=name, address=address(host, 80), filter_chains=[FilterChain(filters=[unknown])])


def assignment(host: str) -> ClusterLoadAssignment:
    endpoint = LbEndpoint(endpoint=Endpoint(address=address(host, 80)))
    return ClusterLoadAssignment(cluster_name="a", endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])])


def tls_cluster(name: str, **context) -> Cluster:
    return upstream(name, UpstreamTlsContext(common_tls_context=CommonTlsContext(**context)))


def upstream(name: str, context: UpstreamTlsContext) -> Cluster:
    socket = TransportSocket(name="tls", typed_config=pack(context))
    return Cluster(name=name, type=ClusterDiscoveryType.STATIC, transport_socket=socket)


NOW = dt.datetime.now(UTC)
AUTHORITY = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
LEAVES = [AUTHORITY.issue(f"spiffe://cluster.local/ns/n/sa/{name}", NOW) for name in "ab"]


def certificate(chain: bytes, key: bytes) -> Secret:
    return Secret(
        name="s",
        tls_certificate=TlsCertificate(
            certificate_chain=DataSource(inline_bytes=chain), private_key=DataSource(inline_bytes=key)
        ),
    )


def roots(pem: bytes) -> Secret:
    trusted = CertificateValidationContext(trusted_ca=DataSource(inline_bytes=pem))
    return Secret(name="t", validation_context=trusted)


async def refusals(*messages, **options) -> dict[str, str]:
    resources = [one if isinstance(one, Resource) else resource(one) for one in messages]
    validator = EnvoyValidator(if_unavailable="block", timeout=PATIENCE, **options)
    refused = await validator.validate(resources)
    return {one.name: reason for one, reason in refused.items()}


async def test_valid_resources_pass():
    """Also without what they refer to, with equal addresses, and in several versions."""
    world = World(listeners={"l": WorldListener(80, "r")}, routes={"r": {"/": "c"}}).having(
        c=WorldCluster((1,)), d=WorldCluster((1,), static=True), e=WorldCluster(checked=True, secured=True)
    )
    missing = DataSource(filename="/nowhere/root.pem")
    assert not await refusals(
        *world.resources(),
        listener("a"),
        listener("b"),
        api_listener("c", "r"),
        api_listener("d", "r"),
        eds_cluster("c", "elsewhere", certificate="x"),
        resource(virtual_host("/x.*"), name="r/v"),
        resource(
            LbEndpoint(endpoint=Endpoint(address=address("10.0.0.1", 80))),
            name="xdstp://a/envoy.config.endpoint.v3.LbEndpoint/x",
        ),
        tls_cluster(
            "files", validation_context=CertificateValidationContext(trusted_ca=missing, crl=missing)
        ),
        upstream(
            "checks",
            UpstreamTlsContext(
                auto_host_sni=True,
                auto_sni_san_validation=True,
                common_tls_context=CommonTlsContext(
                    validation_context=CertificateValidationContext(trusted_ca=missing)
                ),
            ),
        ),
        tls_cluster(
            "null",
            validation_context=CertificateValidationContext(trusted_ca=DataSource(filename="/a\0b")),
        ),
        tls_cluster(
            "keys", tls_certificates=[TlsCertificate(certificate_chain=missing, private_key=missing)]
        ),
        assignment("10.0.0.1"),
        certificate(LEAVES[0].chain, LEAVES[0].key.to_pem()),
        roots(AUTHORITY.root_pem),
    )


CASES = {
    "regex": (routes("(?=x)"), routes("x"), "invalid perl operator"),
    "virtual host": (
        resource(virtual_host("(?=x)"), name="r/v"),
        resource(virtual_host("x"), name="r/v"),
        "invalid perl operator",
    ),
    "field": (
        Cluster(name="c", connect_timeout=timedelta(0), type=ClusterDiscoveryType.STATIC),
        Cluster(name="c", connect_timeout=timedelta(1), type=ClusterDiscoveryType.STATIC),
        r"^Proto constraint validation failed \(ClusterValidationError.ConnectTimeout: value must be greater",
    ),
    "extension": (
        listener("l", "type.googleapis.com/example.Filter"),
        listener("l"),
        "Didn't find a registered implementation for 'x' with type URL: 'example.Filter'",
    ),
    "address": (listener("l", host="999.1.1.1"), listener("l"), "malformed IP address: 999.1.1.1"),
    "endpoint": (assignment("host.example"), assignment("10.0.0.1"), "malformed IP address: host.example"),
    "root": (roots(b"no certificate"), None, "Failed to load trusted CA certificates"),
    "key": (
        certificate(LEAVES[0].chain, LEAVES[1].key.to_pem()),
        certificate(LEAVES[1].chain, LEAVES[1].key.to_pem()),
        "KEY_VALUES_MISMATCH",
    ),
    "bytes": (
        Resource.of(CLUSTER, "b", b"\xff\xff"),
        None,
        "^the bytes are not of type envoy.config.cluster.v3.Cluster$",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_only_the_bad_resource_is_refused(case):
    bad, good, words = CASES[case]
    others = [eds_cluster(f"other-{n}") for n in range(20)]
    found = await refusals(*others[:7], bad, *others[7:])
    [reason] = found.values()
    assert re.search(words, reason), reason
    assert "PRIVATE" not in reason
    assert not good or not await refusals(good)


def dual_stack(name: str, *more: Address) -> Listener:
    made = rds_listener(name, "r")
    made.address = address("0.0.0.0", 15006)
    others = (address("::", 15006), *more)
    made.additional_addresses = [AdditionalAddress(address=each) for each in others]
    return made


async def test_listeners_with_equal_additional_addresses_pass():
    validator = EnvoyValidator(if_unavailable="block", timeout=PATIENCE)
    pipe = Address(pipe=Pipe(path="/run/app.sock"))
    listeners = [dual_stack(f"l{n}", pipe) for n in range(256)]
    assert not await validator.validate([resource(one) for one in listeners])
    assert validator.runs == 1


async def test_equal_pipes_and_internal_listeners_pass():
    pipes = [rds_listener(f"pipe{n}", "r") for n in range(4)]
    internal = [rds_listener(f"internal{n}", "r") for n in range(4)]
    for made in pipes:
        made.address = Address(pipe=Pipe(path="/" + "x" * 106))  # The longest path.
    for made in internal:
        made.address, made.internal_listener = None, ListenerInternalListenerConfig()
    extension = TypedExtensionConfig(name="internal", typed_config=pack(InternalListener()))
    base = Bootstrap(bootstrap_extensions=[extension])
    assert not await refusals(*pipes, *internal, bootstrap=bytes(base))


def refused_clusters() -> list[Resource]:
    return [resource(Cluster(name=f"c{n}", connect_timeout=timedelta(0))) for n in range(16)]


async def test_only_resources_that_were_loaded_alone_are_refused(monkeypatch):
    monkeypatch.setattr(envoy, "MAX_RUNS", 8)
    validator, bad, good = EnvoyValidator(timeout=PATIENCE), refused_clusters(), resource(eds_cluster("good"))
    counts = []
    while len(counts) < 16 and (not counts or counts[-1] < 16):
        refused = await validator.validate([*bad, good])
        assert good not in refused
        assert not any(reason.startswith("one of ") for reason in refused.values())
        counts.append(len(refused))
    assert 0 < counts[0] < 16  # The others are served, and judged later.
    assert counts[-1] == 16
    assert counts == sorted(counts)


async def test_block_judges_all_resources(monkeypatch):
    monkeypatch.setattr(envoy, "MAX_RUNS", 8)
    bad, good = refused_clusters(), resource(eds_cluster("good"))
    assert {*await EnvoyValidator(if_unavailable="block", timeout=PATIENCE).validate([*bad, good])} == {*bad}


async def test_a_timeout_keeps_the_verdicts_that_were_found(tmp_path):
    """Envoy ends normally in the first runs only: those that find one refused resource."""
    count = f"echo >>{tmp_path}/runs; test $(wc -l <{tmp_path}/runs) -gt 4 && exec sleep 600"
    binary = script(tmp_path, f'{count}; exec {envoy.find_envoy()} "$@"')
    bad = refused_clusters()[:4]
    # The runs: four clusters, the bootstrap alone, two clusters, one cluster.
    assert {*await EnvoyValidator(binary, timeout=10).validate(bad)} == {bad[0]}


async def test_each_resource_is_loaded_once():
    validator = EnvoyValidator(timeout=PATIENCE)
    resources = [resource(eds_cluster(f"c{n}")) for n in range(300)]
    assert not await validator.validate(resources)
    assert validator.runs == 2  # In batches.
    bad = resource(Cluster(name="bad", connect_timeout=timedelta(0)))
    assert {*await validator.validate([*resources, bad])} == {bad}
    assert validator.results == {"accepted": 300, "refused": 1, "unvalidated": 0}
    assert validator.seconds > 0
    runs = validator.runs
    assert {*await validator.validate([*resources, bad])} == {bad}
    assert validator.runs == runs


async def test_keys_are_passed_through_a_pipe(tmp_path):
    binary = script(tmp_path, f"stat -c %F $4 >{tmp_path}/kind; cat $4 >/dev/null; ls $PWD >{tmp_path}/files")
    assert not await refusals(certificate(LEAVES[0].chain, LEAVES[0].key.to_pem()), binary=binary)
    assert (tmp_path / "kind").read_text() == "fifo\n"
    assert (tmp_path / "files").read_text() == "bootstrap.pb\n"


def script(directory: Path, commands: str, name: str = "envoy") -> str:
    """Make an executable in place of Envoy."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return str(path)


BAD = resource(Cluster(name="bad", connect_timeout=timedelta(0)))


@pytest.mark.parametrize(
    ("commands", "timeout", "words"),
    [
        (None, PATIENCE, "is not found, or not executable"),
        ("exec sleep 600", 0.3, "did not end within 0.3 s"),
        ("exit 1", PATIENCE, "does not load the bootstrap"),
        ("kill -9 $$", PATIENCE, "was killed"),
        ("kill -6 $$", PATIENCE, "crashed with SIGABRT"),
    ],
)
async def test_without_envoy_resources_are_served_by_default(commands, timeout, words, tmp_path):
    binary = script(tmp_path, commands) if commands else str(tmp_path / "envoy")
    validator = EnvoyValidator(binary, timeout=timeout)
    refused = await validator.validate([BAD])
    assert not refused
    assert refused.unjudged == {BAD}
    assert validator.results == {"accepted": 0, "refused": 0, "unvalidated": 1}
    assert words in validator.unavailable
    runs = validator.runs
    assert not await validator.validate([BAD])
    assert validator.runs == runs  # It is not tried again for each change.


async def test_a_resource_that_crashes_envoy_is_served_but_not_accepted(tmp_path):
    binary = script(tmp_path, 'if [ "$(grep -ac bad $4)" != 0 ]; then kill -6 $$; fi')
    validator = EnvoyValidator(binary, timeout=PATIENCE)
    for _ in range(2):
        refused = await validator.validate([resource(Cluster(name="good")), BAD])
        assert not refused
        assert refused.unjudged == {BAD}
        assert validator.results == {"accepted": 1, "refused": 0, "unvalidated": 1}
    assert not validator.unavailable


async def test_without_a_directory_resources_are_served(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    validator = EnvoyValidator()
    assert not await validator.validate([BAD])
    assert validator.unavailable.startswith("cannot run Envoy: ")


async def test_block_waits_for_envoy(monkeypatch, tmp_path):
    monkeypatch.setattr(envoy, "RETRY_DELAY", 0.01)
    validator = EnvoyValidator(str(tmp_path / "envoy"), if_unavailable="block", timeout=PATIENCE)
    validating = asyncio.create_task(validator.validate([BAD]))
    async with asyncio.timeout(30):
        while validator.runs < 3:
            await asyncio.sleep(0)
    assert not validating.done()
    (tmp_path / "envoy").symlink_to(envoy.find_envoy())
    assert {*await validating} == {BAD}
    assert not validator.unavailable


@pytest.mark.parametrize("options", [{"if_unavailable": "no"}, {"timeout": 0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EnvoyValidator(**options)


async def test_a_client_is_not_sent_what_envoy_refuses(tmp_path):
    """The client's Envoy rejects nothing, which `EnvoyProcess` checks."""
    async with Upstream() as app, Upstream() as other:
        port = free_port()
        world = World(listeners={"l": WorldListener(port, "r")}).having(c=WorldCluster((app.port,)))
        store, client = Store(), Client()
        store.set(*world.routing("r", a="c").resources())
        validator = EnvoyValidator(if_unavailable="block", timeout=PATIENCE)
        async with XdsServer(store, "127.0.0.1:0", grace=0.2, validate=validator) as server:
            made = bootstrap("edge-1", server.port)
            async with EnvoyProcess("edge-1", made, tmp_path):
                await store.applied(at_least=1)
                bad = routes("(?=x)")
                store.set(
                    *world.having(d=WorldCluster((other.port,)), e=WorldCluster(fault="unfit")).resources(),
                    resource(bad, sources=["routes.toml:3"]),
                    listener("unknown", "type.googleapis.com/example.Filter"),
                )
                with pytest.raises(
                    ValidationError, match=r"RouteConfiguration r \(from routes.toml:3\)"
                ) as raised:
                    await store.applied()
                held = {item.resource.name for item in raised.value.held_back}
                assert held == {"r", "e", "unknown"}
                assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
                with store.change() as change:
                    change.set(*world.routing("r", a="d").resources())
                    change.remove(CLUSTER, "e")
                    change.remove(listener("unknown"))
                await store.applied()
                assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(other.port)


async def test_a_client_keeps_what_it_has_when_the_program_restarts(tmp_path):
    """The new program knows no good version of the cluster and of the routes."""
    async with Upstream() as app, Upstream() as other:
        port, client = free_port(), Client()
        world = World(listeners={"l": WorldListener(port, "r")}).having(c=WorldCluster((app.port,)))
        world = world.routing("r", a="c")
        store = Store()
        store.set(*world.resources())
        # Not a port that the kernel may give to a connection while the program is restarted.
        address, validator = f"127.0.0.1:{free_port()}", EnvoyValidator(timeout=PATIENCE)
        server = XdsServer(store, address, grace=0.2, validate=validator)
        await server.start()
        made = bootstrap("edge-1", server.port)
        async with EnvoyProcess("edge-1", made, tmp_path):
            await store.applied(at_least=1)
            assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
            await server.stop()
            store = Store()
            bad = [one for one in world.resources() if one.name not in {"c", "r"} or one.type_url == ENDPOINT]
            store.set(
                *bad,
                *(one for one in world.having(d=WorldCluster((other.port,))).resources() if one.name == "d"),
                Cluster(name="c", connect_timeout=timedelta(0)),
                routes("(?=x)"),
            )
            async with XdsServer(store, address, grace=0.2, validate=EnvoyValidator(timeout=PATIENCE)):
                with pytest.raises(ValidationError) as raised:
                    await store.applied(at_least=1)
                assert {item.resource.name for item in raised.value.held_back} == {"c", "r"}
                assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(app.port)
                store.set(*world.routing("r", a="d").having(d=WorldCluster((other.port,))).resources())
                await store.applied()
                assert (await client.get(f"http://127.0.0.1:{port}/a")).text == str(other.port)
