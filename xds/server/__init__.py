"""The discovery services over gRPC and REST.

`XdsServer` is a complete gRPC server. `DiscoveryService` adds the services to a gRPC server of your own.
`xds.server.rest.RestServer` serves clients that poll with HTTP and JSON. A `Proxies` object decides what each
client gets.
"""

from xds.protocol.limits import Limits
from xds.protocol.wire import Node
from xds.server.discovery import DiscoveryService
from xds.server.listening import OPTIONS, XdsServer
from xds.server.proxies import Authenticate, Proxies, Refused, StreamInfo, Subscriber, is_encrypted
from xds.server.report_streams import ReportStream
from xds.server.services import ADS
from xds.server.stream import Observer, Stream

__all__ = [
    "ADS",
    "OPTIONS",
    "Authenticate",
    "DiscoveryService",
    "Limits",
    "Node",
    "Observer",
    "Proxies",
    "Refused",
    "ReportStream",
    "Stream",
    "StreamInfo",
    "Subscriber",
    "XdsServer",
    "is_encrypted",
]
