"""The mutating webhook: the API server shows a pod that is to be created, and gets back how to change it.

Nothing is kept and nothing is written, so a dry run is the same as any other. What decides is `xds.mesh.inject`.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeAlias

import structlog
from aiohttp import web

from xds.mesh.identity.ca import Leaf
from xds.mesh.identity.keys import IdentityError
from xds.mesh.inject import MAX_PROBLEMS, Injection, InjectionSettings, create_patch, inject
from xds.mesh.model.objects import Problem, printable
from xds.mesh.parse import dotted
from xds.mesh.parse.reading import shown
from xds.server.fair_share import FairExecutor
from xds.server.http import BodyReader, HttpListener, client_of, read_json

Json: TypeAlias = dict[str, Any]

log = structlog.get_logger(__name__)

API_VERSION = "admission.k8s.io/v1"
PATH = "/inject"
RESULTS = ("injected", "left", "refused", "malformed")
"""What becomes of a request; `left`: the pod stays as it is."""
MAX_BODY = 3 << 20
"""Bytes of a request: the API server does not accept larger objects. etcd's limit for what it stores is half of that."""
MAX_CONNECTIONS = 192
"""Connections, of 0.4 MB each."""
MAX_CONNECTIONS_PER_ADDRESS = 128
"""Connections of one API server, which uses one for each pod that is being created at that moment."""
QUEUE_TIMEOUT = 5.0
"""Seconds that a request waits for its turn. The API server waits 10 s for the answer, as `xds install` configures it."""
LOG_LINES = 100
"""Log lines about pods,"""
LOG_PERIOD = 10.0
"""in this many seconds: clients without a credential can cause them."""
_MAX_WARNING_LENGTH = 256
"""Characters; the API server cuts what is longer, and others besides."""
_MAX_NAME_LENGTH = 253
"""Characters of a pod's name, as Kubernetes allows."""
_MAX_REFUSAL_LENGTH = 4096
"""Characters of what is told to who creates a pod that cannot have a sidecar."""
_RETRY_DELAY = 60.0
"""Seconds after which a certificate that could not be had is asked for again, and between two at least."""


