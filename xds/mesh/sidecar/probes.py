"""Parser for the application's probes and metrics, which injection moved to the sidecar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from xds.mesh.envoy.probes import AnyProbe, GrpcProbe, HttpProbe, TcpProbe
from xds.mesh.envoy.scrape import AppMetrics
from xds.mesh.model.objects import ADMIN_PORT, Problem
from xds.mesh.parse.reading import Field, Log
from xds.mesh.sidecar.settings import APP_METRICS, APP_PROBES, Variable

_HEADER_NAME = re.compile(r"[-A-Za-z0-9]+")
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_HOOK_PREFIX = "/app-lifecycle/"
"""Path prefix of lifecycle hooks, which have no timeout of their own in Kubernetes."""


def read(text: str) -> tuple[tuple[AnyProbe, ...], list[Problem]]:
    """Return the probes in `XDS_APP_PROBES`, and the problems."""
    field = _parse(APP_PROBES, text or "{}")
    return tuple(_read_all(field)), field.log.problems


def read_metrics(text: str) -> tuple[AppMetrics | None, list[Problem]]:
    """Return the metrics in `XDS_APP_METRICS`, None if it is empty, and the problems."""
    if not text:
        return None, []
    field = _parse(APP_METRICS, text).mapping()
    if field.log.problems:
        return None, field.log.problems
    metrics = AppMetrics(
        port=field["port"].required().port(),
        target=field["path"].text("/metrics"),
        https=_is_https(field["scheme"]),
    )
    if metrics.port == ADMIN_PORT:
        field["port"].refuse("is the port of Envoy's admin interface, which must not be published")
    return metrics, field.log.problems


def _parse(variable: Variable, text: str) -> Field:
    """Return the JSON value of a variable; an empty mapping with a problem if it is not JSON."""
    log = Log(lambda _: variable.name)
    try:
        return Field(json.loads(text), (), log)
    except json.JSONDecodeError as error:
        log.add((), f"is not JSON: {error}")
        return Field({}, (), log)


def _is_https(field: Field) -> bool:
    scheme = field.text("HTTP").upper()
    if scheme not in ("HTTP", "HTTPS"):
        field.refuse(f"must be HTTP or HTTPS, not {scheme}")
    return scheme == "HTTPS"


def _read_all(field: Field) -> Iterator[AnyProbe]:
    for path, probe in field.entries():
        if not path.startswith("/"):
            probe.refuse("must be a path", f"write /{path}")
            continue
        yield from _probe(path, probe.mapping())


def _probe(path: str, probe: Field) -> Iterator[AnyProbe]:
    handlers = [name for name in _HANDLERS if probe[name]]
    if len(handlers) != 1:
        probe.refuse(f"must have exactly one of {', '.join(_HANDLERS)}")
        return
    handler = probe[handlers[0]].mapping()
    port = handler["port"].required().port()
    host = handler["host"].text()
    timeout = probe["timeoutSeconds"].integer(1) or (0 if path.startswith(_HOOK_PREFIX) else 1)
    period = probe["periodSeconds"].integer(1) or 10
    if handlers[0] == "httpGet":
        yield HttpProbe(
            path=path,
            port=port,
            host=host,
            timeout=timeout,
            target=handler["path"].text("/"),
            https=_is_https(handler["scheme"]),
            headers=tuple(_header(header) for header in handler["httpHeaders"].items()),
        )
    elif handlers[0] == "tcpSocket":
        yield TcpProbe(path=path, port=port, host=host, timeout=timeout, period=period)
    else:
        service = handler["service"].text()
        yield GrpcProbe(path=path, port=port, timeout=timeout, period=period, service=service)


def _header(header: Field) -> tuple[str, str]:
    """Return a header. An invalid header would prevent Envoy from starting."""
    name, value = header["name"].required().text(), header["value"].text()
    if name and not _HEADER_NAME.fullmatch(name):
        header["name"].refuse("must contain only letters, digits and -", "Kubernetes requires the same")
    if not value.isprintable():
        header["value"].refuse("has characters that are not allowed in a header")
    return name, value
