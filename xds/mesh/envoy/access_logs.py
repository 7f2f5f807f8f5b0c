"""Access logs that sidecars send to the control plane: what they receive in plaintext, and what they refuse.

Only the filter chains for plaintext have a log of their own, so mutual TLS costs nothing. Envoy buffers the
entries, and drops them while the control plane does not read.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog, AccessLogFilter, ResponseFlagFilter
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    TcpGrpcAccessLogConfig,
)

from xds.codec import pack
from xds.mesh.envoy.names import CONTROL_PLANE

FLUSH_INTERVAL = timedelta(seconds=10)
"""Time after which Envoy sends buffered entries."""
PERIODIC_INTERVAL = timedelta(seconds=60)
"""Interval at which an open connection, or a request without end, is reported again."""
BUFFER_BYTES = 64 * 1024
"""Size of buffered entries at which Envoy sends them earlier. An entry has about 300 bytes."""
_NO_CHAIN = "NR"
"""Response flag of a connection that matches no filter chain: plaintext to a port that requires mTLS."""


@lru_cache(maxsize=1)
def reported() -> AccessLog:
    """Return the access log that the control plane receives.

    It has the same name everywhere, so each worker thread of Envoy has one stream for it. Entries have no
    HTTP headers or paths, not even those of HTTP requests.
    """
    common = CommonGrpcAccessLogConfig(
        log_name="inbound",
        transport_api_version=ApiVersion.V3,
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=CONTROL_PLANE)),
        buffer_flush_interval=FLUSH_INTERVAL,
        buffer_size_bytes=BUFFER_BYTES,
    )
    return AccessLog(
        name="envoy.access_loggers.tcp_grpc", typed_config=pack(TcpGrpcAccessLogConfig(common_config=common))
    )


@lru_cache(maxsize=1)
def refused() -> AccessLog:
    """Return the listener's access log of connections that match no filter chain."""
    log = reported()
    return AccessLog(
        name=log.name,
        typed_config=log.typed_config,
        filter=AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=[_NO_CHAIN])),
    )
