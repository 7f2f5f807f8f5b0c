"""The gRPC service istio.v1.auth.IstioCertificateService: certificates for keys that sidecars make.

protos/xds/mesh/v1/certificates.proto documents the messages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from contextvars import ContextVar
from datetime import timedelta

import grpc
import grpc.aio
import structlog

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.signing import SignerError
from xds.mesh.identity import IDENTITY_METADATA
from xds.mesh.identity.chain import read, to_pem
from xds.mesh.identity.claims import Caller, CredentialKind, denial_reason
from xds.mesh.identity.external import NamesError
from xds.mesh.identity.keys import IdentityError
from xds.mesh.model.objects import spiffe_id
from xds.mesh.v1 import certificates_pb2 as pb
from xds.server import Authenticate, DiscoveryService, Refused
from xds.server.admission import CheckedServer
from xds.server.proxies import peer_address
from xds.server.token_bucket import TokenBuckets

log = structlog.get_logger(__name__)

SERVICE = "istio.v1.auth.IstioCertificateService"
REQUESTS = (100, 1)
"""Requests of one caller from one address: burst and rate per second. A sidecar makes two a day."""
MAX_PENDING = 1_000
"""Maximum number of requests that wait for the external signer."""
MAX_PENDING_OF_CALLER = 8
"""The same for one caller from one address."""
_MAX_BUCKETS = 16_384

_CALLER: ContextVar[Caller] = ContextVar("caller")
"""Caller of the current call. Each call runs in a task of its own."""


class CertificateService:
    """The service, for `XdsServer(added=[...])`.

    Args:
        controller: issues certificates, and knows the pods.
        authenticate: authenticates callers, as for the discovery services.
    """

    def __init__(self, controller: Controller, authenticate: Authenticate) -> None:
        self._controller, self._authenticate = controller, authenticate
        self._buckets = TokenBuckets(_MAX_BUCKETS)
        self._pending = Counter[Hashable]()

    def __call__(self, server: grpc.aio.Server, discovery: DiscoveryService) -> None:
        """Add the service to a server that has not started."""

        async def check(context: grpc.aio.ServicerContext) -> None:
            try:
                caller: Caller | None = await self._authenticate(context)
            except Refused as refused:
                await context.abort(refused.code, refused.message)
            if not caller:
                problem = "certificates are issued over TLS only, to authenticated callers"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, problem)
                return
            discovery.connections.mark_proven(context)
            if caller.credential is CredentialKind.CERTIFICATE:
                # Otherwise, a stolen certificate could be renewed for ever.
                problem = "a certificate cannot be used to renew itself: use a token (port 15012)"
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, problem)
            _CALLER.set(caller)

        checked = CheckedServer(server, check)
        checked.add_service(SERVICE, CreateCertificate=self._create)
        discovery.connections.own_services.update(checked.services)

    async def _create(
        self, request: pb.IstioCertificateRequest, context: grpc.aio.ServicerContext
    ) -> pb.IstioCertificateResponse:
        caller, requests = _CALLER.get(), self._controller.certificates.requests
        try:
            response = await self._certify(request, caller, (caller, peer_address(context.peer())))
        except Refused as refused:
            if isinstance(refused.__cause__, NamesError):
                # The caller may not know the trust domain. It repeats the request with this name.
                context.set_trailing_metadata(((IDENTITY_METADATA, self._identity(caller)),))
            else:
                requests["refused" if refused.code is grpc.StatusCode.INVALID_ARGUMENT else "failed"] += 1
                log.warning(
                    "certificate request refused",
                    caller=str(caller),
                    peer=context.peer(),
                    code=refused.code.name,
                    reason=refused.message,
                )
            await context.abort(refused.code, refused.message)
        requests["signed"] += 1
        log.debug("certificate request signed", caller=str(caller), pod=caller.pod, peer=context.peer())
        return response

    async def _certify(
        self, request: pb.IstioCertificateRequest, caller: Caller, key: Hashable
    ) -> pb.IstioCertificateResponse:
        if not self._buckets.of(key, *REQUESTS).take(asyncio.get_running_loop().time()):
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many certificate requests: try again later"
            )
        if self._pending[key] >= MAX_PENDING_OF_CALLER or self._pending.total() >= MAX_PENDING:
            problem = "too many requests wait for the external signer: try again later"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        self._check_pod(caller)
        if request.validity_duration < 0:
            problem = f"validity_duration is {request.validity_duration}: use a number of seconds, or 0"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)
        seconds = min(request.validity_duration, 2**31)
        lifetime = timedelta(seconds=seconds) if seconds else None
        certificates, identity = self._controller.certificates, self._identity(caller)
        pem = request.csr.encode()
        try:
            public_key = certificates.read_request(pem, identity)
        except IdentityError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        self._pending[key] += 1
        try:
            certificate, roots = await certificates.certify(pem, public_key, identity, lifetime)
        except (IdentityError, SignerError) as error:
            raise Refused(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        finally:
            self._pending[key] -= 1
            if not self._pending[key]:
                del self._pending[key]
        self._check_pod(caller)  # It may have lost its right, or its pod was deleted, in the meantime.
        if caller.pod:
            pod = caller.namespace, caller.pod
            certificates.record_certified(pod, certificate.not_after, certificate.renew_at)
        chain = [to_pem([each]).decode() for each in read(certificate.chain)]
        return pb.IstioCertificateResponse(cert_chain=[*chain, roots.decode()])

    def _identity(self, caller: Caller) -> str:
        domain = self._controller.mesh.config.trust_domain
        return spiffe_id(domain, caller.namespace, caller.service_account)

    def _check_pod(self, caller: Caller) -> None:
        """Refuse callers that could not act for any pod. Their streams would get no certificate either."""
        mesh = self._controller.mesh
        if mesh.config.sds_socket:
            problem = f"certificates of this mesh come from the SDS server at {mesh.config.sds_socket}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, problem)
        pods = mesh.in_namespace(caller.namespace).pods
        if pod := pods.get(caller.pod):
            if reason := denial_reason(caller, caller.namespace, pod.name, pod):
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
        elif caller.pod or all(pod.service_account != caller.service_account for pod in pods.values()):
            pod_name = f"pod {caller.namespace}/{caller.pod}" if caller.pod else f"a pod of {caller}"
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"{pod_name} is not known yet: try again")
