"""Parser for the application's probes, which injection moved to the sidecar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from xds.mesh.envoy.probes import AnyProbe, GrpcProbe, HttpProbe, TcpProbe
from xds.mesh.model.objects import Problem
from xds.mesh.parse.reading import Field, Log
from xds.mesh.sidecar.settings import APP_PROBES

_HEADER_NAME = re.compile(r"[-A-Za-z0-9]+")
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_HOOK_PREFIX = "/app-lifecycle/"
"""Path prefix of lifecycle hooks, which have no timeout of their own in Kubernetes."""


def read(text: str) -> tuple[tuple[AnyProbe, ...], list[Problem]]:
    """Return the probes in `XDS_APP_PROBES`, and the problems."""
    log = Log(lambda _: APP_PROBES.name)
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        log.add((), f"is not JSON: {error}")
        return (), log.problems
    return tuple(_read_all(Field(value, (), log))), log.problems


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
        scheme = handler["scheme"].text("HTTP").upper()
        if scheme not in ("HTTP", "HTTPS"):
            handler["scheme"].refuse(f"must be HTTP or HTTPS, not {scheme}")
        yield HttpProbe(
            path=path,
            port=port,
            host=host,
            timeout=timeout,
            target=handler["path"].text("/"),
            https=scheme == "HTTPS",
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
