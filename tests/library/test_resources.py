"""Type, name and references of a resource are derived from its message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ExtensionConfigSource,
    Metadata,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration, ScopedRouteConfiguration, VirtualHost
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    SdsSecretConfig,
    Secret,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.service.runtime.v3 import Runtime
from envoy_data_plane.google.protobuf import Any

from tests.golden.cases import CASES, load
from tests.library import messages
from xds.codec import encode, encode_counts, full_name, message_class, pack, to_dict
from xds.mesh.envoy.translate import translate
from xds.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LB_ENDPOINT,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Resource,
    resource,
)
from xds.snapshot import TYPE_PREFIX, content_version

NAMED = {
    CLUSTER: Cluster(name="x"),
    ENDPOINT: ClusterLoadAssignment(cluster_name="x"),
    LISTENER: Listener(name="x"),
    ROUTE: RouteConfiguration(name="x"),
    SECRET: Secret(name="x"),
    SCOPED_ROUTE: ScopedRouteConfiguration(name="x"),
    RUNTIME: Runtime(name="x"),
    EXTENSION_CONFIG: TypedExtensionConfig(name="x", typed_config=pack(Router())),
}
NAMELESS = {VIRTUAL_HOST: VirtualHost(name="x"), LB_ENDPOINT: LbEndpoint()}


@pytest.mark.parametrize("type_url", NAMED)
@pytest.mark.parametrize("form", ["message", "protobuf", "bytes"])
def test_type_and_name_come_from_the_message(type_url, form):
    message, body = NAMED[type_url], encode(NAMED[type_url])
    if form == "message":
        found = resource(message)
    elif form == "protobuf":
        found = resource(message_class(full_name(type(message))).FromString(body))
    else:
        found = resource(body, type_url=type_url)
    assert (found.type_url, found.name, found.body) == (type_url, "x", body)
    assert found.version == content_version(body)
    assert found == resource(message, name="x")


@pytest.mark.parametrize("type_url", NAMELESS)
def test_types_without_a_name_need_the_name_argument(type_url):
    found = resource(NAMELESS[type_url], name="there/x")
    assert (found.type_url, found.name) == (type_url, "there/x")
    with pytest.raises(ValueError, match="does not contain its name: pass name="):
        resource(NAMELESS[type_url])


def test_message_in_an_any_is_unpacked():
    made, packed = resource(Cluster(name="c")), pack(Cluster(name="c"))
    assert resource(packed) == made
    assert resource(message_class("google.protobuf.Any").FromString(bytes(packed)), type_url=CLUSTER) == made
    with pytest.raises(ValueError, match=r"the Any contains type\.googleapis\.com/envoy\.config\.cluster"):
        resource(packed, type_url=LISTENER)


def test_later_changes_to_a_message_have_no_effect():
    message = Cluster(name="x")
    made = resource(message)
    message.alt_stat_name = "y"
    assert made == resource(Cluster(name="x"))
    assert made.version != resource(message).version


def test_a_message_is_encoded_once():
    before = encode_counts["envoy.config.cluster.v3.Cluster"]
    resource(messages.eds_cluster("x"))
    assert encode_counts["envoy.config.cluster.v3.Cluster"] == before + 1
    resource(encode(messages.eds_cluster("x")), type_url=CLUSTER)
    assert encode_counts["envoy.config.cluster.v3.Cluster"] == before + 2


def test_sources_are_kept():
    assert resource(Cluster(name="x"), sources=["here.yaml:3"]).sources == ("here.yaml:3",)


BAD = {
    "no name": (lambda: resource(Cluster()), ValueError, "Cluster without a name: set its name"),
    "no name, by its own word": (
        lambda: resource(ClusterLoadAssignment()),
        ValueError,
        "ClusterLoadAssignment without a name: set its cluster_name",
    ),
    "two names": (
        lambda: resource(Cluster(name="x"), name="y"),
        ValueError,
        "Cluster x: name='y' is not its name",
    ),
    "not a resource": (
        lambda: resource(Address()),
        TypeError,
        r"envoy.config.core.v3.Address is not supported",
    ),
    "a class": (lambda: resource(Cluster), TypeError, "is not a protobuf message"),
    "a dict": (lambda: resource({"name": "x"}), TypeError, "dict is not a protobuf message"),
    "a string": (lambda: resource("x", type_url=CLUSTER), TypeError, "str is not a protobuf message"),
    "bytes alone": (lambda: resource(b""), ValueError, r"call resource\(data, type_url=\.\.\.\)"),
    "bytes that may change": (
        lambda: resource(bytearray(), type_url=CLUSTER),
        TypeError,
        r"bytearray is mutable: pass a copy, resource\(bytes\(data\), type_url=",
    ),
    "bytes of somebody else": (
        lambda: resource(memoryview(b""), type_url=CLUSTER),
        TypeError,
        "memoryview is mutable",
    ),
    "one source": (
        lambda: resource(Cluster(name="x"), sources="clusters.toml:12"),
        TypeError,
        r"x: sources='clusters.toml:12' is one str: pass a list, sources=\['clusters.toml:12'\]",
    ),
    "one alias": (
        lambda: resource(VirtualHost(name="x"), name="r/x", aliases="r/x.example"),
        TypeError,
        "r/x: aliases='r/x.example' is one str",
    ),
    "one source, ready": (lambda: Resource.of(CLUSTER, "x", b"", sources="y"), TypeError, "is one str"),
    "no source": (lambda: resource(Cluster(name="x"), sources=[7]), TypeError, "x: sources contains 7"),
    "a time as text": (
        lambda: resource(Runtime(name="x"), ttl="5"),
        TypeError,
        "x: ttl='5' is not a number of seconds",
    ),
    "no time": (
        lambda: resource(Runtime(name="x"), ttl=float("nan")),
        ValueError,
        "x: ttl=nan is not between",
    ),
    "a number for a name": (
        lambda: Resource.of(CLUSTER, 7, b""),
        TypeError,
        "type_url and name must be str, not '.*Cluster' and 7",
    ),
    "a class for a type": (
        lambda: Resource.of(Cluster, "x", b""),
        TypeError,
        "type_url and name must be str",
    ),
    "text for a body": (
        lambda: Resource.of(CLUSTER, "x", "body"),
        TypeError,
        "x: the body is str, not bytes: pass the encoded message",
    ),
    "a short type": (lambda: resource(b"", type_url="Cluster"), ValueError, "not a type URL: 'Cluster'"),
    "an unknown type": (
        lambda: resource(b"", type_url=TYPE_PREFIX + "my.Own"),
        TypeError,
        r"my.Own is not supported.*Resource.of",
    ),
    "other bytes": (
        lambda: resource(b"\xff", type_url=CLUSTER),
        ValueError,
        r"Cluster: the bytes are not of type envoy.config.cluster.v3.Cluster",
    ),
    "another type": (
        lambda: resource(Cluster(name="x"), type_url=LISTENER),
        ValueError,
        "the message is of type .*Cluster, not .*Listener",
    ),
    "other bytes inside": (
        lambda: resource(
            Cluster(
                name="x",
                transport_socket=TransportSocket(
                    typed_config=Any(type_url=TYPE_PREFIX + full_name(UpstreamTlsContext), value=b"\xff")
                ),
            )
        ),
        ValueError,
        "Cluster x: the bytes are not of type envoy.*UpstreamTlsContext",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    act, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        act()


def _extension(name: str, source) -> Listener:
    manager = messages.http("r")
    manager.http_filters = [
        HttpFilter(name=name, config_discovery=ExtensionConfigSource(config_source=source, type_urls=["x"]))
    ]
    chain = messages.chain("r")
    chain.filters[0].typed_config = pack(manager)
    return Listener(name="l", filter_chains=[chain])


TOGETHER = """
import sys, threading
from tests.library import messages
from xds.resources import resource

