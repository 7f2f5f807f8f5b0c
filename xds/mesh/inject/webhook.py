"""Admission webhooks: one injects sidecars into new pods, the other one reviews policies.

They have no side effects, so dry runs need no special case. `xds.mesh.inject.patch` decides about pods, and
`xds.mesh.inject.policy_webhook` about policies.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

import structlog
from aiohttp import web

from xds.mesh.identity.ca import Leaf
from xds.mesh.identity.keys import IdentityError
from xds.mesh.inject import MAX_PROBLEMS, Injection, InjectionSettings, create_patch, inject
from xds.mesh.inject.policy_review import Proposal, read_proposal
from xds.mesh.inject.policy_webhook import PolicyReviewer
from xds.mesh.model.objects import Problem, printable
from xds.mesh.parse import dotted
from xds.mesh.parse.reading import shown
from xds.server.fair_share import FairExecutor
from xds.server.http import HttpListener, client_of
from xds.server.http_bodies import BodyReader, read_json

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

log = structlog.get_logger(__name__)

API_VERSION = "admission.k8s.io/v1"
PATH = "/inject"
POLICY_PATH = "/validate"
RESULTS = ("injected", "left", "refused", "malformed")
"""Results of requests; `left` means that the webhook left the pod unchanged."""
MAX_BODY = 3 << 20
"""Maximum size of a request in bytes, the same as the API server's. etcd's limit is half of it."""
MAX_CONNECTIONS = 192
"""Maximum number of connections; each uses 0.4 MB."""
MAX_CONNECTIONS_PER_ADDRESS = 128
"""Maximum number of connections per address. An API server opens one for each concurrent pod creation."""
QUEUE_TIMEOUT = 5.0
"""Maximum time to process a request, in seconds. The API server's timeout is 10 s (`xds install`)."""
LOG_LINES = 100
"""Maximum number of log lines about requests per LOG_PERIOD: unauthenticated clients can cause them."""
LOG_PERIOD = 10.0
"""Period of the log limit, in seconds."""
_MAX_WARNING_LENGTH = 256
"""Maximum length of a warning. The API server truncates longer ones."""
_MAX_NAME_LENGTH = 253
"""Maximum length of a pod's name, as in Kubernetes."""
_MAX_REFUSAL_LENGTH = 4096
"""Maximum length of the message for a refused pod."""
_RETRY_DELAY = 60.0
"""Minimum time between renewals, in seconds. A failed renewal is retried after this delay."""


