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
    ClusterManager,
)
from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
    ClusterDnsLookupFamily,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
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
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http2ProtocolOptions,
    KeepaliveSettings,
    Node,
    Pipe,
    SubstitutionFormatString,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.grpc_credential.v3 import FileBasedMetadataConfig
from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.bootstrap.internal_listener.v3 import InternalListener
from envoy_data_plane.envoy.extensions.filters.common.set_filter_state.v3 import FilterStateValue
from envoy_data_plane.envoy.extensions.filters.http.set_filter_state.v3 import Config as SetFilterState
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.formatter.file_content.v3 import FileContent
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from xds.codec import pack
from xds.mesh.envoy import filters, internal, names
from xds.mesh.envoy.common import (
    HTTP_OPTIONS,
    address,
    ads,
    bound_to,
    one_endpoint,
    retry_policy,
    strings,
    wildcards,
)
from xds.mesh.envoy.names import ADMIN_CLUSTER
from xds.mesh.model.names import host_port
from xds.mesh.model.objects import ADMIN_PORT, HEALTH_PORT, Interception, Pod

_TLS_CLUSTER = "xds-tls"
"""Static cluster of the control plane over TLS."""
_RELAY = "xds-reports"
"""Listener inside Envoy that adds the token to access logs."""
_TOKEN = "xds.authorization"  # noqa: S105 - a key
"""Key of the authorization header's value in Envoy's filter state."""
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

    def __post_init__(self) -> None:
        """Raise ValueError for a path that Envoy's format strings cannot contain."""
        if set(self.token) & set(":)%"):
            raise ValueError(f"the path of the token must not contain ':', ')' or '%': {self.token}")


def loopback_address(pod: Pod) -> str:
    """Return the loopback address of a sidecar's local listeners.

    It is the pod's address if that is a loopback address, so that several sidecars can share a host.
    """
    if pod.interception is Interception.NONE and _is_loopback(pod.address):
        return pod.address
    return "127.0.0.1"


def sidecar_hosts(pod: Pod) -> tuple[str, ...]:
    """Return the addresses that a sidecar listens on for the kubelet and Prometheus."""
    if pod.interception is Interception.NONE:
        return (pod.address, *pod.more_addresses)
    return wildcards(pod.families)


def _is_loopback(text: str) -> bool:
    return bool(text) and ipaddress.ip_address(text).is_loopback


