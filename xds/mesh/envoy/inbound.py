"""LDS, inbound: what a sidecar accepts on each port of its pod.

A chain that two modes have in common is the same bytes in both, and nothing outside `filter_chains` depends on policy: Envoy then
replaces only the chains that differ, and connections on the others go on (ADR 0003). Which chains there are, by mode:

| mode       | mutual TLS, mesh ALPN | other TLS     | plaintext            |
|------------|-----------------------|---------------|----------------------|
| STRICT     | yes                   | mutual TLS    |                      |
| PERMISSIVE | yes (the same chain)  | passed on (1) | yes                  |
| DISABLE    |                       | passed on (1) | yes (the same chain) |

(1) Not on ports declared as HTTP, where TLS of the application's own would be a contradiction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from envoy_data_plane.envoy.config.core.v3 import TrafficDirection, TransportSocket
from envoy_data_plane.envoy.config.listener.v3 import (
    Filter,
    FilterChain,
    FilterChainMatch,
    Listener,
    ListenerFilter,
)
from envoy_data_plane.envoy.config.route.v3 import VirtualHost

from xds.mesh.envoy import filters, tls
from xds.mesh.envoy.common import address, seconds
from xds.mesh.envoy.routes import to_cluster
from xds.mesh.model.objects import ADMIN_PORT, MeshConfig, Mode, Protocol
from xds.resources import Resource, resource
from xds.snapshot import tag_of

NAME = "virtualInbound"
_HTTP_IN_CLEAR = ("http/1.0", "http/1.1", "h2c")
_HTTP_IN_TLS = ("http/1.0", "http/1.1", "h2")


class Port(NamedTuple):
    """A port of the pod, and how it is served."""

    number: int
    """0: every port that has no entry of its own."""
    protocol: Protocol
    mode: Mode
    cluster: str

    @property
    def label(self) -> str:
        """The name that its filter chains have in common."""
        return f"0.0.0.0_{self.number}" if self.number else f"{NAME}-catchall"


@lru_cache(maxsize=8192)
def chains(config: MeshConfig, port: Port, *, by_port: bool) -> tuple[FilterChain, ...]:
    """Return the filter chains of a port; `by_port`: the listener has other ports, too."""
    secured = {protocol: tls.server(config, http=protocol) for protocol in (True, False)}
    is_http = port.protocol.is_http
    detected = port.protocol is Protocol.AUTO
    http = _http(port) if is_http or detected else None
    tcp = filters.tcp(port.cluster)

    def chain(
        name: str,
        handler: Filter | None,
        transport: str,
        alpn: tuple[str, ...] = (),
        *,
        terminate: bool = False,
    ) -> FilterChain:
        socket: TransportSocket | None = secured[handler is http] if terminate else None
        match = FilterChainMatch(transport_protocol=transport, application_protocols=list(alpn))
        if by_port and port.number:
            match.destination_port = port.number
        return FilterChain(
            name=f"{port.label};{name}",
            filter_chain_match=match,
            filters=[handler or tcp],
            transport_socket=socket,
        )

    main = http if is_http else tcp
    found: list[FilterChain] = []
    if port.mode is not Mode.DISABLE:
        if detected:
            found.append(chain("mtls-http", http, "tls", tls.HTTP_ALPN, terminate=True))
            found.append(chain("mtls", tcp, "tls", tls.TCP_ALPN, terminate=True))
        else:
            found.append(chain("mtls", main, "tls", (*tls.TCP_ALPN, *tls.HTTP_ALPN), terminate=True))
    if port.mode is Mode.STRICT:
        if detected:
            found.append(chain("tls-http", http, "tls", _HTTP_IN_TLS, terminate=True))
        found.append(chain("tls", main, "tls", terminate=True))
    elif detected:
        found.append(chain("plaintext-http", http, "raw_buffer", _HTTP_IN_CLEAR))
        found.append(chain("plaintext", tcp, "raw_buffer"))
        found.append(chain("application-tls", tcp, "tls"))
    else:
        found.append(chain("plaintext", main, "raw_buffer"))
        if not is_http:
            found.append(chain("application-tls", tcp, "tls"))
    return tuple(found)


def _http(port: Port) -> Filter:
    stat_prefix = f"inbound_{port.label}"
    host = VirtualHost(
        name=f"inbound|http|{port.number}", domains=["*"], routes=[to_cluster(port.cluster, retries=False)]
    )
    return filters.http_from_peer(stat_prefix, host)


_LETTERS = {Mode.DISABLE: "D", Mode.PERMISSIVE: "P", Mode.STRICT: "S"}
_MODES = {letter: mode for mode, letter in _LETTERS.items()}


def tag(ports: Iterable[Port]) -> str:
    """Return what a listener accepts, as its version says it: `0P8080S`."""
    return "".join(f"{port.number}{_LETTERS[port.mode]}" for port in ports)


def accepting(versions: Iterable[str]) -> dict[int, Mode]:
    """Return what is accepted on which port by listeners of these versions."""
    tags = "".join(tag_of(version) for version in versions)
    return {int(number): _MODES[letter] for number, letter in re.findall(r"(\d{1,5})([DPS])", tags)}


def _inspectors() -> list[ListenerFilter]:
    # In every mode and for every port: what stands outside the filter chains must not depend on policy.
    return [filters.tls_inspector(), filters.http_inspector()]


def intercepted(config: MeshConfig, ports: tuple[Port, ...], sources: tuple[str, ...]) -> Resource:
    """Return the listener that all inbound connections of a pod are redirected to."""
    return replace(_intercepted(config, ports), sources=sources)


@lru_cache(maxsize=8192)
def _intercepted(config: MeshConfig, ports: tuple[Port, ...]) -> Resource:
    found = filters.closed(
        # Neither a Service nor a connection's own destination leads to the admin interface, nor round in circles.
        (config.proxy_listen_port, config.proxy_inbound_listen_port, ADMIN_PORT)
    )
    for port in ports:
        found.extend(chains(config, port, by_port=True))
    listener = Listener(
        name=NAME,
        address=address("0.0.0.0", config.proxy_inbound_listen_port),
        filter_chains=found,
        listener_filters=[filters.original_dst(), *_inspectors()],
        listener_filters_timeout=seconds(config.protocol_detection_timeout),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
    )
    return resource(listener, tag=tag(ports))


@lru_cache(maxsize=8192)
def bound(config: MeshConfig, host: str, port: Port, sources: tuple[str, ...]) -> Resource:
    """Return the listener of one port in interception mode NONE, bound to the pod's own address."""
    name = f"{host}_{port.number}"
    listener = Listener(
        name=name,
        address=address(host, port.number),
        filter_chains=list(chains(config, port, by_port=False)),
        listener_filters=_inspectors(),
        listener_filters_timeout=seconds(config.protocol_detection_timeout),
        continue_on_listener_filters_timeout=True,
        traffic_direction=TrafficDirection.INBOUND,
    )
    return resource(listener, sources=sources, tag=tag((port,)))