class WebhookServer:
    """HTTPS server for admission reviews. `run` serves until it is cancelled."""

    def __init__(
        self,
        settings: Callable[[], InjectionSettings],
        issue: Callable[[], Leaf],
        host: str,
        port: int,
        *,
        policies: PolicyReviewer | None = None,
        answers: Counter[str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Create a server.

        Args:
            settings: returns the current injection settings.
            issue: issues the server certificate, from the CA that the webhook configuration trusts.
            host: address to listen on.
            port: port to listen on; 0 for any free port.
            policies: reviewer of policies; None to review none.
            answers: counter of requests for injection by result (RESULTS).
            now: returns the current time.
        """
        self._settings = settings
        self._issue = issue
        self._host = host
        self._port = port
        self._policies = policies
        self._answers = Counter[str]() if answers is None else answers
        self._now = now
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.options |= ssl.OP_NO_RENEGOTIATION
        self._renewal = asyncio.Event()
        self._bodies = BodyReader(MAX_BODY)
        self._thread = FairExecutor()
        self._log_quota = _LogQuota()
        self.port = 0
        """Port that the server listens on; 0 until `listening` is set."""
        self.listening = asyncio.Event()

    def trigger_renewal(self) -> None:
        """Renew the certificate at once, for example because the CA has changed."""
        self._renewal.set()

    async def run(self) -> None:
        """Serve and renew the certificate until cancelled. Raise OSError if the server cannot listen."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(PATH, self._inject)
        if self._policies:
            app.router.add_post(POLICY_PATH, partial(self._review_policy, self._policies))
        delay = self._renew()
        listener = HttpListener(
            app,
            self._host,
            self._port,
            tls=self._tls,
            max_connections=MAX_CONNECTIONS,
            max_per_address=MAX_CONNECTIONS_PER_ADDRESS,
        )
        await listener.start()
        try:
            self.port = listener.port
            self.listening.set()
            log.info("webhook listening", port=self.port)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._renewal.wait()
                self._renewal.clear()
                delay = self._renew()
        finally:
            self.listening.clear()
            await listener.stop()

    def _renew(self) -> float:
        """Renew the certificate for new connections. Return the seconds until the next renewal."""
        try:
            leaf = self._issue()
        except IdentityError as error:
            problem = str(error)
            log.error("webhook certificate renewal failed", problem=problem)  # noqa: TRY400 - expected error
            return _RETRY_DELAY
        _load_certificate(self._tls, leaf)
        return max(_RETRY_DELAY, (leaf.renew_at - self._now()).total_seconds())

    async def _inject(self, request: web.Request) -> web.Response:
        settings = self._settings()

        def review(body: bytes) -> tuple[str, bytes]:
            response = review_pod(_read_review(body)["request"], settings, self._log_quota.take)
            return _result(response), _encode(response)

        async with self._reading(request, review, self._answers) as (result, text):
            self._answers[result] += 1
            return web.Response(body=text, content_type="application/json")

    async def _review_policy(self, policies: PolicyReviewer, request: web.Request) -> web.Response:
        def read(body: bytes) -> Proposal:
            return read_proposal(_read_review(body)["request"])

        # The proposal is as large as the body, whose slot it holds.
        async with self._reading(request, read, policies.results) as proposal:
            address = client_of(request).address
            result, response = await policies.review(proposal, address, self._log_quota.take)
            policies.results[result] += 1
            return web.Response(body=_encode(response), content_type="application/json")

    @asynccontextmanager
    async def _reading(
        self, request: web.Request, read: Callable[[bytes], T], results: Counter[str]
    ) -> AsyncIterator[T]:
        """Read the body in a thread, and hold its slot until the block ends.

        Args:
            request: the request.
            read: function that parses the body. It raises ValueError or RecursionError for a malformed one.
            results: counter for malformed requests.
        """
        client = client_of(request)
        async with AsyncExitStack() as stack:
            try:
                body = await stack.enter_async_context(self._bodies.read(request))
                async with asyncio.timeout(QUEUE_TIMEOUT):
                    value = await self._thread.run(client.address, client.share, lambda: read(body))
            except TimeoutError:
                raise web.HTTPServiceUnavailable(
                    text=f"the request timed out after {QUEUE_TIMEOUT:.0f} s; try again\n"
                ) from None
            except web.HTTPException:
                results["malformed"] += 1
                raise
            except (ValueError, RecursionError) as error:
                results["malformed"] += 1
                # Do not log this error: unauthenticated clients could flood the log.
                raise web.HTTPBadRequest(text=f"{printable(str(error)[:_MAX_REFUSAL_LENGTH])}\n") from None
            yield value


def _encode(response: Json) -> bytes:
    review = {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
    return json.dumps(review).encode()


class _LogQuota:
    """Rate limit of log lines about requests. Not thread-safe."""

    def __init__(self) -> None:
        self._lines = 0
        self._started = -LOG_PERIOD

    def take(self) -> bool:
        """Return whether another line may be logged."""
        now = time.monotonic()
        if now >= self._started + LOG_PERIOD:
            if self._lines > LOG_LINES:
                log.warning("log lines about admission requests dropped", count=self._lines - LOG_LINES)
            self._lines, self._started = 0, now
        self._lines += 1
        return self._lines <= LOG_LINES


def _result(response: Json) -> str:
    if not response["allowed"]:
        return "refused"
    return "injected" if "patch" in response else "left"


def _load_certificate(tls: ssl.SSLContext, leaf: Leaf) -> None:
    """Load a certificate into a TLS context. The ssl module reads only files, so use an in-memory file."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(leaf.chain + leaf.key.to_pem())
        file.flush()
        tls.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _read_review(body: bytes) -> Json:
    """Parse an AdmissionReview. Raise ValueError if it is invalid."""
    try:
        review = read_json(body)
    except ValueError as error:
        raise ValueError(f"the request is not valid JSON: {error}") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ValueError(f"the request is not an AdmissionReview of {API_VERSION}")
    if review.get("apiVersion") != API_VERSION:
        raise ValueError(
            f"the AdmissionReview has version {shown(review.get('apiVersion'))}; "
            f"only {API_VERSION} is supported"
        )
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise ValueError("the AdmissionReview has no request with a uid")
    return review


def review_pod(
    request: Mapping[str, Any], settings: InjectionSettings, may_log: Callable[[], bool] = lambda: True
) -> Json:
    """Return the response to an admission request. Raise ValueError if it creates a pod without an object.

    `may_log` returns whether another line may be logged.
    """
    response: Json = {"uid": request["uid"], "allowed": True}
    resource = request.get("resource")
    if resource != {"group": "", "version": "v1", "resource": "pods"} or request.get("subResource"):
        return response
    pod = request.get("object")
    if request.get("operation") != "CREATE":
        return response
    if not isinstance(pod, dict):
        raise ValueError("the request creates a pod but has no object")  # noqa: TRY004 - a malformed request
    namespace = str(request.get("namespace") or "")[:_MAX_NAME_LENGTH]
    subject = f"Pod {namespace}/{_name(pod)}"
    # The API server makes a random uid for each request.
    injection = inject(
        pod, settings, namespace=namespace, locate=dotted, subject=subject, secret=request["uid"]
    )
    if may_log():
        _log(subject, injection, dry_run=bool(request.get("dryRun")))
    if injection.refused:
        refusals = [problem for problem in injection.problems if not problem.notice][:MAX_PROBLEMS]
        message = "; ".join(_message(problem, _MAX_REFUSAL_LENGTH) for problem in refusals)
        status = {"code": 422, "reason": "Invalid", "message": message[:_MAX_REFUSAL_LENGTH]}
        return response | {"allowed": False, "status": status}
    warnings = [_message(problem, _MAX_WARNING_LENGTH) for problem in injection.problems[:MAX_PROBLEMS]]
    if injection.ignores_request:
        warnings.append(f"{subject} gets no sidecar: {injection.skip}"[:_MAX_WARNING_LENGTH])
    if warnings:
        response["warnings"] = warnings
    if patch := create_patch(pod, injection.pod):
        response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(patch).encode()).decode()}
    return response


def _name(pod: Mapping[str, Any]) -> str:
    meta = pod.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    return str(meta.get("name") or meta.get("generateName") or "")[:_MAX_NAME_LENGTH]


def _message(problem: Problem, max_length: int) -> str:
    text = f"{problem.what} ({problem.hint})" if problem.hint else problem.what
    return printable(text[:max_length])[:max_length]


def _log(subject: str, injection: Injection, *, dry_run: bool) -> None:
    dry_run_field = {"dry_run": True} if dry_run else {}
    if injection.refused:
        problems = [
            problem.what[:_MAX_WARNING_LENGTH] for problem in injection.problems if not problem.notice
        ]
        log.warning(
            "pod refused", pod=subject.removeprefix("Pod "), problems=problems[:MAX_PROBLEMS], **dry_run_field
        )
    elif skip := injection.skip:
        log.debug("pod skipped", pod=subject.removeprefix("Pod "), reason=skip.reason, **dry_run_field)
    else:
        log.info("sidecar injected", pod=subject.removeprefix("Pod "), **dry_run_field)
