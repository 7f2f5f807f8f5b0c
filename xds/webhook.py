"""The mutating webhook: the API server shows a pod that is to be created, and gets back how to change it.

Nothing is kept and nothing is written, so a dry run is the same as any other. What decides is `xds.inject`.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeAlias

import structlog
from aiohttp import web

from xds.http import listen
from xds.identity.ca import Leaf
from xds.identity.keys import IdentityError
from xds.inject import Injection, Settings, difference, inject
from xds.model import printable
from xds.parse import dotted

Json: TypeAlias = dict[str, Any]

log = structlog.get_logger(__name__)

API_VERSION = "admission.k8s.io/v1"
PATH = "/inject"
RESULTS = ("injected", "left", "refused", "malformed")
"""What becomes of a request; `left`: the pod stays as it is."""
MOST_BYTES = 8 << 20
"""Of a request: the API server takes objects of 3 MiB, and wraps them."""
PATIENCE = 10.0
"""Seconds that a request may take to come in: what the API server waits for the answer at most, as we are installed."""
LARGE = 64 << 10
"""Bytes of a request that is answered in a thread, one at a time: the largest take seconds, in which no sidecar would be served."""
LARGE_IN_MEMORY = 8
"""How many of these are read at the same time."""
_LONGEST_WARNING = 256
"""Characters; the API server cuts what is longer, and others besides."""
_MOST_PROBLEMS = 16
"""That are told of a pod: one may have a hundred thousand."""
_LONGEST_REFUSAL = 4096
"""Characters of what is told to who creates a pod that cannot have a sidecar."""
_AGAIN = 60.0
"""Seconds after which a certificate that could not be had is asked for again, and between two at least."""


class WebhookServer:
    """Answers the API server over TLS. `run` serves until it is cancelled."""

    def __init__(
        self,
        settings: Callable[[], Settings],
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
        self._rotated = asyncio.Event()
        self._few_large = asyncio.Semaphore(LARGE_IN_MEMORY)
        self._one_large = asyncio.Semaphore(1)
        self.port = 0
        """The port that it listens on; 0 until it does."""
        self.listening = asyncio.Event()

    def rotated(self) -> None:
        """Take a certificate from another CA from now on."""
        self._rotated.set()

    async def run(self) -> None:
        """Serve, and renew the certificate, until cancelled. OSError: the address cannot be had."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post(PATH, self._inject)
        wait = self._renew()
        runner = await listen(app, self._host, self._port, tls=self._tls)
        try:
            self.port = runner.addresses[0][1]
            self.listening.set()
            log.info("webhook is listening", port=self.port)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._rotated.wait()
                self._rotated.clear()
                wait = self._renew()
        finally:
            self.listening.clear()
            await runner.cleanup()

    def _renew(self) -> float:
        """Take a fresh certificate for connections from now on; return for how many seconds."""
        try:
            leaf = self._issue()
        except IdentityError as error:
            log.error("the webhook's certificate cannot be renewed", problem=str(error))  # noqa: TRY400 - it says all
            return _AGAIN
        _load(self._tls, leaf)
        return max(_AGAIN, (leaf.renew_at - self._now()).total_seconds())

    async def _inject(self, request: web.Request) -> web.Response:
        if (request.content_length or MOST_BYTES) <= LARGE:
            return await self._respond(request)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._few_large.acquire()
        except TimeoutError:
            return _too_many()
        try:
            return await self._respond(request)
        finally:
            self._few_large.release()

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(PATIENCE):
                body = await request.read()
        except TimeoutError:
            self._answers["malformed"] += 1
            return web.Response(status=408, text="the request did not come in time\n")
        try:
            result, text = await self._answered(body)
        except (ValueError, RecursionError) as error:
            self._answers["malformed"] += 1
            # Whoever may reach this port may send anything: it is told, and nobody else needs to know.
            return web.Response(status=400, text=f"{printable(str(error))[:_LONGEST_REFUSAL]}\n")
        except TimeoutError:
            return _too_many()
        self._answers[result] += 1
        return web.Response(body=text, content_type="application/json")

    async def _answered(self, body: bytes) -> tuple[str, bytes]:
        settings = self._settings()
        if len(body) <= LARGE:
            return _answered(body, settings)
        async with asyncio.timeout(PATIENCE):
            await self._one_large.acquire()
        try:
            return await asyncio.to_thread(_answered, body, settings)
        finally:
            self._one_large.release()