class WebhookServer:
    """Answers the API server over TLS. `run` serves until it is cancelled."""

    def __init__(
        self,
        settings: Callable[[], InjectionSettings],
        issue: Callable[[], Leaf],
        host: str,
        port: int,
        *,
        answers: Counter[str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make one.

        Args:
            settings: how sidecars are to be now.
            issue: makes the server's certificate, from the CA that the webhook's configuration trusts.
            host: address to listen on.
            port: 0 leaves the choice to the system.
            answers: counts requests by what became of them (RESULTS).
            now: a clock.
        """
        self._settings = settings
        self._issue = issue
        self._host = host
        self._port = port
        self._answers = Counter[str]() if answers is None else answers
        self._now = now
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.options |= ssl.OP_NO_RENEGOTIATION
        self._renewal = asyncio.Event()
        self._bodies = BodyReader(MAX_BODY)
        self._thread = FairExecutor()
        self._log_quota = _LogQuota()
        self.port = 0
        """The port that it listens on; 0 until it does."""
        self.listening = asyncio.Event()

    def trigger_renewal(self) -> None:
        """Take a certificate from another CA from now on."""
        self._renewal.set()

    async def run(self) -> None:
        """Serve, and renew the certificate, until cancelled. OSError: the address cannot be had."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(PATH, self._inject)
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
            log.info("webhook is listening", port=self.port)
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
        """Take a fresh certificate for connections from now on; return for how many seconds."""
        try:
            leaf = self._issue()
        except IdentityError as error:
            log.error("the webhook's certificate cannot be renewed", problem=str(error))  # noqa: TRY400 - it says all
            return _RETRY_DELAY
        _load_certificate(self._tls, leaf)
        return max(_RETRY_DELAY, (leaf.renew_at - self._now()).total_seconds())

    async def _inject(self, request: web.Request) -> web.Response:
        client = client_of(request)
        settings = self._settings()
        try:
            async with self._bodies.read(request) as body, asyncio.timeout(QUEUE_TIMEOUT):
                result, text = await self._thread.run(
                    client.address, client.share, lambda: _review_body(body, settings, self._log_quota.take)
                )
        except TimeoutError:
            raise web.HTTPServiceUnavailable(
                text=f"the request was not answered in {QUEUE_TIMEOUT:.0f} s; try again\n"
            ) from None
        except web.HTTPException:
            self._answers["malformed"] += 1
            raise
        except (ValueError, RecursionError) as error:
            self._answers["malformed"] += 1
            # Clients without a credential can send anything: the client is told, and the log is not.
            return web.Response(status=400, text=f"{printable(str(error)[:_MAX_REFUSAL_LENGTH])}\n")
        self._answers[result] += 1
        return web.Response(body=text, content_type="application/json")


class _LogQuota:
    """Limits log lines about pods; used by one thread at a time."""

    def __init__(self) -> None:
        self._lines = 0
        self._started = -LOG_PERIOD

    def take(self) -> bool:
        """Whether another line may be written."""
        now = time.monotonic()
        if now >= self._started + LOG_PERIOD:
            if self._lines > LOG_LINES:
                log.warning("log lines about pods dropped", count=self._lines - LOG_LINES)
            self._lines, self._started = 0, now
        self._lines += 1
        return self._lines <= LOG_LINES


def _review_body(body: bytes, settings: InjectionSettings, may_log: Callable[[], bool]) -> tuple[str, bytes]:
    """Return what becomes of a request, and the answer. ValueError, RecursionError: it is no request."""
    response = review_pod(_read_review(body)["request"], settings, may_log)
    review = {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
    return _result(response), json.dumps(review).encode()


def _result(response: Json) -> str:
    if not response["allowed"]:
        return "refused"
    return "injected" if "patch" in response else "left"


def _load_certificate(tls: ssl.SSLContext, leaf: Leaf) -> None:
    """Give a context its certificate. OpenSSL reads files only: this one is in memory, and has no name."""
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(file, "wb") as stream:
        stream.write(leaf.chain + leaf.key.to_pem())
        stream.flush()
        tls.load_cert_chain(f"/proc/self/fd/{file}")


def _read_review(body: bytes) -> Json:
    """Read an AdmissionReview. ValueError: it is none."""
    try:
        review = read_json(body)
    except ValueError as error:
        raise ValueError(f"the request is no JSON that can be read: {error}") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ValueError(f"the request is no AdmissionReview of {API_VERSION}")
    if review.get("apiVersion") != API_VERSION:
        raise ValueError(
            f"the AdmissionReview is of {shown(review.get('apiVersion'))}, and here of {API_VERSION}"
        )
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise ValueError("the AdmissionReview has no request with a uid")
    return review


def review_pod(
    request: Mapping[str, Any], settings: InjectionSettings, may_log: Callable[[], bool] = lambda: True
) -> Json:
    """Return the response to an admission request; `may_log` is asked before it is logged. ValueError: its object is none."""
    response: Json = {"uid": request["uid"], "allowed": True}
    resource = request.get("resource")
    if resource != {"group": "", "version": "v1", "resource": "pods"} or request.get("subResource"):
        return response
    pod = request.get("object")
    if request.get("operation") != "CREATE":
        return response
    if not isinstance(pod, dict):
        raise ValueError("the request creates a pod and has none")  # noqa: TRY004 - the caller's error, as others
    namespace = str(request.get("namespace") or "")[:_MAX_NAME_LENGTH]
    subject = f"Pod {namespace}/{_name(pod)}"
    result = inject(pod, settings, namespace=namespace, locate=dotted, subject=subject)
    if may_log():
        _log(subject, result, dry_run=bool(request.get("dryRun")))
    if result.refused:
        refusals = [problem for problem in result.problems if not problem.notice][:MAX_PROBLEMS]
        message = "; ".join(_message(problem, _MAX_REFUSAL_LENGTH) for problem in refusals)
        status = {"code": 422, "reason": "Invalid", "message": message[:_MAX_REFUSAL_LENGTH]}
        return response | {"allowed": False, "status": status}
    warnings = [_message(problem, _MAX_WARNING_LENGTH) for problem in result.problems[:MAX_PROBLEMS]]
    if result.ignores_request:
        warnings.append(f"{subject} gets no sidecar: {result.skip_reason}"[:_MAX_WARNING_LENGTH])
    if warnings:
        response["warnings"] = warnings
    if patch := create_patch(pod, result.pod):
        response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(patch).encode()).decode()}
    return response


def _name(pod: Mapping[str, Any]) -> str:
    meta = pod.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    return str(meta.get("name") or meta.get("generateName") or "")[:_MAX_NAME_LENGTH]


def _message(problem: Problem, max_length: int) -> str:
    text = f"{problem.what} ({problem.hint})" if problem.hint else problem.what
    return printable(text[:max_length])[:max_length]


def _log(subject: str, result: Injection, *, dry_run: bool) -> None:
    dry_run_field = {"dry_run": True} if dry_run else {}
    if result.refused:
        problems = [problem.what[:_MAX_WARNING_LENGTH] for problem in result.problems if not problem.notice]
        log.warning(
            "pod refused", pod=subject.removeprefix("Pod "), problems=problems[:MAX_PROBLEMS], **dry_run_field
        )
    elif result.skip_reason:
        log.debug(
            "pod left as it is", pod=subject.removeprefix("Pod "), reason=result.skip_reason, **dry_run_field
        )
    else:
        log.info("sidecar added", pod=subject.removeprefix("Pod "), **dry_run_field)
