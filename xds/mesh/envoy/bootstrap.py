"""The bootstrap configuration of a sidecar's Envoy: node, control plane, admin interface and health check."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapDynamicResources,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import (
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    BackoffStrategy,
    ConfigSource,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    GrpcServiceGoogleGrpc,
    GrpcServiceGoogleGrpcCallCredentials,
    GrpcServiceGoogleGrpcCallCredentialsMetadataCredentialsFromPlugin,
    GrpcServiceGoogleGrpcChannelArgs,
    GrpcServiceGoogleGrpcChannelArgsValue,
    GrpcServiceGoogleGrpcChannelCredentials,
    GrpcServiceGoogleGrpcSslCredentials,
    Http2ProtocolOptions,
    KeepaliveSettings,
    Node,
    RetryPolicy,
)
from envoy_data_plane.envoy.config.grpc_credential.v3 import FileBasedMetadataConfig
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)

from xds.codec import pack
from xds.mesh.envoy import filters, names
from xds.mesh.envoy.common import HTTP_OPTIONS, address, ads, one_endpoint, strings
from xds.mesh.model.names import host_port
from xds.mesh.model.objects import ADMIN_PORT, HEALTH_PORT, Interception, Pod

XDS_CLUSTER = "xds-grpc"
_ADMIN_CLUSTER = "admin"
_FILE_BASED = "envoy.grpc_credentials.file_based_metadata"

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Maximum size of a response that a sidecar accepts. The default of Google's gRPC is 4 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """Files with a sidecar's token, and with the roots that verify the control plane."""

    token: str
    """Path of a bearer token without a newline. Envoy reads the file for each new stream."""
    roots: str
    """Path of the PEM roots that verify the control plane's certificate. Envoy reads the file once."""


def loopback_address(pod: Pod) -> str:
    """Return the loopback address of a sidecar's local listeners.

    It is the pod's address if that is a loopback address, so that several sidecars can share a host.
    """
    if pod.interception is Interception.NONE and _is_loopback(pod.address):
        return pod.address
    return "127.0.0.1"


def _is_loopback(text: str) -> bool:
    return bool(text) and ipaddress.ip_address(text).is_loopback


def bootstrap(
    pod: Pod,
    xds_host: str,
    xds_port: int,
    *,
    sotw: bool = False,
    credential: TokenFile | None = None,
    added: Iterable[Cluster | Listener] = (),
) -> Bootstrap:
    """Return a sidecar's bootstrap.

    Args:
        pod: pod of the sidecar, which must have an address.
        xds_host: address or host name of the control plane. With a credential, it must be in the control
            plane's certificate.
        xds_port: port of the control plane.
        sotw: whether to use the state-of-the-world variant instead of delta.
        credential: token and roots for TLS; None for plaintext without authentication.
        added: additional static clusters and listeners.
    """
    added = tuple(added)
    api = ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC if sotw else ApiConfigSourceApiType.DELTA_GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[_authenticated(xds_host, xds_port, credential) if credential else _plaintext()],
        set_node_on_first_message_only=True,
    )
    local_address = loopback_address(pod)
    health_address = pod.address if pod.interception is Interception.NONE else "0.0.0.0"
    app = pod.meta.labels.get("app", pod.name)
    return Bootstrap(
        node=Node(
            id=str(names.NodeId(pod.address, pod.name, pod.namespace)),
            cluster=f"{app}.{pod.namespace}",
            metadata=strings(NAME=pod.name, NAMESPACE=pod.namespace, SERVICE_ACCOUNT=pod.service_account),
        ),
        admin=Admin(address=address(local_address, ADMIN_PORT)),
        dynamic_resources=BootstrapDynamicResources(
            ads_config=api, cds_config=_ads_without_timeout(), lds_config=_ads_without_timeout()
        ),
        static_resources=BootstrapStaticResources(
            clusters=[
                *([] if credential else [_control_plane(xds_host, xds_port)]),
                _cluster(_ADMIN_CLUSTER, local_address, ADMIN_PORT),
                *(item for item in added if isinstance(item, Cluster)),
            ],
            listeners=[
                admin_page_listener("health", health_address, HEALTH_PORT, "/healthz/ready", "/ready"),
                *(item for item in added if isinstance(item, Listener)),
            ],
        ),
    )


