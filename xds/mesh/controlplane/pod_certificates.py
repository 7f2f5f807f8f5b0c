"""Signer of the certificates that kubelets request for pods, and whether injected pods use them.

The leader answers requests. All replicas follow them, to know when certificates expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity import SIGNER
from xds.mesh.identity.keys import IdentityError
from xds.mesh.kube import pod_certificates as requests
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger
from xds.mesh.kube.pod_certificates import PodRequest
from xds.mesh.kube.reflector import Key, Reflector
from xds.mesh.kube.resource import KubeResource
from xds.mesh.model.objects import spiffe_id

log = structlog.get_logger(__name__)

RESOURCE = KubeResource(
    kind="PodCertificateRequest",
    group=requests.GROUP,
    versions=(requests.VERSION,),
    plural=requests.PLURAL,
    custom=True,
    optional=True,
    fields=f"spec.signerName={SIGNER}",
)
SUPPORT_INTERVAL = 60.0
"""Seconds between two checks of whether the cluster supports these requests."""
RETRY_DELAY = 1.0
"""Seconds after which a request is answered again if that failed, or if another replica was the leader."""
MAX_CONCURRENT = 16
"""Maximum number of requests that are answered at the same time."""


class PodCertificates:
    """Answers PodCertificateRequests for the mesh's signer."""

    def __init__(self, api: KubeApi, controller: Controller, leads: Callable[[], bool]) -> None:
        """Create a signer.

        Args:
            api: the API server.
            controller: issues certificates.
            leads: returns whether this replica is the leader.
        """
        self._api, self._controller, self._leads = api, controller, leads
        self._changed = asyncio.Event()
        self._reflector = Reflector(api, RESOURCE, lambda obj, _: PodRequest.read(obj), self._changed.set)
        self._answered: set[Key] = set()
        """Requests that this replica has answered, until the local copy shows the answer."""
        self._unsupported = "the cluster has not been checked yet"
        self._log_support = OnceLogger(log, "cannot check whether nodes support podCertificate volumes")
        self._log_failure = OnceLogger(log, "cannot answer PodCertificateRequest", level="error")

    @property
    def problem(self) -> str:
        """Why `xds proxy` keeps the certificates of injected pods; empty if the kubelet does."""
        config, certificates = self._controller.mesh.config, self._controller.certificates
        if not config.pod_certificates:
            return "values.xds.podCertificates is false"
        if certificates.signer_expiry:
            return "an external signer issues the certificates"
        if failure := self._reflector.failure:
            return f"requests cannot be read: {failure.message}"
        return self._unsupported

    async def run(self) -> None:
        """Run until cancelled."""
        await self._controller.ready.wait()  # The trust domain is unknown until then.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reflector.run())
            tasks.create_task(self._follow_support())
            tasks.create_task(self._follow_requests())

    async def _follow_support(self) -> None:
        while True:
            try:
                self._unsupported = await requests.why_unsupported(self._api)
                self._log_support("")
            except KubeError as error:  # Nodes rarely change: the last answer is kept.
                self._log_support(str(error))
            await asyncio.sleep(SUPPORT_INTERVAL)

    async def _follow_requests(self) -> None:
        while True:
            self._changed.clear()
            for _, request in self._reflector.take().values():
                if request and request.not_after:
                    pod = request.namespace, request.pod
                    self._controller.certificates.record_certified(pod, request.not_after)
            objects = self._reflector.objects
            self._answered &= objects.keys()
            pending = [
                request
                for key, request in objects.items()
                if not request.is_answered and key not in self._answered
            ]
            if self._leads():
                for start in range(0, len(pending), MAX_CONCURRENT):
                    await asyncio.gather(*map(self._answer, pending[start : start + MAX_CONCURRENT]))
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_DELAY if pending else None):
                    await self._changed.wait()

    async def _answer(self, request: PodRequest) -> None:
        """Answer a request. A failure is logged, and the request stays pending."""
        results, facts = self._controller.certificates.requests, {"pod": f"{request.namespace}/{request.pod}"}
        path = f"/apis/{requests.GROUP}/{requests.VERSION}/namespaces/{request.namespace}/{requests.PLURAL}"
        try:
            status = await self._decide(request)
            await self._api.patch(f"{path}/{request.name}/status", {"status": status})
        except (KubeError, IdentityError) as error:
            if isinstance(error, KubeError) and error.is_not_found:
                return  # The pod was deleted, and its requests with it.
            results["failed"] += 1
            self._log_failure(str(error), **facts)
            return
        self._answered.add((request.namespace, request.name))
        self._log_failure("", **facts)
        [condition] = status["conditions"]
        if condition["type"] == "Denied":
            results["refused"] += 1
            log.warning("PodCertificateRequest denied", **facts, reason=condition["message"])
        else:
            results["signed"] += 1
            log.debug("PodCertificateRequest signed", **facts, node=request.node)

    async def _decide(self, request: PodRequest) -> Json:
        """Return the status that answers a request. Raises KubeError or IdentityError if that must wait."""
        now, config = datetime.now(UTC), self._controller.mesh.config
        certificates = self._controller.certificates
        if config.sds_socket or certificates.signer_expiry:
            issuer = f"the SDS server at {config.sds_socket}" if config.sds_socket else "an external signer"
            return requests.denied("OtherIssuer", f"certificates of this mesh come from {issuer}", now)
        if request.is_annotated:
            message = f"{SIGNER} knows no userAnnotations: remove them from the podCertificate volume"
            return requests.denied(requests.INVALID_CONFIG, message, now)
        pod = await self._api.find(f"/api/v1/namespaces/{request.namespace}/pods/{request.pod}")
        if mismatch := request.mismatch(pod):
            return requests.denied("PodMismatch", mismatch, now)
        identity = spiffe_id(config.trust_domain, request.namespace, request.account)
        try:
            key = certificates.read_request(request.pem(), identity)
        except IdentityError as error:
            return requests.denied(requests.UNSUPPORTED_KEY, str(error), now)
        return requests.issued(certificates.certify_for_kubelet(key, identity, request.lifetime), now)