sys.setswitchinterval(1e-6)
given = [messages.eds_cluster("c", certificate="s"), messages.listener("l", "r"), messages.routes("r")]
start, made = threading.Barrier(8), []

def make(order):
    start.wait()
    found = [resource(given[number]) for number in order]
    made.append({(one.type_url, one.name, one.body, one.refs) for one in found})

threads = [threading.Thread(target=make, args=([[0, 1, 2], [2, 1, 0]][n % 2],)) for n in range(8)]
for step in (threading.Thread.start, threading.Thread.join):
    for thread in threads:
        step(thread)
assert len(made) == 8 and all(one == made[0] for one in made), made
"""


def test_threads_may_make_resources_at_the_same_time():
    """Each run is a new process, because the code that may race runs once per process."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", TOGETHER], cwd=Path(__file__).parents[2], check=True)


REFERENCES = {
    "a cluster's assignment": (messages.eds_cluster("c"), {(ENDPOINT, "c")}),
    "by another name": (messages.eds_cluster("c", "s"), {(ENDPOINT, "s")}),
    "from where the cluster is from": (messages.eds_cluster("c", source=messages.SELF), {(ENDPOINT, "c")}),
    "not from elsewhere": (messages.eds_cluster("c", source=messages.ELSEWHERE), set()),
    "not from a file": (messages.eds_cluster("c", source=messages.FILE), set()),
    "not of a cluster without EDS": (
        Cluster(
            name="c",
            type=ClusterDiscoveryType.STRICT_DNS,
            eds_cluster_config=messages.eds_cluster("c").eds_cluster_config,
        ),
        set(),
    ),
    "a cluster's secrets": (
        messages.eds_cluster("c", certificate="cert", roots="ca"),
        {(ENDPOINT, "c"), (SECRET, "cert"), (SECRET, "ca")},
    ),
    "routes and secrets of filter chains": (
        messages.listener("l", "r1", "r2", certificate="cert"),
        {(ROUTE, "r1"), (ROUTE, "r2"), (SECRET, "cert")},
    ),
    "routes of the default filter chain": (
        Listener(name="l", default_filter_chain=messages.chain("r")),
        {(ROUTE, "r")},
    ),
    "routes of an API listener": (messages.api_listener("l", "r"), {(ROUTE, "r")}),
    "routes that come from elsewhere": (
        Listener(
            name="l", api_listener=messages.ApiListener(api_listener=pack(messages.http("r", messages.FILE)))
        ),
        set(),
    ),
    "an extension": (_extension("wasm", messages.ADS), {(ROUTE, "r"), (EXTENSION_CONFIG, "wasm")}),
    "not an extension from elsewhere": (_extension("wasm", messages.FILE), {(ROUTE, "r")}),
    "a secret of the proxy's own": (
        Cluster(
            name="c",
            transport_socket=TransportSocket(
                typed_config=pack(
                    UpstreamTlsContext(
                        common_tls_context=CommonTlsContext(
                            tls_certificate_sds_secret_configs=[SdsSecretConfig(name="static")]
                        )
                    )
                )
            ),
        ),
        set(),
    ),
    "a scope's routes": (ScopedRouteConfiguration(name="s", route_configuration_name="r"), {(ROUTE, "r")}),
    "a scope's routes, inside it": (
        ScopedRouteConfiguration(name="s", route_configuration=RouteConfiguration(name="r")),
        set(),
    ),
    "a type that nobody knows": (
        Cluster(
            name="c",
            transport_socket=TransportSocket(
                typed_config=Any(type_url=TYPE_PREFIX + "my.Own", value=b"\xff")
            ),
        ),
        set(),
    ),
    "nothing in what is only data": (
        ClusterLoadAssignment(
            cluster_name="c",
            endpoints=[
                LocalityLbEndpoints(
                    lb_endpoints=[
                        LbEndpoint(
                            metadata=Metadata(
                                typed_filter_metadata={
                                    "x": pack(SdsSecretConfig(name="s", sds_config=messages.ADS))
                                }
                            )
                        )
                    ]
                )
            ],
        ),
        set(),
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_references_are_found(case):
    message, refs = REFERENCES[case]
    found = resource(message)
    assert {*found.refs} == refs
    assert len(found.refs) == len(refs)
    assert resource(found.body, type_url=found.type_url).refs == found.refs


@pytest.mark.parametrize("case", CASES)
def test_the_references_of_every_golden_mesh_are_found(case):
    """Search the JSON form by field name."""
    mesh = load(case)
    for pod in (pod for pod in mesh.pods() if pod.has_sidecar):
        for type_url, resources in translate(mesh, pod).types.items():
            for one in resources.values():
                assert {*one.refs} == {*_looked_for(to_dict(type_url, one.body))}, one


def _looked_for(json):
    for value in json.values() if isinstance(json, dict) else json:
        if isinstance(value, dict | list):
            yield from _looked_for(value)
    if isinstance(json, dict):
        for source, name, type_url in (
            ("eds_config", "service_name", ENDPOINT),
            ("config_source", "route_config_name", ROUTE),
            ("sds_config", "name", SECRET),
        ):
            if name in json and "ads" in json.get(source, {}):
                yield type_url, json[name]
        if "config_discovery" in json:
            yield EXTENSION_CONFIG, json["name"]
