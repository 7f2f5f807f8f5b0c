"""The webhook's HTTPS server: responses to the API server and to other clients."""

from __future__ import annotations

import asyncio
import base64
import copy
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import jsonpatch
import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from tests.inject.webhooks import NAME, NOW, Call, authority, running
from xds.mesh.controlplane.metrics.admission import AdmissionMetrics
from xds.mesh.identity.ca import Leaf
from xds.mesh.identity.keys import IdentityError
from xds.mesh.inject import InjectionSettings, inject, webhook
from xds.mesh.inject.webhook import MAX_BODY, WebhookServer
from xds.mesh.parse import dotted
from xds.mesh.parse.reading import MAX_PROBLEMS
from xds.server.http_bodies import MAX_SMALL_BODY

POD = {"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "web", "image": "web"}]}}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine needs longer than the API server would wait."""
    monkeypatch.setattr(webhook, "QUEUE_TIMEOUT", 60.0)


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    ca = authority()
    async with running(
        WebhookServer(InjectionSettings, lambda: ca.issue_server([NAME], NOW), "127.0.0.1", 0)
    ) as server:
        yield Call(server.port, ca)


def review(pod: Any, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "object": pod,
            **request,
        },
    }


async def test_patch_equals_the_output_of_inject(call: Call) -> None:
    status, answered = await call(review(POD))
    assert (status, answered["apiVersion"], answered["kind"]) == (
        200,
        "admission.k8s.io/v1",
        "AdmissionReview",
    )
    response = answered["response"]
    assert (response["uid"], response["allowed"]) == ("705ab4f5-6393-11e8-b7cc-42010a800002", True)
    assert response["patchType"] == "JSONPatch"
    patched = jsonpatch.apply_patch(copy.deepcopy(POD), base64.b64decode(response["patch"]).decode())
    assert patched == inject(POD, InjectionSettings(), locate=dotted).pod
    assert (await call(review(POD, dryRun=True)))[1] == answered


async def test_paths_of_hooks_cannot_be_guessed(call: Call) -> None:
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0]["lifecycle"] = {
        name: {"httpGet": {"path": "/quit", "port": 8080}} for name in ("preStop", "postStart")
    }
    paths = set()
    for uid in ("first", "second"):
        _, answered = await call(review(pod, uid=uid))
        patch = base64.b64decode(answered["response"]["patch"]).decode()
        lifecycle = jsonpatch.apply_patch(pod, patch)["spec"]["containers"][0]["lifecycle"]
        paths |= {lifecycle[name]["httpGet"]["path"] for name in lifecycle}
    prefixes = {path.rpartition("/")[0].rpartition("/")[2] for path in paths}
    assert (len(paths), prefixes) == (4, {"prestopz", "poststartz"})
    assert all(re.fullmatch(r"/app-lifecycle/[a-z-]+/[a-z]+/[0-9a-f]{32}", path) for path in paths)


async def test_pod_with_a_sidecar_is_allowed_unchanged(call: Call) -> None:
    injected = inject(POD, InjectionSettings(), locate=dotted).pod
    _, answered = await call(review(injected))
    assert answered["response"] == {"uid": review(POD)["request"]["uid"], "allowed": True}


async def test_uninjectable_pod_is_refused_with_a_hint(call: Call) -> None:
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 15001}]
    with capture_logs() as logs:
        _, answered = await call(review(pod))
    assert answered["response"]["allowed"] is False
    assert answered["response"]["status"] == {
        "code": 422,
        "reason": "Invalid",
        "message": "Pod shop/web-: spec.containers[0].ports[0].containerPort is 15001, which is reserved "
        "for outbound interception (use another port)",
    }
    assert [entry["pod"] for entry in logs if entry["event"] == "pod refused"] == ["shop/web-"]


async def test_skipped_pod_with_inject_label_gets_a_warning(call: Call) -> None:
    pod = copy.deepcopy(POD)
    pod["metadata"]["labels"] = {"sidecar.istio.io/inject": "true"}
    pod["spec"]["hostNetwork"] = True
    _, answered = await call(review(pod))
    assert answered["response"]["allowed"]
    (warning,) = answered["response"]["warnings"]
    assert warning.startswith("Pod shop/web- gets no sidecar: hostNetwork is true")
    del pod["metadata"]["labels"]
    assert "warnings" not in (await call(review(pod)))[1]["response"]


async def test_pod_that_changes_istios_sidecar_gets_a_warning(call: Call) -> None:
    """It starts with the image auto, which does not exist."""
    pod = copy.deepcopy(POD)
    pod["spec"]["containers"].append({"name": "istio-proxy", "image": "auto"})
    _, answered = await call(review(pod))
    assert "patch" not in answered["response"]
    (warning,) = answered["response"]["warnings"]
    assert warning.startswith("Pod shop/web- gets no sidecar: its container istio-proxy changes the sidecar")
    assert "(remove the container; " in warning
    pod["spec"]["containers"][-1]["image"] = "proxyv2"
    assert "warnings" not in (await call(review(pod)))[1]["response"]


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"subResource": "ephemeralcontainers"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
    ],
)
async def test_other_operations_and_resources_are_allowed(call: Call, request_: dict[str, Any]) -> None:
    _, answered = await call(review(POD, **request_))
    assert answered["response"] == {"uid": review(POD)["request"]["uid"], "allowed": True}


