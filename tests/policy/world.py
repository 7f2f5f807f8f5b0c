"""Facts in one line each, so that tables read like tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zlib import crc32

from tests.support.predictions import predict
from xds.mesh.model.mesh import Endpoint, Mesh
from xds.mesh.model.objects import (
    TLS_MODE_LABEL,
    DestinationRule,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Fact,
    MeshConfig,
    Meta,
    Mode,
    ModePolicy,
    Pod,
    Protocol,
    Ref,
    Service,
    ServicePort,
    Sidecar,
    TargetSelector,
)
from xds.mesh.model.traffic import ClientTls, Subset, TlsMode, TrafficPolicy

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOT = "istio-system"


def meta(kind: str, namespace: str, name: str, *, age: float | None = None, **labels: str) -> Meta:
    """`age`: seconds before noon; None: without a creation time."""
    created = None if age is None else NOON - timedelta(seconds=age)
    return Meta(ref=Ref(kind, namespace, name), labels=labels, created=created)


_addresses: dict[tuple[str, str], str] = {}


def pod(name: str, namespace: str, *, sidecar: bool = True, **labels: str) -> Pod:
    number = len(_addresses) + 1
    address = _addresses.setdefault((namespace, name), f"10.1.{number // 250}.{number % 250 + 1}")
    if sidecar:
        labels[TLS_MODE_LABEL] = "istio"
    return Pod(
        meta=meta("Pod", namespace, name, **{"app": name, **labels}), address=address, service_account=name
    )


HTTP = ServicePort(port=80, target=8080, name="http", protocol=Protocol.HTTP)
TCP = ServicePort(port=90, target=9090, name="tcp", protocol=Protocol.TCP)


def service(
    name: str, namespace: str, *ports: ServicePort, age: float | None = None, **selector: str
) -> Service:
    number = crc32(f"{namespace}/{name}".encode())
    return Service(
        meta=meta("Service", namespace, name, age=age),
        addresses=(f"10.96.{number >> 8 & 255}.{number & 255}",),
        ports=ports or (HTTP, TCP),
        selector=selector or {"app": name},
    )


def slices(of: Service, *addresses: str | EndpointAddress, port: int = 8080, name: str = "http") -> Endpoints:
    """An EndpointSlice of a Service, with one port."""
    group = EndpointGroup(
        addresses=tuple(EndpointAddress(address=one) if isinstance(one, str) else one for one in addresses),
        ports=(EndpointPort(port=port, name=name),),
    )
    return Endpoints(
        meta=meta("EndpointSlice", of.namespace, f"{of.name}-1"), service=of.name, groups=(group,)
    )


def peer(
    namespace: str,
    mode: str | None,
    *,
    name: str = "default",
    age: float | None = None,
    ports: dict[int, str | None] | None = None,
    **selector: str,
) -> ModePolicy:
    return ModePolicy(
        meta=meta("PeerAuthentication", namespace, name, age=age),
        mode=Mode(mode) if mode else None,
        selector=selector,
        ports={port: Mode(value) if value else None for port, value in (ports or {}).items()},
    )


def sidecar(
    namespace: str,
    *hosts: str,
    name: str = "default",
    age: float | None = None,
    allow_any: bool | None = None,
    **selector: str,
) -> Sidecar:
    pairs = tuple((host.partition("/")[0], host.partition("/")[2]) for host in hosts)
    return Sidecar(
        meta=meta("Sidecar", namespace, name, age=age),
        hosts=pairs,
        selector=selector,
        allow_any_outbound=allow_any,
    )


def policy(
    namespace: str, mode: str, *targets: str | TargetSelector, name: str = "default", age: float | None = None
) -> ModePolicy:
    """An alpha Policy, or a MeshPolicy where there is no namespace."""
    return ModePolicy(
        meta=meta("Policy" if namespace else "MeshPolicy", namespace, name, age=age),
        mode=Mode(mode),
        targets=tuple(
            TargetSelector(service=target) if isinstance(target, str) else target for target in targets
        ),
    )


def tls(mode: str, **more) -> ClientTls:
    return ClientTls(mode=TlsMode(mode), **more)


def rule(
    namespace: str,
    host: str,
    mode: str | None = None,
    *,
    name: str = "rule",
    age: float | None = None,
    policy: TrafficPolicy | None = None,
    subsets: tuple[Subset, ...] = (),
    export_to: tuple[str, ...] = (),
    selector: dict[str, str] | None = None,
) -> DestinationRule:
    return DestinationRule(
        meta=meta("DestinationRule", namespace, name, age=age),
        host=host,
        policy=TrafficPolicy(tls=tls(mode)) if mode else policy,
        subsets=subsets,
        export_to=export_to,
        selector=selector,
    )


def mesh(*facts: Fact, **config) -> Mesh:
    return Mesh(facts, MeshConfig(**config))


def only_endpoint(world: Mesh, namespace: str, name: str) -> Endpoint:
    found = world.service(namespace, name)
    assert found
    (endpoint,) = world.endpoints(found, found.ports[0])
    return endpoint


def reach(world: Mesh) -> dict[tuple[str, str], str]:
    """(`CLIENT.NS`, `SERVICE.NS:PORT`) -> result; all endpoints of a service must agree."""
    found: dict[tuple[str, str], str] = {}
    for outcome in predict(world):
        client = f"{outcome.client.name}.{outcome.client.namespace}"
        target = f"{outcome.service.name}.{outcome.service.namespace}:{outcome.port.port}"
        result = str(outcome.result)
        assert found.setdefault((client, target), result) == result
    return found
