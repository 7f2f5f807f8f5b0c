"""Measure the CPU time of certificates: keys of the control plane, and requests with keys made in pods.

The requests arrive over TLS, each on a connection of its own, as from sidecars, or directly, without gRPC.

    python benchmarks/certificates.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import Any

import grpc
import grpc.aio
import structlog

from xds.mesh.controlplane.certificate_service import CertificateService
from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity.auth import Authentication, own_token_verifier
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.external import read_request, signing_request
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import Issuer
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.identity.tokens import TokenKey
from xds.mesh.model.objects import Change, Meta, Pod, Ref
from xds.mesh.sidecar.own_certificate import METHOD
from xds.mesh.v1 import certificates_pb2 as pb
from xds.server import XdsServer

NOW = datetime.now(UTC)
AT_ONCE = 20


def pods(count: int) -> tuple[Pod, ...]:
    return tuple(
        Pod(meta=Meta(ref=Ref("Pod", "shop", f"web-{number}")), address="10.0.0.1", service_account="web")
        for number in range(count)
    )


def measured(work: Callable[[], object]) -> float:
    started_at = time.process_time()
    work()
    return time.process_time() - started_at


def issue_keys(authority: Authority, count: int) -> float:
    """Return the CPU time of keys and certificates as secrets, as the control plane makes them."""
    issuer = Issuer(authority)
    return measured(lambda: [issuer.secrets_for(pod, "cluster.local", NOW) for pod in pods(count)])


def certify(authority: Authority, requests: list[bytes]) -> float:
    """Return the CPU time of reading and certifying requests."""

    def work() -> None:
        for pem in requests:
            _, key = read_request(pem)
            authority.certify("spiffe://cluster.local/ns/shop/sa/web", key, NOW)

    return measured(work)


async def serve(authority: Authority, tokens: TokenKey, count: int, pipe: Any) -> None:
    controller = Controller(authority)
    controller.mesh = controller.mesh.apply(Change(applied=pods(count)))
    authenticate = Authentication(lambda: ("cluster.local",), own_token_verifier(tokens))
    trust = Trust(authority, authority.root_pem)
    credentials = ServerCertificate(["localhost"], lambda: trust).credentials(certificate_required=False)
    server = XdsServer(
        controller.connections,
        "127.0.0.1:0",
        added=[CertificateService(controller, authenticate)],
        secure=[("127.0.0.1:0", credentials)],
        authenticate=authenticate,
    )
    async with server:
        pipe.send(server.secure_ports[0])
        while await asyncio.to_thread(pipe.recv):
            pipe.send(time.process_time())


def server_process(certificate: bytes, key: bytes, token: bytes, count: int, pipe: Any) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    authority = Authority.load(certificate, key, NOW)
    asyncio.run(serve(authority, TokenKey.from_text(token), count, pipe))


async def request_all(port: int, root: bytes, calls: list[tuple[str, bytes]], *, call: bool) -> None:
    """Open a connection for each call. Without `call`, only open the connections."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(token: str, request: bytes) -> None:
        async with free:
            credentials = grpc.ssl_channel_credentials(root)
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
                if call:
                    metadata = (("authorization", f"Bearer {token}"),)
                    await channel.unary_unary(METHOD)(request, metadata=metadata)
                else:
                    await channel.channel_ready()

    await asyncio.gather(*(one(*each) for each in calls))


def over_tls(authority: Authority, requests: list[bytes], *, call: bool) -> float:
    """Return the CPU time of a server to which each request arrives on a connection of its own."""
    tokens = TokenKey.generate()
    caller = {"namespace": "shop", "service_account": "web", "credential": CredentialKind.TOKEN}
    calls = [
        (
            tokens.issue(Caller(**caller, pod=f"web-{number}"), NOW, timedelta(hours=1)),
            pb.IstioCertificateRequest(csr=pem.decode()).SerializeToString(),
        )
        for number, pem in enumerate(requests)
    ]
    context = get_context("spawn")
    here, there = context.Pipe()
    words = (authority.certificate_pem, authority.key.to_pem(), tokens.to_text(), len(requests), there)
    process = context.Process(target=server_process, args=words)
    process.start()
    port = here.recv()
    here.send(True)
    before = here.recv()
    asyncio.run(request_all(port, authority.root_pem, calls, call=call))
    here.send(True)
    after: float = here.recv()
    here.send(False)
    process.join()
    return after - before


def main() -> None:
    """Print the median CPU time of 1,000 certificates, in milliseconds each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="certificates in a round [default: 1000]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds [default: 3]")
    options = parser.parse_args()
    authority = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    identity = "spiffe://cluster.local/ns/shop/sa/web"
    requests = [signing_request(PrivateKey.generate(), identity) for _ in range(options.count)]
    kinds: dict[str, Callable[[], float]] = {
        "key and certificate of the control plane": lambda: issue_keys(authority, options.count),
        "certificate for a request": lambda: certify(authority, requests),
        "TLS connection without a call": lambda: over_tls(authority, requests, call=False),
        "request on a TLS connection of its own": lambda: over_tls(authority, requests, call=True),
    }
    sys.stdout.write(
        f"{options.count} each, CPU time, medians of {options.rounds} rounds, {os.cpu_count()} cores\n"
    )
    for name, measure in kinds.items():
        seconds = statistics.median(measure() for _ in range(options.rounds))
        sys.stdout.write(f"{name:42} {seconds / options.count * 1000:6.3f} ms\n")


if __name__ == "__main__":
    main()
