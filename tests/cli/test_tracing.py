"""`xds serve --otlp-endpoint`: traces reach a collector."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.cli.commands import write_folder, xds
from tests.cli.serve_process import POD, TIMEOUT, serving


class Collector:
    """An HTTP server that receives traces."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def test_traces_reach_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    folder = write_folder(tmp_path, pod=POD.format("web"))
    with collecting() as collector, serving(folder, "--otlp-endpoint", collector.url) as process:
        (folder / "more.yaml").write_text(POD.format("more"))
        process.wait_for(lambda: process.logged("applied=1"))
        process.wait_for(lambda: any(_objects(span) == ["Pod shop/more"] for span in collector.spans))
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(TIMEOUT) == 0
        assert {path for path, _ in collector.requests} == {"/v1/traces"}
        [resource] = {
            tuple((each.key, each.value.string_value) for each in item.resource.attributes)
            for _, request in collector.requests
            for item in request.resource_spans
        }
        assert ("service.name", "xds") in resource


def _objects(span: Any) -> list[str]:
    values = [each.value for each in span.attributes if each.key == "xds.objects"]
    return [item.string_value for value in values for item in value.array_value.values]


def test_invalid_collectors_are_refused(tmp_path: Path) -> None:
    result = xds("serve", "--manifests", str(tmp_path), "--otlp-endpoint", "collector:4318")
    assert result.exit_code == 2
    assert "--otlp-endpoint collector:4318: is not a URL such as http://collector:4318" in result.stderr


@pytest.mark.parametrize("package", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp"])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = xds("serve", "--manifests", str(tmp_path), "--otlp-endpoint", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "pip install 'xds-mesh[otel]'" in result.stderr
