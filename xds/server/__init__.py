"""The discovery services: bytes in both directions, and a Session for each stream in between.

`XdsServer` is a server of its own; `DiscoveryService` goes into one that you have; `xds.server.rest.RestServer` is for
who polls with HTTP and JSON. All ask a `Proxies` what a client gets.
"""

from xds.protocol.limits import Limits
from xds.server.discovery import DiscoveryService
from xds.server.listening import OPTIONS, XdsServer
from xds.server.proxies import Authenticate, Proxies, Refused, StreamInfo, Subscriber, is_encrypted
from xds.server.services import ADS
from xds.server.stream import Observer, Stream

__all__ = [
    "ADS",
    "OPTIONS",
    "Authenticate",
    "DiscoveryService",
    "Limits",
    "Observer",
    "Proxies",
    "Refused",
    "Stream",
    "StreamInfo",
    "Subscriber",
    "XdsServer",
    "is_encrypted",
]
