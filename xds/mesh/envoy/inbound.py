"""Inbound listeners (LDS): what a sidecar accepts on each port of its pod.

A filter chain that two modes share has the same bytes in both. Nothing outside `filter_chains` depends on
policy. When a mode changes, Envoy therefore replaces only the chains that differ, and keeps connections on
the other chains (ADR 0003). Filter chains by mode:

| mode       | TLS, mesh ALPN | TLS, other ALPN | plaintext    |
|------------|----------------|-----------------|--------------|
| STRICT     | terminated (1) | terminated (1)  | refused      |
| PERMISSIVE | terminated (1) | forwarded (2)   | accepted (3) |
| DISABLE    | forwarded (2)  | forwarded (2)   | accepted (3) |

(1) A client certificate is required. Both modes have the same chain for the mesh's ALPN.
(2) To the application, which terminates TLS itself. Ports declared as HTTP refuse such connections.
(3) Both modes have the same chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import TrafficDirection, TransportSocket
from envoy_data_plane.envoy.config.listener.v3 import (
    Filter,
    FilterChain,
    FilterChainMatch,
    Listener,
    ListenerFilter,
)
from envoy_data_plane.envoy.config.route.v3 import VirtualHost

from xds.mesh.envoy import access_logs, filters, rbac, tls
from xds.mesh.envoy.common import bound_to, seconds, wildcards
from xds.mesh.envoy.routes import to_cluster
from xds.mesh.model.families import Family
from xds.mesh.model.objects import ADMIN_PORT, MeshConfig, Mode, Protocol
from xds.mesh.policy.authorization import Rules
from xds.resources import Resource, resource
from xds.snapshot import tag_of

NAME = "virtualInbound"
_PLAINTEXT_ALPN = ("http/1.0", "http/1.1", "h2c")
_TLS_ALPN = ("http/1.0", "http/1.1", "h2")


class InboundPort(NamedTuple):
    """A port of the pod, and how its inbound listener serves it."""

    number: int
    """Port number; 0 for all ports that have no `InboundPort` of their own."""
    protocol: Protocol
    """Protocol of the port."""
    mode: Mode
    """Served mTLS mode."""
    cluster: str
    """Cluster of the application."""

    @property
    def label(self) -> str:
        """Prefix of the names of the port's filter chains."""
        return f"0.0.0.0_{self.number}" if self.number else f"{NAME}-catchall"


@lru_cache(maxsize=8192)
def chains(config: MeshConfig, port: InboundPort, rules: Rules, *, by_port: bool) -> tuple[FilterChain, ...]:
    """Return the filter chains of a port.

    Args:
        config: settings of the mesh.
        port: the port.
        rules: authorization of connections that are not parsed as HTTP.
        by_port: whether the chains match the destination port as well.
    """
    tls_sockets = {is_http: tls.server(config, http=is_http) for is_http in (True, False)}
    is_http = port.protocol.is_http
    detects_protocol = port.protocol is Protocol.AUTO
    guards = rbac.network_filters(config, rules)
    http = _http(config, port) if is_http or detects_protocol else None
    denials = {
        "reports_denials": bool(guards) and _reports_denials(config),
        "has_dry_run": rules.proposed is not None,
    }
    tcp = filters.tcp(port.cluster, **denials)
    plaintext_http = _http(config, port, observed=config.observe) if http else None
    plaintext_tcp = filters.tcp(port.cluster, observed=config.observe, **denials)

    def chain(
        name: str,
        network_filter: Filter | None,
        transport: str,
        alpn: tuple[str, ...] = (),
        *,
        terminates_tls: bool = False,
    ) -> FilterChain:
        socket: TransportSocket | None = tls_sockets[network_filter is http] if terminates_tls else None
        main = network_filter or tcp
        match = FilterChainMatch(transport_protocol=transport, application_protocols=list(alpn))
        if by_port and port.number:
            match.destination_port = port.number
        return FilterChain(
            name=f"{port.label};{name}",
            filter_chain_match=match,
            filters=[main] if main in (http, plaintext_http) else [*guards, main],
            transport_socket=socket,
        )

    default_filter = http if is_http else tcp
    result: list[FilterChain] = []
    if port.mode is not Mode.DISABLE:
        if detects_protocol:
            result.append(chain("mtls-http", http, "tls", tls.HTTP_ALPN, terminates_tls=True))
            result.append(chain("mtls", tcp, "tls", tls.TCP_ALPN, terminates_tls=True))
        else:
            mesh_alpn = (*tls.TCP_ALPN, *tls.HTTP_ALPN)
            result.append(chain("mtls", default_filter, "tls", mesh_alpn, terminates_tls=True))
    if port.mode is Mode.STRICT:
        # There is no chain for raw_buffer, so Envoy closes plaintext connections. It does not fall back to
        # chains without a port: once a chain matches the destination port, the others do not count.
        if detects_protocol:
            result.append(chain("tls-http", http, "tls", _TLS_ALPN, terminates_tls=True))
        result.append(chain("tls", default_filter, "tls", terminates_tls=True))
    elif detects_protocol:
        result.append(chain("plaintext-http", plaintext_http, "raw_buffer", _PLAINTEXT_ALPN))
        result.append(chain("plaintext", plaintext_tcp, "raw_buffer"))
        result.append(chain("application-tls", tcp, "tls"))
    else:
        result.append(chain("plaintext", plaintext_http if is_http else plaintext_tcp, "raw_buffer"))
        if not is_http:
            result.append(chain("application-tls", tcp, "tls"))
    return tuple(result)


