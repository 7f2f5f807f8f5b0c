"""Validation by the real Envoy."""

from __future__ import annotations

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
from tests.support.world import Cluster as WorldCluster
from tests.support.world import Listener as WorldListener
from tests.support.world import World
from xds.codec import pack
from xds.mesh.envoy.common import address
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.resources import CLUSTER, Resource, resource
from xds.snapshot import ResourceSet, Snapshot
from xds.validation import EnvoyNotFoundError, EnvoyUnavailableError, EnvoyValidator, find_envoy

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
    refused = await EnvoyValidator(timeout=PATIENCE, **options).check(resources)
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
    pipe = Address(pipe=Pipe(path="/run/app.sock"))
    listeners = [dual_stack(f"l{n}", pipe) for n in range(256)]
    assert not await refusals(*listeners)


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


def counting(directory: Path) -> str:
    """Make an Envoy that counts its runs in the file `runs`."""
    return script(directory, f'echo >>{directory}/runs; exec {find_envoy()} "$@"')


def runs(directory: Path) -> int:
    return len((directory / "runs").read_text())


async def test_resources_of_a_snapshot_are_loaded_together(tmp_path):
    bad = [resource(Cluster(name=f"bad{n}", connect_timeout=timedelta(0))) for n in range(2)]
    good = [resource(eds_cluster(f"c{n}")) for n in range(298)]
    validator = EnvoyValidator(counting(tmp_path), timeout=PATIENCE)
    assert not await validator.check(Snapshot({CLUSTER: ResourceSet(good)}))
    assert runs(tmp_path) == 2  # In batches.
    assert {*await validator.check([*good, *bad, *good])} == {*bad}


async def test_an_unavailable_envoy_is_an_error_after_the_first_runs_too(tmp_path):
    """Envoy ends normally in the first runs only: those that find one refused resource."""
    count = f"echo >>{tmp_path}/runs; test $(wc -l <{tmp_path}/runs) -gt 4 && exec sleep 600"
    binary = script(tmp_path, f'{count}; exec {find_envoy()} "$@"')
    # The runs: four clusters, the bootstrap alone, two clusters, one cluster.
    bad = [resource(Cluster(name=f"c{n}", connect_timeout=timedelta(0))) for n in range(4)]
    with pytest.raises(EnvoyUnavailableError, match="did not end within 10 s"):
        await EnvoyValidator(binary, timeout=10).check(bad)


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


BAD = resource(Cluster(name="bad", connect_timeout=timedelta(0)))


@pytest.mark.parametrize(
    ("commands", "timeout", "words"),
    [
        ("exec sleep 600", 0.3, "did not end within 0.3 s"),
        ("exit 1", PATIENCE, "does not load the bootstrap"),
        ("kill -9 $$", PATIENCE, "was killed"),
        ("kill -6 $$", PATIENCE, "crashed with SIGABRT"),
    ],
)
async def test_an_unavailable_envoy_is_an_error(commands, timeout, words, tmp_path):
    with pytest.raises(EnvoyUnavailableError, match=words):
        await EnvoyValidator(script(tmp_path, commands), timeout=timeout).check([BAD])


async def test_a_missing_envoy_is_an_error(tmp_path):
    with pytest.raises(EnvoyNotFoundError, match="is not found, or not executable"):
        await EnvoyValidator(str(tmp_path / "envoy")).check([BAD])


async def test_a_resource_that_crashes_envoy_is_refused(tmp_path):
    binary = script(tmp_path, 'if [ "$(grep -ac bad $4)" != 0 ]; then kill -6 $$; fi')
    found = await EnvoyValidator(binary, timeout=PATIENCE).check([resource(Cluster(name="good")), BAD])
    assert found == {BAD: "Envoy crashed with SIGABRT"}


async def test_without_a_directory_envoy_is_unavailable(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(EnvoyUnavailableError, match=r"^cannot run Envoy: "):
        await EnvoyValidator().check([BAD])


def test_invalid_timeout_is_refused():
    with pytest.raises(ValueError, match="timeout=0"):
        EnvoyValidator(timeout=0)
