"""Call the gRPC service `xds:///svc`, whose endpoints gRPC gets from an xDS server.

Usage: python client.py [ADDRESS]

ADDRESS is the address of the xDS server (default: 127.0.0.1:18000).
"""

import json
import os
import sys

# gRPC reads its bootstrap configuration when it creates the first xDS channel.
server = {
    "server_uri": sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:18000",
    "channel_creds": [{"type": "insecure"}],
    "server_features": ["xds_v3"],
}
os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps({"xds_servers": [server], "node": {"id": "client-1"}})

import grpc  # noqa: E402
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse  # noqa: E402
from grpc_health.v1.health_pb2_grpc import HealthStub  # noqa: E402

with grpc.insecure_channel("xds:///svc") as channel:
    response = HealthStub(channel).Check(HealthCheckRequest(), timeout=10, wait_for_ready=True)
    print("xds:///svc is", HealthCheckResponse.ServingStatus.Name(response.status))
