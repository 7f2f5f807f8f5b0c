"""Merge the application's metrics with Envoy's, because Prometheus cannot send mutual TLS.

The path `/stats/prometheus` of the probe listener leads to a listener inside Envoy, whose Lua script requests
both and answers with Envoy's metrics, then the application's. The behaviour is that of Istio's agent, with
these differences: an answer that cannot be merged leaves Envoy's metrics intact, and a metric reports it.

Anyone who can connect to the pod can request metrics. Envoy therefore answers at most MAX_SCRAPES at a time,
including those whose client reads slowly, and limits each part of an answer to 32 MiB (its default for
requests of scripts).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from string import Template

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
)
from envoy_data_plane.envoy.config.core.v3 import DataSource, Metadata
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import DirectResponseAction, Route, RouteAction, RouteMatch
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter

from xds.codec import pack
from xds.mesh.envoy import internal
from xds.mesh.envoy.common import strings
from xds.mesh.envoy.names import ADMIN_CLUSTER

PATH = "/stats/prometheus"
"""Path of Envoy's metrics, and of the merged metrics."""
SUCCESS = "xds_application_scrape_success"
"""Metric: whether the application's metrics are part of the answer, 0 or 1."""
MERGED = "merged-metrics"
"""Cluster and listener, inside Envoy, of the merged metrics."""
MAX_SCRAPES = 4
"""Maximum number of scrapes at a time; more are answered with 503."""
MAX_TIMEOUT = 60
"""Maximum time for the application's answer, in seconds."""

_LUA = "envoy.filters.http.lua"

_SCRIPT = Template("""
-- Prometheus sends its timeout. Answer before it passes, so that Envoy's metrics are not lost.
local function milliseconds(text)
  local seconds = tonumber(text) or 10
  if not (seconds > 0 and seconds <= $max_timeout) then seconds = $max_timeout end
  return math.max(1, math.floor(seconds * 900))
end

-- Protobuf cannot be merged by concatenation.
local function without_protobuf(accept)
  local kept = {}
  for format in (accept or ""):gmatch("[^,]+") do
    if not format:lower():find("protobuf", 1, true) then table.insert(kept, format) end
  end
  return #kept > 0 and table.concat(kept, ",") or "text/plain;version=0.0.4"
end

-- Returns why an answer cannot be merged; nil if it can.
local function problem(headers, body, format)
  if headers[":status"] ~= "200" then return "status " .. headers[":status"] end
  if headers["content-encoding"] then return "content-encoding" end
  if format == "application/openmetrics-text" then
    return not body:find("# EOF\\n?$$") and "no # EOF" or nil
  end
  return format ~= "text/plain" and format ~= "" and "content-type" or nil
end

function envoy_on_request(handle)
  local target, request = handle:metadata(), handle:headers()
  local timeout = milliseconds(request:get("x-prometheus-scrape-timeout-seconds"))
  local headers, body = handle:httpCall(target:get("cluster"), {
    [":method"] = "GET",
    [":path"] = target:get("path"),
    [":authority"] = target:get("authority"),
    ["accept"] = without_protobuf(request:get("accept")),
    ["user-agent"] = request:get("user-agent") or "Envoy",
    ["x-prometheus-scrape-timeout-seconds"] = tostring(timeout / 1000),
  }, nil, timeout)
  body = body or ""
  local content_type = headers["content-type"] or ""
  local format = content_type:lower():match("^%s*([^;%s]*)")
  local failure = problem(headers, body, format)

  local status, envoy = handle:httpCall("$admin", {
    [":method"] = "GET", [":path"] = "$path", [":authority"] = "$admin",
  }, nil, 1000 * $max_timeout)
  if status[":status"] ~= "200" then
    handle:respond({[":status"] = "502"}, "Envoy's metrics: status " .. status[":status"])
    return
  end
  envoy = envoy or ""
  if failure then
    content_type, body = "text/plain; version=0.0.4", "# Not merged: " .. failure .. "\\n"
  elseif content_type == "" then
    content_type = "text/plain; version=0.0.4"
  elseif format ~= "text/plain" then
    -- OpenMetrics has no empty lines.
    envoy = envoy:gsub("\\n\\n+", "\\n")
  end
  -- The application's metrics are last: OpenMetrics ends with # EOF.
  handle:respond({[":status"] = "200", ["content-type"] = content_type}, table.concat({
    envoy,
    "# TYPE $success gauge\\n",
    "$success ", failure and "0" or "1", "\\n",
    body,
  }))
end
""").substitute(max_timeout=MAX_TIMEOUT, path=PATH, admin=ADMIN_CLUSTER, success=SUCCESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppMetrics:
    """The application's metrics."""

    port: int
    """Port of the application."""
    target: str = "/metrics"
    """Path of the request, optionally with a query."""
    https: bool = False
    """Whether to use TLS. The sidecar does not verify the certificate."""


def route() -> Route:
    """Return the route of the merged metrics."""
    return Route(
        match=RouteMatch(path=PATH),
        route=RouteAction(cluster=MERGED, timeout=timedelta(seconds=3 * MAX_TIMEOUT)),
    )


def merging_resources(cluster: str, authority: str, target: str) -> list[Cluster | Listener]:
    """Return the listener that merges metrics, and the cluster that leads to it.

    Args:
        cluster: cluster of the application.
        authority: Host header for the application.
        target: path of the application's metrics.
    """
    context = strings(cluster=cluster, authority=authority, path=target)
    merge = Route(
        match=RouteMatch(prefix="/"),
        # The script answers every request.
        direct_response=DirectResponseAction(status=404),
        metadata=Metadata(filter_metadata={_LUA: context}),
    )
    lua = Lua(default_source_code=DataSource(inline_string=_SCRIPT))
    script = HttpFilter(name=_LUA, typed_config=pack(lua))
    limits = CircuitBreakersThresholds(max_requests=MAX_SCRAPES, max_pending_requests=MAX_SCRAPES)
    merged = internal.cluster(MERGED, MERGED)
    merged.circuit_breakers = CircuitBreakers(thresholds=[limits])
    return [merged, internal.listener(MERGED, merge, [script])]
