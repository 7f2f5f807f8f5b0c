"""A gRPC server configured by xDS, which answers with its name and the caller's; exits at end of input.

xds_server.py NAME PORT
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

SERVICE = "peers.Backend"


def handler(name: str) -> grpc.GenericRpcHandler:
    """Return the service."""

    def describe(_: bytes, context: grpc.ServicerContext) -> bytes:
        identities = [identity.decode() for identity in context.peer_identities() or ()]
        return json.dumps({"name": name, "caller": identities}).encode()

    return grpc.method_handlers_generic_handler(
        SERVICE, {"Describe": grpc.unary_unary_rpc_method_handler(describe)}
    )


def main() -> None:
    """Serve until the input ends."""
    name, port = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler(name)], xds=True)
    # What this returns says nothing: the port is opened when the listener arrives.
    server.add_secure_port(
        f"127.0.0.1:{port}", grpc.xds_server_credentials(grpc.insecure_server_credentials())
    )
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
