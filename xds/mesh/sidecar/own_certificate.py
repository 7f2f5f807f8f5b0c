"""A sidecar's own key, made in the pod, and its certificate, which the control plane signs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio

from xds.mesh.identity import CERTIFICATE, IDENTITY_METADATA
from xds.mesh.identity.ca import Leaf
from xds.mesh.identity.chain import read
from xds.mesh.identity.external import identity_of, read_signed, signing_request
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.v1 import certificates_pb2 as pb
from xds.protocol.responses import encode_bytes, encode_string
from xds.protocol.wire import Node
from xds.server import StreamInfo, Subscriber
from xds.snapshot import SECRET, Resource, ResourceSet, Snapshot

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
CALL_TIMEOUT = 45.0
"""Timeout of a request in seconds. An external signer may take 30 s."""


class IssueError(Exception):
    """The control plane issued no usable certificate; the text has the reason."""


@dataclass(slots=True, kw_only=True)
class CertificateClient:
    """Makes keys, and requests certificates for them from the control plane."""

    address: str
    """HOST:PORT of the control plane."""
    token: Path
    """File with the service account token, read for each request."""
    roots: Path
    """File with the roots that verify the control plane, read for each request."""
    identity: str
    """SPIFFE ID that requests name. The control plane can correct it."""

    async def request(self) -> Leaf:
        """Return a certificate for a new key.

        Raises:
            IssueError: the control plane issued no usable certificate.
        """
        try:
            token, roots = self.token.read_text("ascii").strip(), self.roots.read_bytes()
        except (OSError, ValueError) as error:
            raise IssueError(f"the token or the roots cannot be read: {error}") from error
        key = PrivateKey.generate()
        try:
            chain = await self._call(key, token, roots)
            pem, trusted = "".join(chain[:-1]).encode(), read("".join(chain[-1:]).encode())
            self.identity = identity_of(pem)
            return read_signed(pem, key.public_key, self.identity, trusted, datetime.now(UTC)).with_key(key)
        except IdentityError as error:
            raise IssueError(f"the control plane sent no usable certificate: {error}") from error
        except grpc.aio.AioRpcError as error:
            raise IssueError(f"{error.code().name}: {error.details()}") from error

    async def _call(self, key: PrivateKey, token: str, roots: bytes) -> list[str]:
        options = (("grpc.enable_http_proxy", 0),)
        credentials = grpc.ssl_channel_credentials(roots)
        async with grpc.aio.secure_channel(self.address, credentials, options) as channel:
            create = channel.unary_unary(
                METHOD, pb.IstioCertificateRequest.SerializeToString, pb.IstioCertificateResponse.FromString
            )

            async def call() -> list[str]:
                request = pb.IstioCertificateRequest(csr=signing_request(key, self.identity).decode())
                metadata = (("authorization", f"Bearer {token}"),)
                response = await create(request, metadata=metadata, timeout=CALL_TIMEOUT)
                return list(response.cert_chain)

            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                identity = dict(error.trailing_metadata() or ()).get(IDENTITY_METADATA)
                if identity in {None, self.identity}:
                    raise
                self.identity = str(identity)
                return await call()


class OwnCertificate:
    """Serves the current certificate and its key to Envoy, for `XdsServer`."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._snapshot: Snapshot | None = None

    def set(self, leaf: Leaf) -> None:
        """Serve another certificate."""
        self._snapshot = Snapshot({SECRET: ResourceSet([secret(leaf)])})
        for subscriber in self._subscribers:
            subscriber.publish(self._snapshot)

    def connect(self, node: Node, stream: StreamInfo) -> Subscriber:
        """Accept a stream. Only Envoy can open the socket."""
        subscriber = Subscriber(node, stream)
        self._subscribers.add(subscriber)
        if self._snapshot:
            subscriber.publish(self._snapshot)
        return subscriber

    def disconnect(self, subscriber: Subscriber) -> None:
        """Remove a stream that has ended."""
        self._subscribers.discard(subscriber)

    def observe(self, subscriber: Subscriber, event: object) -> None:
        """Ignore ACKs. The server logs NACKs."""


def secret(leaf: Leaf) -> Resource:
    """Return the secret `default`, as `xds.mesh.identity.secrets.certificate_secret` does.

    It is encoded here, because Envoy's API would take 15 MB of each pod's memory.
    """
    chain, key = (encode_bytes(2, pem) for pem in (leaf.chain, leaf.key.to_pem()))
    certificate = encode_bytes(1, chain) + encode_bytes(2, key)
    body = encode_string(1, CERTIFICATE) + encode_bytes(2, certificate)
    return Resource.of(SECRET, CERTIFICATE, body, version=leaf.fingerprint[:16])
