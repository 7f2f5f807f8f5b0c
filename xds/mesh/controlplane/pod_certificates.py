"""Signer of the certificates that kubelets request for pods, and whether injected pods use them.

The leader answers requests. All replicas follow them, to know when certificates expire.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

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
MIN_LIFETIME = timedelta(hours=1)
"""Minimum lifetime of a certificate, which the API server requires."""
SUPPORT_INTERVAL = 60.0
"""Seconds between two checks of whether the cluster supports these requests."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 1.0, 60.0
"""Seconds after which a request is answered again if that failed. The delay doubles with each failure."""
STUCK_AFTER = 30.0
"""Seconds after which an unanswered request keeps injection from using these certificates."""
MAX_CONCURRENT = 16
"""Maximum number of requests that are answered at the same time."""


@dataclass(slots=True)
class _Pending:
    """An unanswered request. Times are those of the event loop."""

    since: float
    due_at: float
    failures: int = 0
    is_done: bool = False
    """Whether this replica has answered it, and the local copy does not show that yet."""


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
        self._pending: dict[Key, _Pending] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._unsupported = "the cluster has not been checked yet"
        self._log_problem = OnceLogger(log, "kubelets do not keep certificates", level="info")
        self._log_failure = OnceLogger(log, "cannot answer PodCertificateRequests", level="error")

    @property
    def problem(self) -> str:
        """Why `xds proxy` keeps the certificates of injected pods; empty if the kubelet does."""
        config, now = self._controller.mesh.config, asyncio.get_running_loop().time()
        if not config.pod_certificates:
            return "values.xds.podCertificates is false"
        if reason := self._other_issuer:
            return reason
        if failure := self._reflector.failure:
            return f"requests cannot be read: {failure.message}"
        if any(
            now - pending.since > STUCK_AFTER and not pending.is_done for pending in self._pending.values()
        ):
            return f"a request has not been answered for {STUCK_AFTER:.0f} s"
        return self._unsupported

    @property
    def _other_issuer(self) -> str:
        """Why the mesh CA issues no certificates for pods; empty if it does."""
        if socket := self._controller.mesh.config.sds_socket:
            return f"certificates of this mesh come from the SDS server at {socket}"
        is_external = self._controller.certificates.signer_expiry
        return "certificates of this mesh come from an external signer" if is_external else ""

    async def run(self) -> None:
        """Run until cancelled."""
        await self._controller.ready.wait()  # The trust domain is unknown until then.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reflector.run())
            tasks.create_task(self._follow_support())
            tasks.create_task(self._follow_requests())

    async def _follow_support(self) -> None:
        while True:
            with suppress(KubeError):  # Nodes rarely change: the last answer is kept.
                self._unsupported = await requests.why_unsupported(self._api)
            self._log_problem(self.problem)
            await asyncio.sleep(SUPPORT_INTERVAL)

    async def _follow_requests(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            for _, request in self._reflector.take().values():
                if request and request.not_after:
                    pod = request.namespace, request.pod
                    self._controller.certificates.record_certified(pod, request.not_after)
            unanswered = {
                key: request for key, request in self._reflector.objects.items() if not request.is_answered
            }
            now = loop.time()
            self._pending = {key: self._pending.get(key, _Pending(now, now)) for key in unanswered}
            due = [
                self._answer(unanswered[key], pending)
                for key, pending in self._pending.items()
                if pending.due_at <= now and not pending.is_done
            ]
            await asyncio.gather(*due)
            next_at = min((each.due_at for each in self._pending.values() if not each.is_done), default=None)
            delay = None if next_at is None else max(next_at - loop.time(), MIN_RETRY_DELAY)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()

    async def _answer(self, request: PodRequest, pending: _Pending) -> None:
        """Answer a request if this replica leads. After a failure, it stays pending."""
        async with self._slots:
            if not self._leads():
                return
            try:
                status = await self._decide(request)
                await self._api.patch(f"{_path(request)}/status", {"status": status})
            except (KubeError, IdentityError) as error:
                pending.is_done = await self._is_answered(request, error)
                if not pending.is_done:
                    self._failed(pending, str(error))
                return
            except Exception as error:  # noqa: BLE001 - one request must not stop the control plane
                self._failed(pending, f"{type(error).__name__}: {error}", traceback.format_exc())
                return
        pending.is_done = True
        self._log_failure("")
        [condition] = status["conditions"]
        is_denied = condition["type"] == "Denied"
        self._controller.certificates.requests["refused" if is_denied else "signed"] += 1
        facts = {"pod": f"{request.namespace}/{request.pod}", "node": request.node}
        if is_denied:
            log.warning("PodCertificateRequest denied", **facts, reason=condition["message"])
        else:
            log.debug("PodCertificateRequest signed", **facts)

    async def _is_answered(self, request: PodRequest, error: Exception) -> bool:
        """Whether a request failed because it is gone, or another replica has answered it."""
        status = error.status if isinstance(error, KubeError) else 0
        if status != HTTPStatus.UNPROCESSABLE_ENTITY:
            return status == HTTPStatus.NOT_FOUND
        with suppress(KubeError):
            current = await self._api.find(_path(request))
            return current is None or PodRequest.read(current).is_answered
        return False

    def _failed(self, pending: _Pending, problem: str, stack: str = "") -> None:
        if not pending.failures:
            self._controller.certificates.requests["failed"] += 1
        delay = min(MAX_RETRY_DELAY, MIN_RETRY_DELAY * 2**pending.failures)
        pending.failures = min(pending.failures + 1, 10)
        pending.due_at = asyncio.get_running_loop().time() + delay
        self._log_failure(problem, stack=stack)

    async def _decide(self, request: PodRequest) -> Json:
        """Return the status that answers a request. Raises KubeError or IdentityError if that must wait."""
        now, certificates = datetime.now(UTC), self._controller.certificates
        # Only what can never be right is denied: the kubelet does not repeat a denied request.
        if reason := self._other_issuer:
            raise IdentityError(reason)
        if (expiry := certificates.trust[0].expires) - now < MIN_LIFETIME:
            raise IdentityError(
                f"the CA's certificate expires at {expiry:%Y-%m-%d %H:%M} UTC, within an hour"
            )
        if request.is_annotated:
            message = f"{SIGNER} does not support userAnnotations; remove them from the podCertificate volume"
            return requests.denied(requests.INVALID_CONFIG, message, now)
        pod = await self._api.find(f"/api/v1/namespaces/{request.namespace}/pods/{request.pod}")
        if mismatch := request.mismatch(pod):
            return requests.denied("PodMismatch", mismatch, now)
        domain = self._controller.mesh.config.trust_domain
        identity = spiffe_id(domain, request.namespace, request.account)
        try:
            key = certificates.read_request(request.pem(), identity)
        except IdentityError as error:
            return requests.denied(requests.UNSUPPORTED_KEY, str(error), now)
        return requests.issued(certificates.certify_for_kubelet(key, identity, request.lifetime), now)


def _path(request: PodRequest) -> str:
    collection = f"/apis/{requests.GROUP}/{requests.VERSION}/namespaces/{request.namespace}/{requests.PLURAL}"
    return f"{collection}/{request.name}"
