"""Scrapes of a pod under STRICT: Prometheus scrapes the sidecar, which adds the application's metrics."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
from collections import Counter

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.sidecar.apps import PATH, SUCCESS, Exporter
from tests.sidecar.pods import ProxyMesh
from tests.support.clients import Client
from tests.support.cluster import Cluster
from tests.support.manifests import peer_authentication
from tests.support.prometheus import Prometheus, requires_prometheus
from tests.support.waiting import eventually

pytestmark = [pytest.mark.netns, pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

PORT = 8080
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
HOOK_KEY = "0a91f7d8c34e"
READINESS = {
    "/app-health/web/readyz": {"httpGet": {"path": "/healthz", "port": PORT}, "timeoutSeconds": 10},
    f"/app-lifecycle/web/prestopz/{HOOK_KEY}": {"httpGet": {"path": "/quit", "port": PORT}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A pod under STRICT whose application does not run yet."""
    with Cluster() as cluster:
        async with ProxyMesh(cluster, tmp_path_factory.mktemp("mesh")) as mesh:
            pod = mesh.pod("web", "strict")
            mesh.service("web", "strict", {"http": (80, PORT)})
            mesh.apply(peer_authentication("strict", "STRICT"))
            mesh.probes[pod.address] = READINESS
            mesh.metrics[pod.address] = {"port": PORT, "path": "/metrics?name=a b", "scheme": "http"}
            await mesh.start()
            yield mesh


@pytest.fixture
def pod(mesh):
    return mesh["web.strict"]


@pytest.fixture
def scrape(mesh, pod):
    """Scrape as Prometheus does: from outside the mesh, in plaintext, at the pod's address."""

    async def ask(accept: str = "text/plain", *, seconds: str = "30", path: str = PATH):
        headers = {
            "accept": accept,
            "accept-encoding": "gzip",
            "user-agent": "Prometheus/3.0",
            "x-prometheus-scrape-timeout-seconds": seconds,
        }
        return await Client(mesh.cluster.node).get(
            f"http://{pod.address}:15020{path}", headers=headers, timeout=60
        )

    return ask


