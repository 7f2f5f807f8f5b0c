"""Message types that the control plane and programs serve or send."""

from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.config.grpc_credential import v3 as grpc_credential
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel import v3 as cel
from envoy_data_plane.envoy.extensions.access_loggers.grpc import v3 as access_logs
from envoy_data_plane.envoy.extensions.bootstrap.internal_listener import v3 as internal_listener
from envoy_data_plane.envoy.extensions.filters.common.set_filter_state import v3 as filter_state
from envoy_data_plane.envoy.extensions.filters.http.buffer import v3 as buffer
from envoy_data_plane.envoy.extensions.filters.http.header_mutation import v3 as header_mutation
from envoy_data_plane.envoy.extensions.filters.http.health_check import v3 as health_check
from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as lua
from envoy_data_plane.envoy.extensions.filters.http.rbac import v3 as http_rbac
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router
from envoy_data_plane.envoy.extensions.filters.http.set_filter_state import v3 as http_filter_state
from envoy_data_plane.envoy.extensions.filters.listener.http_inspector import v3 as http_inspector
from envoy_data_plane.envoy.extensions.filters.listener.original_dst import v3 as original_dst
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector import v3 as tls_inspector
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.filters.network.rbac import v3 as network_rbac
from envoy_data_plane.envoy.extensions.filters.network.set_filter_state import v3 as network_filter_state
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as tcp_proxy
from envoy_data_plane.envoy.extensions.formatter.file_content import v3 as file_content
from envoy_data_plane.envoy.extensions.path.match.uri_template import v3 as uri_template
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts
from envoy_data_plane.envoy.extensions.transport_sockets.internal_upstream import v3 as internal_upstream
from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer import v3 as raw_buffer
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstreams
from envoy_data_plane.envoy.service.discovery import v3 as discovery
from envoy_data_plane.envoy.service.runtime import v3 as runtime
from envoy_data_plane.envoy.service.status import v3 as status
from envoy_data_plane.google.protobuf import Any as PackedMessage
from envoy_data_plane.google.protobuf import ListValue, Struct

SERVED_TYPES = [
    lua.Lua,
    access_logs.TcpGrpcAccessLogConfig,
    cel.ExpressionFilter,
    bootstrap.Bootstrap,
    cluster.Cluster,
    endpoint.ClusterLoadAssignment,
    grpc_credential.FileBasedMetadataConfig,
    filter_state.FilterStateValue,
    hcm.HttpConnectionManager,
    buffer.Buffer,
    header_mutation.HeaderMutation,
    header_mutation.HeaderMutationPerRoute,
    health_check.HealthCheck,
    http_filter_state.Config,
    http_inspector.HttpInspector,
    file_content.FileContent,
    internal_listener.InternalListener,
    internal_upstream.InternalUpstreamTransport,
    listener.Listener,
    network_filter_state.Config,
    original_dst.OriginalDst,
    previous_hosts.PreviousHostsPredicate,
    raw_buffer.RawBuffer,
    route.RouteConfiguration,
    router.Router,
    status.ClientConfig,
    tcp_proxy.TcpProxy,
    http_rbac.Rbac,
    network_rbac.Rbac,
    uri_template.UriTemplateMatchConfig,
    tls.DownstreamTlsContext,
    tls.Secret,
    tls.UpstreamTlsContext,
    tls_inspector.TlsInspector,
    upstreams.HttpProtocolOptions,
    # Types that programs can serve with the library.
    core.TypedExtensionConfig,
    endpoint.LbEndpoint,
    route.ScopedRouteConfiguration,
    route.VirtualHost,
    runtime.Runtime,
    discovery.DiscoveryRequest,
    discovery.DiscoveryResponse,
    discovery.DeltaDiscoveryRequest,
    discovery.DeltaDiscoveryResponse,
    core.Node,
    Struct,
    ListValue,
    PackedMessage,
]
