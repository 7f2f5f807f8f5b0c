"""Parse objects that prove calls from outside the mesh: webhooks, ingresses, routes and monitors.

Only the fields that name what is called are read. A value that the API server would reject is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypedDict
from urllib.parse import urlsplit

from xds.mesh.model.objects import CLUSTER_DOMAIN, Call, CallerFact, Meta, OutsideTraffic, Requirement
from xds.mesh.parse.reading import Field

_MAX_ENDPOINTS = 32
"""Maximum number of endpoints of a monitor that are considered."""


class _UsedSpec(TypedDict, total=False):
    conversion: Any


class UsedDefinition(TypedDict, total=False):
    """The fields of a CustomResourceDefinition that are read. The schema is most of its size."""

    metadata: Any
    spec: _UsedSpec


_WEBHOOK_PORT = 443
"""Default port of the Service of a webhook and of an aggregated API."""

_AUTH_URL = "nginx.ingress.kubernetes.io/auth-url"
"""Annotation: the URL that the ingress controller calls to authenticate requests."""


def webhooks(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse a ValidatingWebhookConfiguration or MutatingWebhookConfiguration."""
    hooks = _items(obj.value, "webhooks")
    configs = (_at(hook, "clientConfig") for hook in hooks)
    return _caller(meta, OutsideTraffic.API_SERVER, map(_of_api_server, configs))