def _too_many() -> web.Response:
    return web.Response(status=503, text="there are too many large requests; try again\n")


def _answered(body: bytes, settings: Settings) -> tuple[str, bytes]:
    """Return what becomes of a request, and the answer. ValueError, RecursionError: it is no request."""
    response = answer(_review(body)["request"], settings)
    review = {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
    return _result(response), json.dumps(review).encode()


def _result(response: Json) -> str:
    if not response["allowed"]:
        return "refused"
    return "injected" if "patch" in response else "left"


def _load(tls: ssl.SSLContext, leaf: Leaf) -> None:
    """Give a context its certificate. OpenSSL reads files only: this one is in memory, and has no name."""
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(file, "wb") as stream:
        stream.write(leaf.chain + leaf.key.to_pem())
        stream.flush()
        tls.load_cert_chain(f"/proc/self/fd/{file}")


def _review(body: bytes) -> Json:
    """Read an AdmissionReview. ValueError: it is none."""
    try:
        review = json.loads(body)
    except ValueError:
        raise ValueError("the request is no JSON") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ValueError(f"the request is no AdmissionReview of {API_VERSION}")
    if review.get("apiVersion") != API_VERSION:
        raise ValueError(f"the AdmissionReview is of {review.get('apiVersion')!r}, and here of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise ValueError("the AdmissionReview has no request with a uid")
    return review


def answer(request: Mapping[str, Any], settings: Settings) -> Json:
    """Return the response to an admission request. ValueError: its object is none."""
    response: Json = {"uid": request["uid"], "allowed": True}
    resource = request.get("resource")
    if resource != {"group": "", "version": "v1", "resource": "pods"} or request.get("subResource"):
        return response
    pod = request.get("object")
    if request.get("operation") != "CREATE":
        return response
    if not isinstance(pod, dict):
        raise ValueError("the request creates a pod and has none")  # noqa: TRY004 - the caller's error, as others
    namespace = str(request.get("namespace") or "")
    subject = f"Pod {namespace}/{_name(pod)}"
    result = inject(pod, settings, namespace=namespace, locate=dotted, subject=subject)
    _log(subject, result, dry_run=bool(request.get("dryRun")))
    if result.refused:
        said = "; ".join(
            _said(problem.what, problem.hint) for problem in result.problems if not problem.notice
        )
        status = {"code": 422, "reason": "Invalid", "message": said[:_LONGEST_REFUSAL]}
        return response | {"allowed": False, "status": status}
    warnings = [_said(problem.what, problem.hint) for problem in result.problems]
    if result.disappoints:
        warnings.append(f"{subject} gets no sidecar: {result.left}")
    if warnings:
        response["warnings"] = [warning[:_LONGEST_WARNING] for warning in warnings[:_MOST_PROBLEMS]]
    if patch := difference(pod, result.pod):
        response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(patch).encode()).decode()}
    return response


def _name(pod: Mapping[str, Any]) -> str:
    meta = pod.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    return str(meta.get("name") or meta.get("generateName") or "")


def _said(what: str, hint: str) -> str:
    return printable(f"{what} ({hint})" if hint else what)


def _log(subject: str, result: Injection, *, dry_run: bool) -> None:
    about = {"dry_run": True} if dry_run else {}
    if result.refused:
        problems = [problem.what for problem in result.problems if not problem.notice]
        log.warning(
            "pod refused", pod=subject.removeprefix("Pod "), problems=problems[:_MOST_PROBLEMS], **about
        )
    elif result.left:
        log.debug("pod left as it is", pod=subject.removeprefix("Pod "), reason=result.left, **about)
    else:
        log.info("sidecar added", pod=subject.removeprefix("Pod "), **about)
