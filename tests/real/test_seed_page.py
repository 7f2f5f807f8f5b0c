"""Istio's task *Automatic mutual TLS*, step by step, with the real Envoy, httpbin and `xds serve`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import yaml

from tests.support.apps import Httpbin
from tests.support.local import RECONNECTED, LocalMesh, LocalPod
from tests.support.manifests import Manifest
from tests.support.predictions import At, Call, Results, results, results_after
from xds.mesh.model.mesh import Mesh
from xds.mesh.policy.prediction import predict_change
from xds.mesh.policy.reach import Result

pytestmark = pytest.mark.envoy

STRICT = """
apiVersion: "authentication.istio.io/v1alpha1"
kind: "Policy"
metadata:
  name: "httpbin"
spec:
  targets:
  - name: httpbin
  peers:
  - mtls: {}
"""
PLAINTEXT = """
apiVersion: "authentication.istio.io/v1alpha1"
kind: "Policy"
metadata:
  name: "httpbin"
spec:
  targets:
  - name: httpbin
"""
OVERRIDE = """
apiVersion: "networking.istio.io/v1alpha3"
kind: "DestinationRule"
metadata:
  name: "httpbin-full-mtls"
spec:
  host: httpbin.full.svc.cluster.local
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
"""

ME = "spiffe://cluster.local/ns/full/sa/sleep"
MTLS, PLAIN = ("200", ME), ("200", "")
REFUSED, UNAVAILABLE = ("000", ""), ("503", "")
RESULTS = {
    MTLS: Result.MTLS,
    PLAIN: Result.PLAINTEXT,
    REFUSED: Result.FAILS,
    UNAVAILABLE: Result.FAILS,
}

Seen = Mapping[tuple[str, str], set[tuple[str, str]]]
"""(namespace of sleep, namespace of httpbin) -> every (status code, client identity that httpbin saw)."""

EVERYTHING_PLAIN: Seen = {
    (source, target): {PLAIN} for source in ("full", "legacy") for target in ("full", "partial", "legacy")
}
AUTOMATIC: Seen = {**EVERYTHING_PLAIN, ("full", "full"): {MTLS}, ("full", "partial"): {MTLS, PLAIN}}

REQUESTS, AT_MOST = 10, 100


class Page:
    """The deployment of the Istio task: httpbin in three namespaces, and sleep in two of them."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self._last: tuple[Mesh, Results] | None = None
        """The facts and results of the last phase."""
        self.sleeps: dict[str, LocalPod] = {}
        self.httpbins: dict[str, LocalPod] = {}

    async def deploy(self) -> None:
        """Start all pods. The sidecar of httpbin.full asks for the state of the world."""
        for namespace, sidecar in (("full", True), ("legacy", False)):
            httpbin = self.httpbins[namespace] = self._httpbin(
                "httpbin", namespace, "httpbin", sidecar=sidecar
            )
            self.sleeps[namespace] = self.mesh.pod("sleep", namespace, sidecar=sidecar)
            await self._run(httpbin)
        migrated = self._httpbin("httpbin", "partial", "httpbin", sidecar=True)
        waiting = self._httpbin("httpbin-nosidecar", "partial", "default", sidecar=False)
        await self._run(migrated)
        await self._run(waiting)
        for namespace in ("full", "partial", "legacy"):
            self.mesh.service("httpbin", namespace, {"http": (8000, 8080)})
        for sotw, pods in ((True, [self.httpbins["full"]]), (False, [self.sleeps["full"], migrated])):
            self.mesh.sotw = sotw
            await self.mesh.start(*pods)

    def _httpbin(self, name: str, namespace: str, account: str, *, sidecar: bool) -> LocalPod:
        return self.mesh.pod(name, namespace, sidecar=sidecar, account=account, labels={"app": "httpbin"})

    async def _run(self, pod: LocalPod) -> None:
        await self.mesh.enter(Httpbin(8080, address=pod.app_address))

    async def seen(self, expected: Seen) -> Seen:
        """Send requests until everything expected was seen, and enough to see anything unexpected.

        What was seen must be what `xds reach` predicts, and the difference to the last phase what `xds plan`
        predicts.
        """
        seen = {pair: await self._ask(*pair, expected[pair]) for pair in expected}
        facts = self.mesh.facts()
        real = self._results(facts, seen)
        assert real == {call: results(facts)[call] for call in real}
        if self._last:
            before, old = self._last
            assert results_after(predict_change(before, facts), old, real) == real
        self._last = facts, real
        return seen

    def _results(self, facts: Mesh, seen: Seen) -> Results:
        """Return the result at each endpoint. Only pods with a sidecar can be the ones that served mTLS."""
        found: dict[Call, dict[At, Result]] = {}
        for (source, target), answers in seen.items():
            client, service = facts.pod(source, "sleep"), facts.service(target, "httpbin")
            assert client
            assert service
            rest = {RESULTS[answer] for answer in answers} - {Result.MTLS} or {Result.MTLS}
            assert len(rest) == 1, answers
            found[client.ref, service.ref, 8000] = {
                (endpoint.address, endpoint.port): Result.MTLS
                if MTLS in answers and endpoint.pod and endpoint.pod.has_sidecar
                else next(iter(rest))
                for endpoint in facts.endpoints(service, service.ports[0])
            }
        return found

    async def _ask(self, source: str, target: str, expected: set[tuple[str, str]]) -> set[tuple[str, str]]:
        url = f"http://httpbin.{target}:8000/headers"
        seen: Counter[tuple[str, str]] = Counter()
        while seen.total() < AT_MOST and (seen.total() < REQUESTS or not expected <= seen.keys()):
            answer = await self.sleeps[source].client.get(url)
            seen[answer.code, answer.identity if answer.ok else ""] += 1
        return set(seen)