DEEP = b'{"kind":' * 200_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not an AdmissionReview"),
        (b"{}", "not an AdmissionReview"),
        (DEEP, ""),
        (review(POD) | {"apiVersion": "admission.k8s.io/v1beta1"}, "has version 'admission.k8s.io/v1beta1'"),
        (review(POD) | {"request": None}, "no request with a uid"),
        (review(POD, uid=""), "no request with a uid"),
        (review(None), "creates a pod but has no object"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_malformed_request_is_400_with_the_reason(call: Call, body, message: str) -> None:
    status, text = await call(body)
    assert status == 400
    assert message in text
    assert (await call(review(POD)))[1]["response"]["allowed"]


@pytest.mark.parametrize(
    "spec", [None, [], {"containers": 1}, {"containers": [None]}, {"containers": [{"name": {}}]}]
)
async def test_malformed_pod_is_refused(call: Call, spec: Any) -> None:
    _, answered = await call(review({"metadata": {"name": "x"}, "spec": spec}))
    assert answered["response"]["allowed"] is False


async def test_body_beyond_the_limit_is_413(call: Call) -> None:
    assert (await call(b" " * (MAX_BODY + 1)))[0] == 413


async def test_pods_are_read_in_a_thread(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, threads = webhook.review_pod, []

    def record(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return answer(*args)

    monkeypatch.setattr(webhook, "review_pod", record)
    large = copy.deepcopy(POD) | {"x": "x" * MAX_SMALL_BODY}
    for pod in (POD, large):
        assert (await call(review(pod)))[1]["response"]["allowed"]
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_request_that_waits_too_long_is_503(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, done = webhook.review_pod, threading.Event()

    def wait(*args: Any) -> Any:
        done.wait(100)
        return answer(*args)

    monkeypatch.setattr(webhook, "review_pod", wait)
    with monkeypatch.context() as brief:
        brief.setattr(webhook, "QUEUE_TIMEOUT", 1.0)
        ended = asyncio.as_completed([asyncio.create_task(call(review(POD))) for _ in range(3)])
        statuses = [(await next(ended))[0] for _ in range(2)]
        done.set()  # Only the first one has the thread, so its time is up as well.
        statuses.append((await next(ended))[0])
    assert statuses == [503] * 3
    assert (await call(review(POD)))[0] == 200


async def test_number_of_reported_problems_is_limited(call: Call) -> None:
    labels = {f"label-{number}": number for number in range(10_000)}
    pod = copy.deepcopy(POD) | {"metadata": {"name": "web", "labels": labels}}
    with capture_logs() as logs:
        _, answered = await call(review(pod))
    assert len(answered["response"]["status"]["message"]) < 5_000
    assert [len(line["problems"]) for line in logs if line["event"] == "pod refused"] == [MAX_PROBLEMS + 1]


async def test_other_methods_and_paths_are_errors(call: Call) -> None:
    assert (await call(b"", method="GET"))[0] == 405
    assert (await call(b"", url=call.url.replace("/inject", "/")))[0] == 404


async def test_ca_changes_without_a_restart() -> None:
    old, new = authority(), authority()
    current = [old]
    server = WebhookServer(InjectionSettings, lambda: current[0].issue_server([NAME], NOW), "127.0.0.1", 0)
    async with running(server):
        assert (await Call(server.port, old)(review(POD)))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await Call(server.port, new)(review(POD))
        current[0] = new
        server.trigger_renewal()
        async with asyncio.timeout(30):
            while True:
                with suppress(aiohttp.ClientConnectorCertificateError):
                    await Call(server.port, new)(review(POD))
                    return


async def test_failed_renewal_keeps_the_certificate() -> None:
    ca = authority()
    failed = asyncio.Event()
    issued: list[Leaf] = []

    def issue() -> Leaf:
        if issued:
            failed.set()
            raise IdentityError("the root certificate expired")
        issued.append(ca.issue_server([NAME], NOW))
        return issued[0]

    server = WebhookServer(InjectionSettings, issue, "127.0.0.1", 0)
    with capture_logs() as logs:
        async with running(server):
            server.trigger_renewal()
            async with asyncio.timeout(30):
                await failed.wait()
            assert (await Call(server.port, ca)(review(POD)))[0] == 200
    assert [entry["problem"] for entry in logs if entry["log_level"] == "error"] == [
        "the root certificate expired"
    ]


async def test_address_in_use_is_an_error() -> None:
    ca = authority()

    def server(port: int) -> WebhookServer:
        return WebhookServer(InjectionSettings, lambda: ca.issue_server([NAME], NOW), "127.0.0.1", port)

    async with running(server(0)) as first:
        with pytest.raises(OSError, match="address already in use"):
            await server(first.port).run()


async def test_requests_are_counted_by_result() -> None:
    ca, answers = authority(), Counter[str]()
    server = WebhookServer(
        InjectionSettings, lambda: ca.issue_server([NAME], NOW), "127.0.0.1", 0, answers=answers
    )
    async with running(server):
        call = Call(server.port, ca)
        for body in (review(POD), review(POD), review(POD, operation="UPDATE"), review({}), b"?"):
            await call(body)
    assert answers == {"injected": 2, "left": 1, "refused": 1, "malformed": 1}
    exposed = generate_latest(AdmissionMetrics(answers, {})).decode()  # type: ignore[arg-type]
    assert 'xds_webhook_requests_total{result="injected"} 2.0' in exposed
    assert 'xds_webhook_requests_total{result="malformed"} 1.0' in exposed
