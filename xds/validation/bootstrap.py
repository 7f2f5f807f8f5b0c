"""Bootstraps that make Envoy load resources, without anything that they refer to.

Each resource becomes a part of the static configuration. Resources that Envoy cannot load statically are put
into a stand-in: an assignment into a static cluster, a route configuration into a listener, and a certificate
into the TLS context of a cluster. References to other resources stay as they are, because `--mode validate`
does not fetch them. If only clients have the files of certificates, these are left out, and a stand-in takes
the place of trusted roots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from xds.codec import message_class
from xds.snapshot import CLUSTER, ENDPOINT, LB_ENDPOINT, LISTENER, ROUTE, SECRET, VIRTUAL_HOST, Resource

_STAND_IN = "xds-validation"
"""Prefix of the names of stand-ins, and name of the control plane's cluster."""
_STATIC, _GRPC, _V3 = 0, 2, 2
"""Values of Cluster.DiscoveryType, ApiConfigSource.ApiType and ApiVersion."""
_TLS = "envoy.extensions.transport_sockets.tls.v3"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


_STAND_IN_ROOT = """\
-----BEGIN CERTIFICATE-----
MIH1MIGooAMCAQICAQEwBQYDK2VwMBkxFzAVBgNVBAMMDnhkcy12YWxpZGF0aW9u
MCAXDTI2MDEwMTAwMDAwMFoYDzIxMjYwMTAxMDAwMDAwWjAZMRcwFQYDVQQDDA54
ZHMtdmFsaWRhdGlvbjAqMAUGAytlcAMhALBuGetelaemR0otJn3tTMmi2Yq7JsVU
YC59+lA70npcoxMwETAPBgNVHRMBAf8EBTADAQH/MAUGAytlcANBAN2c/U88P7xm
FHEmzrWFX8Pr50BE7WggNw3LqRPCq1RpmNG9G6LbVAIYhpW/UdTCk1JjVJ4+Ge6L
XyvyDBfMeAY=
-----END CERTIFICATE-----
"""
"""A root certificate of which nobody has the key, valid until 2126."""


def is_supported(type_url: str) -> bool:
    """Whether resources of a type can be validated."""
    return type_url in _ADD


def undecodable(resource: Resource) -> str:
    """Return why the bytes of a resource are not a message of its type; empty if they are."""
    try:
        _parse(resource)
    except DecodeError:
        return f"the bytes are not of type {_type_name(resource)}"
    return ""


def build(resources: Iterable[Resource], base: bytes = b"") -> bytes:
    """Return an encoded bootstrap that contains some resources.

    Args:
        resources: Resources of supported types that can be decoded.
        base: Encoded bootstrap with what resources refer to by name, such as clusters of gRPC services.
    """
    bootstrap = _new("envoy.config.bootstrap.v3.Bootstrap")
    bootstrap.ParseFromString(base)
    bootstrap.ClearField("admin")
    bootstrap.node.id = bootstrap.node.id or _STAND_IN
    bootstrap.node.cluster = bootstrap.node.cluster or _STAND_IN
    _add_control_plane(bootstrap)
    builder = _Builder(bootstrap)
    for resource in resources:
        _ADD[resource.type_url](builder, resource)
    encoded: bytes = bootstrap.SerializeToString()
    return encoded


def _add_control_plane(bootstrap: Any) -> None:
    """Add a control plane, which Envoy does not connect to, because resources refer to ADS."""
    # The first cluster: others refer to it.
    clusters = [cluster.SerializeToString() for cluster in bootstrap.static_resources.clusters]
    del bootstrap.static_resources.clusters[:]
    cluster = bootstrap.static_resources.clusters.add(name=_STAND_IN, type=_STATIC)
    cluster.load_assignment.cluster_name = _STAND_IN
    for encoded in clusters:
        bootstrap.static_resources.clusters.add().ParseFromString(encoded)
    if not bootstrap.dynamic_resources.HasField("ads_config"):
        _set_api(bootstrap.dynamic_resources.ads_config)


def _set_api(config: Any) -> None:
    """Make an ApiConfigSource refer to the control plane."""
    config.api_type, config.transport_api_version = _GRPC, _V3
    config.grpc_services.add().envoy_grpc.cluster_name = _STAND_IN