def families(text: str) -> Counter[str]:
    """Return how often the text declares each metric."""
    return Counter(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def value(text: str, name: str) -> str:
    (found,) = re.findall(rf"^{name}(?:{{}})? (\S+)$", text, re.MULTILINE)
    return found


class TestFormats:
    async def test_text_has_both_metrics_once(self, scrape, pod):
        app = Exporter()
        app.sales.inc(7)
        async with app.at(pod.place, PORT):
            answer = await scrape()

        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert (value(answer.text, SUCCESS), value(answer.text, "sales_total")) == ("1", "7.0")
        assert value(answer.text, "envoy_server_live") == "1"
        assert set(families(answer.text).values()) == {1}
        samples = {
            sample.name for each in text_string_to_metric_families(answer.text) for sample in each.samples
        }
        assert {"envoy_server_live", "sales_total", SUCCESS} <= samples

    async def test_key_of_a_hook_is_not_shown(self, scrape):
        text = (await scrape()).text
        assert 'envoy_cluster_name="probe|/app-lifecycle/web/prestopz"' in text
        assert HOOK_KEY not in text

    async def test_openmetrics_keeps_its_type_and_ends_with_eof(self, scrape, pod):
        app = Exporter()
        app.sales.inc(3, exemplar={"trace": "1"})
        async with app.at(pod.place, PORT):
            answer = await scrape(f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5")

        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert 'sales_total 3.0 # {trace="1"}' in answer.text
        assert value(answer.text, "envoy_server_live") == "1"
        assert "\n\n" not in answer.text
        assert answer.text.endswith("\n# EOF\n")
        assert answer.text.count("# EOF") == 1

    async def test_application_receives_the_scrape(self, scrape, pod):
        app = Exporter()
        async with app.at(pod.place, PORT):
            await scrape(f"{PROTOBUF},{OPENMETRICS};q=0.6,text/plain;q=0.5", seconds="30")
            await scrape(PROTOBUF)

        first, second = app.requests
        assert first.path_qs == "/metrics?name=a%20b"
        assert first.headers["Host"] == f"{pod.address}:{PORT}"
        assert first.headers["User-Agent"] == "Prometheus/3.0"
        assert first.headers["Accept"] == f"{OPENMETRICS};q=0.6,text/plain;q=0.5"
        assert float(first.headers["X-Prometheus-Scrape-Timeout-Seconds"]) == 27
        assert "Accept-Encoding" not in first.headers
        assert second.headers["Accept"] == "text/plain;version=0.0.4"


class TestFailures:
    async def lacks_only_the_application(self, answer, reason: str) -> None:
        assert answer.code == "200"
        assert answer.headers["content-type"] == "text/plain; version=0.0.4"
        assert (value(answer.text, "envoy_server_live"), value(answer.text, SUCCESS)) == ("1", "0")
        assert answer.text.endswith(f"# Not merged: {reason}\n")
        list(text_string_to_metric_families(answer.text))

    async def test_application_does_not_run(self, scrape):
        await self.lacks_only_the_application(await scrape(), "status 503")

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ({"status": 500, "text": "a 1\n"}, "status 500"),
            ({"status": 302, "headers": {"location": "/"}}, "status 302"),
            ({"text": "<html>", "content_type": "text/html"}, "content-type"),
            ({"body": b"\x01", "headers": {"content-type": PROTOBUF}}, "content-type"),
            (
                {"body": gzip.compress(b"a 1\n"), "headers": {"content-encoding": "gzip"}},
                "content-encoding",
            ),
            ({"body": b"a 1\n", "headers": {"content-type": OPENMETRICS}}, "no # EOF"),
            ({"body": b"a 1\n" * 10_000_000, "content_type": "text/plain"}, "status 503"),
        ],
        ids=["500", "302", "html", "protobuf", "gzip", "truncated", "too-large"],
    )
    async def test_answer_that_cannot_be_merged(self, scrape, pod, answer, reason):
        async with Exporter(**answer).at(pod.place, PORT):
            await self.lacks_only_the_application(await scrape(OPENMETRICS), reason)

    async def test_application_hangs(self, scrape, pod):
        listener = pod.place.listener("0.0.0.0", PORT)
        try:
            answer = await scrape(seconds="1")
        finally:
            listener.close()
        await self.lacks_only_the_application(answer, "status 504")

    async def test_scrapes_are_limited(self, scrape, pod):
        listener = pod.place.listener("0.0.0.0", PORT)
        try:
            scrapes = [asyncio.create_task(scrape(seconds="60")) for _ in range(12)]
            # The application answers none before all have come.
            await eventually(lambda: sum(each.done() for each in scrapes) >= 8, what="some are refused")
        finally:
            listener.close()
        answers = await asyncio.gather(*scrapes)
        assert Counter(answer.code for answer in answers) == {"200": 4, "503": 8}

    async def test_clients_that_do_not_read_are_limited(self, mesh, scrape, pod):
        loop, app = asyncio.get_running_loop(), Exporter(body=b"a 1\n" * 7_500_000, content_type="text/plain")
        async with app.at(pod.place, PORT), contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(await Client(mesh.cluster.node).connect(pod.address, 15020))
                await loop.sock_sendall(client, f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await loop.sock_recv(client, 1)
            assert (await scrape()).code == "503"

        async def is_served() -> bool:
            return (await scrape()).ok

        await eventually(is_served, timeout=60, what="the clients have disconnected")

    async def test_other_paths_are_not_served(self, scrape, pod):
        app = Exporter(text="ready")
        async with app.at(pod.place, PORT):
            assert (await scrape(path="/app-health/web/readyz")).text == "ready"
            for path in ("/metrics", "/stats", "/stats/prometheus/", "/config_dump", "/"):
                assert (await scrape(path=path)).code == "404"
        assert [request.path for request in app.requests] == ["/healthz"]


@requires_prometheus
class TestPrometheus:
    async def test_prometheus_scrapes_a_strict_pod(self, mesh, pod, tmp_path):
        app = Exporter()
        app.sales.inc(5, exemplar={"trace": "1"})
        merged = [f"{pod.address}:15020"]
        jobs = [
            {"job_name": "merged", "metrics_path": PATH, "static_configs": [{"targets": merged}]},
            {"job_name": "direct", "static_configs": [{"targets": [f"{pod.address}:{PORT}"]}]},
        ]
        async with Prometheus(jobs, tmp_path, place=mesh.cluster.node) as prometheus:
            async with app.at(pod.place, PORT):
                await prometheus.becomes("up", merged=1, direct=0)
                await prometheus.becomes("sales_total", merged=5)
                await prometheus.becomes("envoy_server_live", merged=1)
                assert "openmetrics" in app.requests[-1].headers["Accept"]
                app.sales.inc()
                await prometheus.becomes("sales_total", merged=6)

                async def has_no_error() -> bool:
                    errors = {each["scrapePool"]: each["lastError"] for each in await prometheus.targets()}
                    return not errors["merged"]

                # A slow machine may miss the time limit of a scrape.
                await eventually(has_no_error)
            await prometheus.becomes(SUCCESS, merged=0)
            await prometheus.becomes("up", merged=1, direct=0)
            await prometheus.becomes("envoy_server_live", merged=1)