def bootstrap(
    pod: Pod,
    xds_host: str,
    xds_port: int,
    *,
    sotw: bool = False,
    credential: TokenFile | None = None,
    certificate_socket: str = "",
    has_pod_certificate: bool = False,
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
        certificate_socket: path of the Unix socket at which `xds proxy` serves the sidecar's own certificate;
            empty if the control plane makes its key.
        has_pod_certificate: whether the kubelet keeps the sidecar's key and certificate.
        added: additional static clusters and listeners.
    """
    added = tuple(added)
    control_plane = _authenticated(xds_host, xds_port, credential) if credential else _plaintext()
    api = ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC if sotw else ApiConfigSourceApiType.DELTA_GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[control_plane],
        set_node_on_first_message_only=True,
    )
    if credential:
        clusters, relay = _relay(xds_host, xds_port, credential)
        added = (*clusters, relay, *added)
    else:
        added = (_control_plane(xds_host, xds_port), *added)
    if certificate_socket:
        added = (_own_certificate(certificate_socket), *added)
    features = [names.OWN_KEY_FEATURE] if certificate_socket else []
    features += [names.POD_CERTIFICATE_FEATURE] if has_pod_certificate else []
    local_address = loopback_address(pod)
    app = pod.meta.labels.get("app", pod.name)
    return Bootstrap(
        node=Node(
            id=str(names.NodeId(pod.address, pod.name, pod.namespace)),
            cluster=f"{app}.{pod.namespace}",
            metadata=strings(NAME=pod.name, NAMESPACE=pod.namespace, SERVICE_ACCOUNT=pod.service_account),
            client_features=features,
        ),
        admin=Admin(address=address(local_address, ADMIN_PORT)),
        dynamic_resources=BootstrapDynamicResources(
            ads_config=api, cds_config=_ads_without_timeout(), lds_config=_ads_without_timeout()
        ),
        cluster_manager=ClusterManager(load_stats_config=_load_reports(control_plane)),
        bootstrap_extensions=[_internal_listeners()] if any(map(internal.is_internal, added)) else [],
        static_resources=BootstrapStaticResources(
            clusters=[
                _cluster(ADMIN_CLUSTER, local_address, ADMIN_PORT),
                *(item for item in added if isinstance(item, Cluster)),
            ],
            listeners=[
                admin_page_listener("health", sidecar_hosts(pod), HEALTH_PORT, "/healthz/ready", "/ready"),
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


def _plaintext() -> GrpcService:
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=names.CONTROL_PLANE, retry_policy=retry_policy()),
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
            stat_prefix=names.CONTROL_PLANE,
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
        retry_policy=retry_policy(),
    )


def _integers(values: dict[str, int]) -> GrpcServiceGoogleGrpcChannelArgs:
    return GrpcServiceGoogleGrpcChannelArgs(
        args={name: GrpcServiceGoogleGrpcChannelArgsValue(int_value=value) for name, value in values.items()}
    )


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _cluster(name: str, host: str, port: int) -> Cluster:
    kind = ClusterDiscoveryType.LOGICAL_DNS if _is_name(host) else ClusterDiscoveryType.STATIC
    return Cluster(
        name=name,
        type=kind,
        connect_timeout=timedelta(seconds=1),
        # Try the addresses of both families, as Google's gRPC client does. Envoy's default is IPv6 only, if
        # the name has such an address.
        dns_lookup_family=ClusterDnsLookupFamily.ALL,
        load_assignment=one_endpoint(name, host, port=port),
    )


def _internal_listeners() -> TypedExtensionConfig:
    return TypedExtensionConfig(
        name="envoy.bootstrap.internal_listener", typed_config=pack(InternalListener())
    )


def _load_reports(grpc_service: GrpcService) -> ApiConfigSource:
    """Return where the sidecar reports its outbound requests. The control plane sets the interval."""
    return ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[grpc_service],
    )


def _control_plane(host: str, port: int) -> Cluster:
    cluster = _cluster(names.CONTROL_PLANE, host, port)
    # It includes the TLS handshake, which takes seconds when a whole mesh reconnects.
    cluster.connect_timeout = timedelta(seconds=10)
    # Detect a control plane that disappeared without closing the connection.
    keepalive = KeepaliveSettings(interval=timedelta(seconds=30), timeout=timedelta(seconds=10))
    _use_http2(cluster, Http2ProtocolOptions(connection_keepalive=keepalive))
    return cluster


def _own_certificate(socket: str) -> Cluster:
    endpoint = LbEndpoint(endpoint=Endpoint(address=Address(pipe=Pipe(path=socket))))
    cluster = Cluster(
        name=names.OWN_CERTIFICATE,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        load_assignment=ClusterLoadAssignment(
            cluster_name=names.OWN_CERTIFICATE, endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])]
        ),
    )
    _use_http2(cluster, Http2ProtocolOptions())
    return cluster


def _use_http2(cluster: Cluster, http2: Http2ProtocolOptions) -> None:
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    )
    cluster.typed_extension_protocol_options = {HTTP_OPTIONS: pack(options)}


def _relay(host: str, port: int, credential: TokenFile) -> tuple[list[Cluster], Listener]:
    """Return the clusters and the listener that add the token to access logs.

    The logs are configured in listeners, which name a cluster, because the control plane does not know the
    path of the token. That cluster leads to a listener inside Envoy, which adds the token and forwards to the
    control plane over TLS. It reads the file again after the kubelet has replaced the token. No process
    outside Envoy can connect to it.
    """
    tls_cluster = _control_plane(host, port)
    tls_cluster.name = tls_cluster.load_assignment.cluster_name = _TLS_CLUSTER  # type: ignore[union-attr]
    tls_cluster.transport_socket = _verified_tls(host, credential.roots)
    relay_cluster = internal.cluster(names.CONTROL_PLANE, _RELAY)
    _use_http2(relay_cluster, Http2ProtocolOptions())
    forward = Route(
        match=RouteMatch(prefix="/"),
        route=RouteAction(cluster=_TLS_CLUSTER, timeout=timedelta(0)),
        request_headers_to_add=[
            HeaderValueOption(
                header=HeaderValue(key="authorization", value=f"%FILTER_STATE({_TOKEN}:PLAIN)%"),
                append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
    )
    relay = internal.listener(_RELAY, forward, [_read_token(credential.token)])
    return [relay_cluster, tls_cluster], relay


def _read_token(path: str) -> HttpFilter:
    """Return the HTTP filter that stores the token as the value of the authorization header."""
    directory = path.rpartition("/")[0] or "/"
    text = f"Bearer %FILE_CONTENT({path}:{directory})%"
    formatter = TypedExtensionConfig(name="envoy.formatter.file_content", typed_config=pack(FileContent()))
    value = FilterStateValue(
        object_key=_TOKEN,
        factory_key="envoy.string",
        format_string=SubstitutionFormatString(
            text_format_source=DataSource(inline_string=text), formatters=[formatter]
        ),
    )
    return HttpFilter(
        name="envoy.filters.http.set_filter_state",
        typed_config=pack(SetFilterState(on_request_headers=[value])),
    )


def _verified_tls(host: str, roots: str) -> TransportSocket:
    """Return TLS that verifies the control plane's certificate and its name or address."""
    is_name = _is_name(host)
    name = SubjectAltNameMatcher(
        san_type=SubjectAltNameMatcherSanType.DNS if is_name else SubjectAltNameMatcherSanType.IP_ADDRESS,
        matcher=StringMatcher(exact=host),
    )
    context = UpstreamTlsContext(
        sni=host if is_name else "",
        common_tls_context=CommonTlsContext(
            alpn_protocols=["h2"],
            validation_context=CertificateValidationContext(
                trusted_ca=DataSource(filename=roots), match_typed_subject_alt_names=[name]
            ),
        ),
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


def admin_page_listener(name: str, hosts: Iterable[str], port: int, path: str, admin_path: str) -> Listener:
    """Return a listener that serves a single page of the admin interface at `path`."""
    page = Route(
        match=RouteMatch(path=path),
        route=RouteAction(cluster=ADMIN_CLUSTER, prefix_rewrite=admin_path),
    )
    virtual_hosts = [VirtualHost(name=name, domains=["*"], routes=[page])]
    first_address, more_addresses = bound_to(hosts, port)
    return Listener(
        name=name,
        address=first_address,
        additional_addresses=more_addresses,
        filter_chains=[FilterChain(filters=[filters.http_to(name, virtual_hosts)])],
    )