def _ads_without_timeout() -> ConfigSource:
    """Return the config source for ADS, without a fetch timeout.

    By default, Envoy becomes ready after 30 s without configuration, and refuses all traffic.
    """
    source = ads()
    source.initial_fetch_timeout = timedelta(0)
    return source


def _retry_policy() -> RetryPolicy:
    """Return a policy with a backoff of at most 5 s. Envoy's default is 30 s."""
    backoff = BackoffStrategy(base_interval=timedelta(milliseconds=500), max_interval=timedelta(seconds=5))
    return RetryPolicy(retry_back_off=backoff)


def _plaintext() -> GrpcService:
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=XDS_CLUSTER, retry_policy=_retry_policy()),
    )


def _authenticated(host: str, port: int, credential: TokenFile) -> GrpcService:
    """Return a service that uses Google's gRPC client. Envoy's own client cannot read a token from a file."""
    roots = GrpcServiceGoogleGrpcSslCredentials(root_certs=DataSource(filename=credential.roots))
    bearer = FileBasedMetadataConfig(
        secret_data=DataSource(filename=credential.token), header_prefix="Bearer "
    )
    plugin = GrpcServiceGoogleGrpcCallCredentialsMetadataCredentialsFromPlugin(
        name=_FILE_BASED, typed_config=pack(bearer)
    )
    return GrpcService(
        google_grpc=GrpcServiceGoogleGrpc(
            target_uri=host_port(host, port),
            stat_prefix=XDS_CLUSTER,
            channel_credentials=GrpcServiceGoogleGrpcChannelCredentials(ssl_credentials=roots),
            call_credentials=[GrpcServiceGoogleGrpcCallCredentials(from_plugin=plugin)],
            credentials_factory_name=_FILE_BASED,
            channel_args=_integers(
                {
                    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
                    # Detect a control plane that disappeared without closing the connection.
                    "grpc.keepalive_time_ms": 30_000,
                    "grpc.keepalive_timeout_ms": 10_000,
                    "grpc.http2.ping_timeout_ms": 10_000,
                    "grpc.http2.max_pings_without_data": 0,
                    # gRPC's default reconnect backoff is up to two minutes.
                    "grpc.initial_reconnect_backoff_ms": 500,
                    "grpc.max_reconnect_backoff_ms": 5000,
                }
            ),
        ),
        retry_policy=_retry_policy(),
    )


def _integers(values: dict[str, int]) -> GrpcServiceGoogleGrpcChannelArgs:
    return GrpcServiceGoogleGrpcChannelArgs(
        args={name: GrpcServiceGoogleGrpcChannelArgsValue(int_value=value) for name, value in values.items()}
    )


def _cluster(name: str, host: str, port: int) -> Cluster:
    try:
        ipaddress.ip_address(host)
        kind = ClusterDiscoveryType.STATIC
    except ValueError:
        kind = ClusterDiscoveryType.STRICT_DNS
    return Cluster(
        name=name,
        type=kind,
        connect_timeout=timedelta(seconds=1),
        load_assignment=one_endpoint(name, host, port),
    )


def _control_plane(host: str, port: int) -> Cluster:
    cluster = _cluster(XDS_CLUSTER, host, port)
    # Detect a control plane that disappeared without closing the connection.
    keepalive = KeepaliveSettings(interval=timedelta(seconds=30), timeout=timedelta(seconds=10))
    http2 = Http2ProtocolOptions(connection_keepalive=keepalive)
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    )
    cluster.typed_extension_protocol_options = {HTTP_OPTIONS: pack(options)}
    return cluster


def admin_page_listener(name: str, host: str, port: int, path: str, admin_path: str) -> Listener:
    """Return a listener that serves a single page of the admin interface at `path`."""
    page = Route(
        match=RouteMatch(path=path),
        route=RouteAction(cluster=_ADMIN_CLUSTER, prefix_rewrite=admin_path),
    )
    hosts = [VirtualHost(name=name, domains=["*"], routes=[page])]
    return Listener(
        name=name,
        address=address(host, port),
        filter_chains=[FilterChain(filters=[filters.http_to(name, hosts)])],
    )
