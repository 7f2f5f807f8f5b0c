"""Send traces of changes to an OpenTelemetry collector (`--otlp-endpoint`)."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from xds.cli.options import fail
from xds.mesh.controlplane.controller import Controller
from xds.server.metrics import StreamMetrics

if TYPE_CHECKING:
    from xds.mesh.controlplane.tracing import ChangeTracer


def check_endpoint(endpoint: str) -> str:
    """Return the URL of a collector. Exit if it is invalid or if the packages for traces are missing."""
    if not endpoint.startswith(("http://", "https://")):
        fail(f"--otlp-endpoint {endpoint}: is not a URL such as http://collector:4318")
    if not _is_installed():
        fail("--otlp-endpoint requires the packages of OpenTelemetry: pip install 'xds-mesh[otel]'")
    return endpoint.rstrip("/")


def _is_installed() -> bool:
    packages = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    try:
        return all(find_spec(package) for package in packages)
    except ModuleNotFoundError:  # A parent is missing.
        return False


def change_tracer(endpoint: str, controller: Controller, streams: StreamMetrics) -> ChangeTracer:
    """Return a tracer that sends its traces to a collector, over HTTP, in a thread.

    The OTEL_* environment variables set everything but the URL, such as OTEL_EXPORTER_OTLP_HEADERS. When the
    process exits, the traces that are not sent yet are sent.

    Args:
        endpoint: URL of the collector, without the path.
        controller: the controller whose changes are traced.
        streams: the metrics of the server's streams.
    """
    # They take long to import, and are not installed by default.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from xds.mesh.controlplane.tracing import ChangeTracer  # noqa: PLC0415

    attributes = {SERVICE_VERSION: version("xds-mesh")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes[SERVICE_NAME] = "xds"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return ChangeTracer(controller, streams, provider.get_tracer("xds"))