def api_service(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse an APIService."""
    return _caller(meta, OutsideTraffic.API_SERVER, [_of_api_server(_at(obj.value, "spec"))])


def custom_resource_definition(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse the conversion webhook of a CustomResourceDefinition."""
    conversion = _at(obj.value, "spec", "conversion")
    config = _at(conversion, "webhook", "clientConfig") or _at(conversion, "webhookClientConfig")
    return _caller(meta, OutsideTraffic.API_SERVER, [_of_api_server(config)])


def ingress(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse an Ingress."""
    spec = _at(obj.value, "spec")
    backends = [_at(spec, "defaultBackend"), _at(spec, "backend")]
    for rule in _items(spec, "rules"):
        backends += (_at(path, "backend") for path in _items(rule, "http", "paths"))
    calls = [_of_backend(meta, backend) for backend in backends]
    return _caller(meta, OutsideTraffic.GATEWAY, [*calls, _of_url(meta.annotations.get(_AUTH_URL))])


def route(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse a route of the Gateway API. A route whose parents are Services applies inside the mesh."""
    spec = _at(obj.value, "spec")
    parents = _items(spec, "parentRefs")
    is_for_mesh = bool(parents) and all(_at(parent, "kind") == "Service" for parent in parents)
    backends = (
        backend
        for rule in (() if is_for_mesh else _items(spec, "rules"))
        for backend in _backends(rule)
        if _at(backend, "kind") in (None, "Service")
    )
    calls = (
        _call(
            _at(backend, "name"), _at(backend, "namespace") or meta.ref.namespace, port=_at(backend, "port")
        )
        for backend in backends
    )
    return _caller(meta, OutsideTraffic.GATEWAY, calls)


def _backends(rule: Any) -> Iterator[Any]:
    """Yield the backends of a route's rule, and those to which its filters mirror requests."""
    backends = _items(rule, "backendRefs")
    yield from backends
    for part in (rule, *backends):
        yield from (_at(item, "requestMirror", "backendRef") for item in _items(part, "filters"))


def virtual_service(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse a VirtualService of Istio. It concerns clients outside the mesh if it names a gateway.

    Without hosts, it is the delegate of another VirtualService, which may name a gateway.
    """
    spec = _at(obj.value, "spec")
    if _items(spec, "hosts") and all(gateway == "mesh" for gateway in _items(spec, "gateways")):
        return None
    calls = []
    for destination in _destinations(spec):
        host = _at(destination, "host")
        service, _, rest = host.partition(".") if isinstance(host, str) else ("", "", "")
        namespace = rest.partition(".")[0] or meta.ref.namespace
        calls.append(_call(service, namespace, port=_at(destination, "port", "number")))
    return _caller(meta, OutsideTraffic.GATEWAY, calls)


def _destinations(spec: Any) -> Iterator[Any]:
    """Yield the destinations of a VirtualService, and those to which it mirrors requests."""
    for rule in (rule for protocol in ("http", "tls", "tcp") for rule in _items(spec, protocol)):
        routes = (*_items(rule, "route"), *_items(rule, "mirrors"))
        yield from (_at(route, "destination") for route in routes)
        yield _at(rule, "mirror")


def service_monitor(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse a ServiceMonitor of the Prometheus operator."""
    return _monitor(obj, meta, "endpoints", selects_pods=False)


def pod_monitor(obj: Field, meta: Meta) -> CallerFact | None:
    """Parse a PodMonitor of the Prometheus operator."""
    return _monitor(obj, meta, "podMetricsEndpoints", selects_pods=True)


def _monitor(obj: Field, meta: Meta, endpoints: str, *, selects_pods: bool) -> CallerFact | None:
    spec = _at(obj.value, "spec")
    selects_all = _at(spec, "namespaceSelector", "any") is True
    namespaces = _texts(_items(spec, "namespaceSelector", "matchNames")) or (meta.ref.namespace,)
    make = partial(
        Call,
        namespaces=() if selects_all else namespaces,
        selector=tuple(_requirements(_at(spec, "selector"))),
        selects_pods=selects_pods,
    )
    calls = (
        make(
            port=_port(_at(endpoint, "port")),
            target=_port(_at(endpoint, "portNumber")) or _port(_at(endpoint, "targetPort")),
            has_certificate=_may_be_mesh_tls(spec, endpoint),
        )
        for endpoint in _items(spec, endpoints)[:_MAX_ENDPOINTS]
    )
    return _caller(meta, OutsideTraffic.PROMETHEUS_SCRAPE, calls)


def _may_be_mesh_tls(spec: Any, endpoint: Any) -> bool:
    """Whether a scrape uses a client certificate that may be the mesh's. A scrape class can set it as well.

    Prometheus must not verify the server's host name: certificates of the mesh have none.
    """
    if _at(endpoint, "scheme") not in ("https", "HTTPS"):
        return False
    tls = _at(endpoint, "tlsConfig")
    has_certificate = bool(_at(tls, "certFile") or _at(tls, "cert"))
    return (has_certificate and _at(tls, "insecureSkipVerify") is True) or bool(_at(spec, "scrapeClass"))


def _requirements(selector: Any) -> Iterator[Requirement]:
    labels = _at(selector, "matchLabels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(key, str) and isinstance(value, str):
            yield Requirement(key, "In", (value,))
    for item in _items(selector, "matchExpressions"):
        key, operator = _at(item, "key"), _at(item, "operator")
        if isinstance(key, str) and isinstance(operator, str):
            yield Requirement(key, operator, _texts(_items(item, "values")))


def _of_api_server(config: Any) -> Call | None:
    """Return the call that a clientConfig, or the spec of an APIService, makes the API server send."""
    if service := _at(config, "service"):
        port = _at(service, "port")
        return _call(_at(service, "name"), _at(service, "namespace"), port=port or _WEBHOOK_PORT)
    return _of_url(_at(config, "url"))


def _of_url(url: Any) -> Call | None:
    """Return the call of a URL, if its host is that of a Service."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        return of_host(parts.hostname, port=parts.port or (80 if parts.scheme == "http" else 443))
    except ValueError:
        return None


def of_host(host: Any, *, port: int | None = None) -> Call | None:
    """Return a call to the Service with a host, such as `web.shop.svc`; None for other hosts.

    Args:
        host: the host, with or without the cluster's domain.
        port: port of the Service; None for all.
    """
    name = host if isinstance(host, str) else ""
    labels = name.removesuffix(".").removesuffix(f".{CLUSTER_DOMAIN}").split(".")
    return _call(labels[0], labels[1], port=port) if len(labels) == 3 and labels[2] == "svc" else None


def _of_backend(meta: Meta, backend: Any) -> Call | None:
    """Return the call of an Ingress's backend, in its current form or in that of v1beta1."""
    if service := _at(backend, "service"):
        port = _at(service, "port", "number") or _at(service, "port", "name")
        return _call(_at(service, "name"), meta.ref.namespace, port=port)
    port = _at(backend, "servicePort")
    return _call(_at(backend, "serviceName"), meta.ref.namespace, port=port)


def _call(service: Any, namespace: Any, *, port: Any) -> Call | None:
    """Return a call to a Service; None if it is not named."""
    if not (isinstance(service, str) and service and isinstance(namespace, str)):
        return None
    return Call(namespaces=(namespace,), service=service, port=_port(port))


def _port(value: Any) -> int | str | None:
    """Return a port's number or name. Without one, or with an invalid number, every port may be called."""
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        return value or None
    number = int(value[:6]) if isinstance(value, str) else value
    return number if type(number) is int and 0 < number < 65536 else None


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _caller(meta: Meta, traffic: OutsideTraffic, calls: Iterable[Call | None]) -> CallerFact | None:
    """Return the fact; None if the object calls nothing."""
    distinct = tuple(dict.fromkeys(filter(None, calls)))
    return CallerFact(meta=meta, traffic=traffic, calls=distinct) if distinct else None


def _at(value: Any, *names: str) -> Any:
    """Return a value below nested mappings; None if there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _items(value: Any, *names: str) -> list[Any]:
    """Return a list below nested mappings; empty if there is none."""
    found = _at(value, *names)
    return found if isinstance(found, list) else []