async def test_istio_task(loopback, tmp_path):
    async with LocalMesh(loopback, tmp_path) as mesh:
        page = Page(mesh)
        await page.deploy()
        sleep, httpbin = (mesh.sidecar(pods["full"]).bootstrap for pods in (page.sleeps, page.httpbins))
        assert await mesh.plane.bootstrap("sleep.full") == sleep
        assert await mesh.plane.bootstrap("httpbin.full", "--sotw") == httpbin

        # The installation starts with PERMISSIVE, and sidecars migrate pod by pod.
        assert await page.seen(AUTOMATIC) == AUTOMATIC

        strict = printed(STRICT)
        mesh.apply(strict)
        await mesh.settled()
        locked: Seen = {**AUTOMATIC, ("legacy", "full"): {REFUSED}}
        assert await page.seen(locked) == locked

        mesh.apply(printed(PLAINTEXT))
        await mesh.settled()
        opened: Seen = {**AUTOMATIC, ("full", "full"): {PLAIN}}
        assert await page.seen(opened) == opened

        override = printed(OVERRIDE)
        mesh.apply(override)
        await mesh.settled()
        overridden: Seen = {**AUTOMATIC, ("full", "full"): {UNAVAILABLE}}
        assert await page.seen(overridden) == overridden

        mesh.delete(strict, override)
        await mesh.settled()
        assert await page.seen(AUTOMATIC) == AUTOMATIC

        # The case that the task's summary warns of.
        await mesh.reinstall("values.global.mtls.auto=false", "values.global.mtls.enabled=false")
        await mesh.settled(timeout=RECONNECTED)
        assert await page.seen(EVERYTHING_PLAIN) == EVERYTHING_PLAIN

        mesh.apply(strict)
        await mesh.settled()
        await mesh.drained()
        broken: Seen = {
            **EVERYTHING_PLAIN,
            ("full", "full"): {UNAVAILABLE},
            ("legacy", "full"): {REFUSED},
        }
        assert await page.seen(broken) == broken


def printed(text: str) -> Manifest:
    """Return an object as printed in the task, in the namespace of its `kubectl apply -n full`."""
    manifest: Manifest = yaml.safe_load(text)
    manifest["metadata"]["namespace"] = "full"
    return manifest