class _Builder:
    """Adds resources to a bootstrap, with unique names and addresses."""

    def __init__(self, bootstrap: Any) -> None:
        self._static = bootstrap.static_resources
        self._clusters = {cluster.name for cluster in self._static.clusters}
        self._addresses = {
            _encode(address) for listener in self._static.listeners for address in _addresses(listener)
        }
        """Encoded addresses of the listeners."""
        self._count = 0
        self._port = 65536
        """Port that was last chosen for a listener."""

    def cluster(self, resource: Resource) -> None:
        self._add_cluster(_parse(resource))

    def _add_cluster(self, cluster: Any) -> None:
        _adapt_tls(cluster.transport_socket)
        for match in cluster.transport_socket_matches:
            _adapt_tls(match.transport_socket)
        # Versions of a cluster for several clients can be in one bootstrap.
        while cluster.name in self._clusters:
            cluster.name = self._unique_name()
        self._clusters.add(cluster.name)
        self._static.clusters.append(cluster)

    def _stand_in_cluster(self) -> Any:
        cluster = _new("envoy.config.cluster.v3.Cluster", name=self._unique_name(), type=_STATIC)
        cluster.load_assignment.cluster_name = cluster.name
        return cluster

    def assignment(self, resource: Resource) -> None:
        cluster = self._stand_in_cluster()
        cluster.load_assignment.CopyFrom(_parse(resource))
        self._add_cluster(cluster)

    def endpoint(self, resource: Resource) -> None:
        cluster = self._stand_in_cluster()
        cluster.load_assignment.endpoints.add().lb_endpoints.append(_parse(resource))
        self._add_cluster(cluster)

    def listener(self, resource: Resource) -> None:
        listener = _parse(resource)
        if listener.HasField("api_listener"):
            # Envoy loads only one API listener.
            self._add_http(listener.api_listener.api_listener)
        else:
            self._add_listener(listener)

    def _add_listener(self, listener: Any) -> None:
        for chain in (*listener.filter_chains, listener.default_filter_chain):  # Reading it does not set it.
            _adapt_tls(chain.transport_socket)
        listener.name = self._unique_name()
        for address in _addresses(listener):
            while _encode(address) in self._addresses and self._change_address(address):
                pass
            self._addresses.add(_encode(address))
        self._static.listeners.append(listener)

    def _change_address(self, address: Any) -> bool:
        """Change an address into another one that is as valid. Return whether that was possible."""
        kind = address.WhichOneof("address")
        if kind == "socket_address" and self._port > 1:
            self._port -= 1
            address.socket_address.port_value = self._port
        elif kind == "pipe":
            self._count += 1
            path, suffix = address.pipe.path, f"-{self._count}"
            # The path of a socket has a maximum length.
            address.pipe.path = path[: max(len(path) - len(suffix), 1)] + suffix
        else:
            return False  # An internal listener has none, and Envoy refuses others without one.
        return True

    def _add_http(self, connection_manager: Any) -> None:
        listener = _new("envoy.config.listener.v3.Listener")
        listener.address.socket_address.address = "127.0.0.1"
        listener.address.socket_address.port_value = 1
        http_filter = listener.filter_chains.add().filters.add(name=_HCM)
        http_filter.typed_config.CopyFrom(connection_manager)
        self._add_listener(listener)

    def routes(self, resource: Resource) -> None:
        self._add_routes(_parse(resource))

    def virtual_host(self, resource: Resource) -> None:
        routes = _new("envoy.config.route.v3.RouteConfiguration", name=self._unique_name())
        routes.virtual_hosts.append(_parse(resource))
        self._add_routes(routes)

    def _add_routes(self, routes: Any) -> None:
        # Clusters are other resources. Unlike for inline routes, a check is not the default for RDS.
        routes.validate_clusters.value = False
        manager = _new(_HCM, stat_prefix=_STAND_IN, route_config=routes)
        manager.http_filters.add(name=_ROUTER).typed_config.Pack(_new(_ROUTER))
        packed = _new("google.protobuf.Any")
        packed.Pack(manager)
        self._add_http(packed)

    def secret(self, resource: Resource) -> None:
        secret = _parse(resource)
        kind = secret.WhichOneof("type")
        if kind in {"tls_certificate", "validation_context"}:
            # Envoy reads certificates when a TLS context uses them.
            context = _new(f"{_TLS}.UpstreamTlsContext")
            common = context.common_tls_context
            if kind == "tls_certificate":
                common.tls_certificates.append(secret.tls_certificate)
            else:
                common.validation_context.CopyFrom(secret.validation_context)
            cluster = self._stand_in_cluster()
            cluster.transport_socket.name = _TLS
            cluster.transport_socket.typed_config.Pack(context)
            self._add_cluster(cluster)
        else:
            secret.name = self._unique_name()
            self._static.secrets.append(secret)

    def _unique_name(self) -> str:
        self._count += 1
        return f"{_STAND_IN}-{self._count}"


