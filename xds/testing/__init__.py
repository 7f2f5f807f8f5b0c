"""Tools to test xDS servers: a client that behaves as Envoy does, the real Envoy, and pytest fixtures.

    async def test_cluster_is_served():
        store = Store()
        store.set(cluster, assignment)
        async with EnvoyClient(store) as client:
            await client.wait_for(lambda: "web" in client.clusters and not client.warming)

The fixtures `xds_store`, `xds_server`, `envoy_client` and `real_envoy` are in `xds.pytest_plugin`. They need
the extra `testing`, and so does the real Envoy.
"""

from xds.protocol.session import Variant
from xds.testing.client import EnvoyClient
from xds.testing.envoy import EnvoyAdmin, EnvoyProcess, bootstrap
from xds.testing.messages import Conversation, Request, Response
from xds.testing.model import EnvoyModel, Rejection
from xds.testing.recording import Recorder
from xds.testing.server import RecordingServer

__all__ = [
    "Conversation",
    "EnvoyAdmin",
    "EnvoyClient",
    "EnvoyModel",
    "EnvoyProcess",
    "Recorder",
    "RecordingServer",
    "Rejection",
    "Request",
    "Response",
    "Variant",
    "bootstrap",
]