def _http(config: MeshConfig, port: InboundPort, *, observed: bool = False) -> Filter:
    stat_prefix = f"inbound_{port.label}"
    host = VirtualHost(
        name=f"inbound|http|{port.number}", domains=["*"], routes=[to_cluster(port.cluster, retries=False)]
    )
    return filters.http_from_peer(
        stat_prefix,
        host,
        config.path_normalization,
        guards=rbac.http_filters(),
        observed=observed,
        reports_denials=_reports_denials(config),
    )


def _reports_denials(config: MeshConfig) -> bool:
    return config.observe and config.observe_denials


_LETTERS = {Mode.DISABLE: "D", Mode.PERMISSIVE: "P", Mode.STRICT: "S"}
_MODES = {letter: mode for mode, letter in _LETTERS.items()}


def encode_modes(ports: Iterable[InboundPort]) -> str:
    """Encode the ports' modes as a tag for the listener's resource version, such as `0P8080S`."""
    return "".join(f"{port.number}{_LETTERS[port.mode]}" for port in ports)


def decode_modes(versions: Iterable[str]) -> dict[int, Mode]:
    """Return the mode of each port, decoded from the resource versions of listeners."""
    tags = "".join(tag_of(version) for version in versions)
    return {int(number): _MODES[letter] for number, letter in re.findall(r"(\d{1,5})([DPS])", tags)}


def _access_log(config: MeshConfig) -> list[AccessLog]:
    return [access_logs.refused()] if config.observe else []


def _inspectors() -> list[ListenerFilter]:
    # Use the same inspectors in every mode: nothing outside the filter chains may depend on policy.
    return [filters.tls_inspector(), filters.http_inspector()]


def redirect_listener(
    config: MeshConfig,
    ports: tuple[InboundPort, ...],
    rules: Rules,
    families: tuple[Family, ...],
    sources: tuple[str, ...],
) -> Resource:
    """Return the listener that iptables redirects all inbound connections of a pod to."""
    return replace(_redirect_listener(config, ports, rules, families), sources=sources)


@lru_cache(maxsize=8192)
def _redirect_listener(
    config: MeshConfig, ports: tuple[InboundPort, ...], rules: Rules, families: tuple[Family, ...]
) -> Resource:
    filter_chains = filters.refusing_chains(
        # No connection may reach the admin interface, or loop back to the sidecar.
        (config.proxy_listen_port, config.proxy_inbound_listen_port, ADMIN_PORT)
    )
    for port in ports:
        filter_chains.extend(chains(config, port, rules, by_port=True))
    address, more_addresses = bound_to(wildcards(families), config.proxy_inbound_listen_port)
    listener = Listener(
        name=NAME,
        address=address,
        additional_addresses=more_addresses,
        filter_chains=filter_chains,
        listener_filters=[filters.original_dst(), *_inspectors()],
        listener_filters_timeout=seconds(config.protocol_detection_timeout),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
        access_log=_access_log(config),
    )
    return resource(listener, tag=encode_modes(ports))


@lru_cache(maxsize=8192)
def port_listener(
    config: MeshConfig,
    hosts: tuple[str, ...],
    port: InboundPort,
    rules: Rules,
    sources: tuple[str, ...],
) -> Resource:
    """Return the listener of one port in interception mode NONE, bound to the pod's addresses `hosts`."""
    address, more_addresses = bound_to(hosts, port.number)
    listener = Listener(
        name=f"{hosts[0]}_{port.number}",
        address=address,
        additional_addresses=more_addresses,
        filter_chains=list(chains(config, port, rules, by_port=False)),
        listener_filters=_inspectors(),
        listener_filters_timeout=seconds(config.protocol_detection_timeout),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
        access_log=_access_log(config),
    )
    return resource(listener, sources=sources, tag=encode_modes((port,)))