_ADD: Mapping[str, Callable[[_Builder, Resource], None]] = {
    CLUSTER: _Builder.cluster,
    ENDPOINT: _Builder.assignment,
    LB_ENDPOINT: _Builder.endpoint,
    LISTENER: _Builder.listener,
    ROUTE: _Builder.routes,
    VIRTUAL_HOST: _Builder.virtual_host,
    SECRET: _Builder.secret,
}
"""Adds a resource to a bootstrap, by type."""


def _adapt_tls(transport_socket: Any) -> None:
    """Replace the parts of a TLS context that Envoy cannot load here."""
    packed = transport_socket.typed_config
    kind = packed.type_url.rpartition("/")[2]
    if kind not in {f"{_TLS}.UpstreamTlsContext", f"{_TLS}.DownstreamTlsContext"}:
        return
    context = _new(kind)
    try:
        context.ParseFromString(packed.value)
    except DecodeError:
        return  # Envoy refuses it.
    _leave_out_files(context.common_tls_context)
    _replace_ads(context.common_tls_context)
    packed.value = context.SerializeToString()


def _leave_out_files(common: Any) -> None:
    """Remove certificates that are in files which this machine does not have, and replace roots."""
    kept = [each.SerializeToString() for each in common.tls_certificates if not [*_missing_files(each)]]
    del common.tls_certificates[:]
    for certificate in kept:
        common.tls_certificates.add().ParseFromString(certificate)
    combined = common.combined_validation_context
    for validation in (common.validation_context, combined.default_validation_context):
        for name in _missing_files(validation):
            validation.ClearField(name)
            if name == "trusted_ca":  # Without a root, Envoy would refuse other conditions.
                validation.trusted_ca.inline_string = _STAND_IN_ROOT


def _replace_ads(common: Any) -> None:
    """Replace ADS as the source of secrets.

    With `--mode validate`, Envoy loads a static cluster before it has ADS, and crashes.
    """
    configs = list(common.tls_certificate_sds_secret_configs)
    if common.HasField("validation_context_sds_secret_config"):
        configs.append(common.validation_context_sds_secret_config)
    if common.HasField("combined_validation_context"):
        configs.append(common.combined_validation_context.validation_context_sds_secret_config)
    for config in configs:
        if config.sds_config.HasField("ads"):
            _set_api(config.sds_config.api_config_source)


def _missing_files(message: Any) -> Iterator[str]:
    """Yield the fields of a message that are data sources with a file that this machine does not have."""
    for field, value in message.ListFields():
        if field.message_type and field.message_type.full_name == "envoy.config.core.v3.DataSource":
            sources = value if field.is_repeated else (value,)
            if any(source.filename and not _is_readable(source.filename) for source in sources):
                yield field.name


def _is_readable(path: str) -> bool:
    try:
        return os.access(path, os.R_OK)
    except ValueError:  # For example, it contains a NUL byte.
        return False


def _addresses(listener: Any) -> list[Any]:
    return [listener.address, *(additional.address for additional in listener.additional_addresses)]


def _encode(address: Any) -> bytes:
    encoded: bytes = address.SerializeToString(deterministic=True)
    return encoded


def _type_name(resource: Resource) -> str:
    return resource.type_url.rpartition("/")[2]


def _parse(resource: Resource) -> Any:
    message = _new(_type_name(resource))
    message.ParseFromString(resource.body)
    return message


def _new(message: str, /, **fields: Any) -> Any:
    return message_class(message)(**fields)
