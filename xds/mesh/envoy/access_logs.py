"""Access logs that sidecars send to the control plane: what they receive in plaintext, refuse and deny.

Only the filter chains for plaintext log all requests. The others log what AuthorizationPolicies deny, or
would deny without `istio.io/dry-run`, so mutual TLS that they allow sends nothing. Envoy buffers the entries,
and drops them while the control plane does not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    ExtensionFilter,
    MetadataFilter,
    OrFilter,
    ResponseFlagFilter,
)
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, GrpcService, GrpcServiceEnvoyGrpc
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    TcpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.envoy.type.tracing.v3 import CustomTag

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


HTTP_RBAC = "envoy.filters.http.rbac"
NETWORK_RBAC = "envoy.filters.network.rbac"
"""Namespaces of the metadata that RBAC filters set."""
ENFORCED = "enforced_"
"""Prefix of the metadata of the rules that are enforced. Network filters set none."""
SHADOW_DENY, SHADOW_ALLOW = "deny_shadow_", "allow_shadow_"
"""Prefixes of the metadata of the rules that would be enforced without `istio.io/dry-run`."""
RESULT, RULE = "engine_result", "effective_policy_id"
"""Keys of the metadata, after a prefix: whether the rules deny, and the name of the rule that matched."""
DENIED = "denied"
"""Value of RESULT, and name of the log."""
LOG_TAG, METHOD_TAG, PATH_TAG, DETAILS_TAG = "log", "method", "path", "details"
"""Tags of an entry of the log `denied`: the name of the log, the method, the start of the path without the
query, and why Envoy ended a connection that is not HTTP."""
MAX_PATH = 128
"""Number of characters of a path that are reported."""
_HTTP_TAGS = {METHOD_TAG: "%REQ(:METHOD):32%", PATH_TAG: f"%PATH(NQ:PATH):{MAX_PATH}%"}
_TCP_TAGS = {DETAILS_TAG: "%CONNECTION_TERMINATION_DETAILS%"}


@lru_cache(maxsize=1)
def reported() -> AccessLog:
    """Return the access log that the control plane receives.

    It has the same name everywhere, so each worker thread of Envoy has one stream for it. Entries have no
    HTTP headers or paths, not even those of HTTP requests.
    """
    return _log("inbound")


@lru_cache(maxsize=1)
def refused() -> AccessLog:
    """Return the listener's access log of connections that match no filter chain."""
    return _log("inbound", AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=[_NO_CHAIN])))


@lru_cache(maxsize=1)
def denied_requests() -> AccessLog:
    """Return the access log of HTTP requests that are denied, or would be without `istio.io/dry-run`.

    Only RBAC filters set what its filter looks for, so responses 403 of applications are not in it.
    """
    return _denied(
        [_is_denied(HTTP_RBAC, prefix) for prefix in (ENFORCED, SHADOW_DENY, SHADOW_ALLOW)], _HTTP_TAGS
    )


@lru_cache(maxsize=2)
def denied_connections(*, dry_run: bool) -> AccessLog:
    """Return the access log of connections that are denied.

    `dry_run` is whether there are rules that would be enforced without `istio.io/dry-run`.
    """
    config = pack(
        ExpressionFilter(expression='connection.termination_details.startsWith("rbac_access_denied")')
    )
    cel = ExtensionFilter(name="cel", typed_config=config)
    shadows = (SHADOW_DENY, SHADOW_ALLOW) if dry_run else ()
    return _denied(
        [AccessLogFilter(extension_filter=cel), *(_is_denied(NETWORK_RBAC, prefix) for prefix in shadows)],
        _TCP_TAGS,
    )


def _denied(conditions: list[AccessLogFilter], tags: Mapping[str, str]) -> AccessLog:
    condition = AccessLogFilter(or_filter=OrFilter(filters=conditions)) if conditions[1:] else conditions[0]
    values = {LOG_TAG: DENIED, **tags}
    return _log(DENIED, condition, [CustomTag(tag=tag, value=value) for tag, value in values.items()])


def _is_denied(namespace: str, prefix: str) -> AccessLogFilter:
    matcher = MetadataMatcher(
        filter=namespace,
        path=[MetadataMatcherPathSegment(key=prefix + RESULT)],
        value=ValueMatcher(string_match=StringMatcher(exact=DENIED)),
    )
    return AccessLogFilter(metadata_filter=MetadataFilter(matcher=matcher, match_if_key_not_found=False))


def _log(name: str, condition: AccessLogFilter | None = None, tags: Iterable[CustomTag] = ()) -> AccessLog:
    common = CommonGrpcAccessLogConfig(
        log_name=name,
        transport_api_version=ApiVersion.V3,
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=CONTROL_PLANE)),
        buffer_flush_interval=FLUSH_INTERVAL,
        buffer_size_bytes=BUFFER_BYTES,
        custom_tags=list(tags),
    )
    return AccessLog(
        name=name,
        typed_config=pack(TcpGrpcAccessLogConfig(common_config=common)),
        filter=condition,
    )
