"""The discovery services on gRPC: bytes in both directions, and a Session for each stream in between.

`XdsServer` is a server of its own; `DiscoveryService` goes into one that you have. Both ask a `Proxies` what a client gets.
"""

from xds.server.discovery import DiscoveryService
from xds.server.listening import OPTIONS, XdsServer
from xds.server.proxies import Proxies, Refused, StreamInfo, Subscriber
from xds.server.services import ADS
from xds.server.stream import Observer, Stream

__all__ = [
    "ADS",
    "OPTIONS",
    "DiscoveryService",
    "Observer",
    "Proxies",
    "Refused",
    "Stream",
    "StreamInfo",
    "Subscriber",
    "XdsServer",
]
