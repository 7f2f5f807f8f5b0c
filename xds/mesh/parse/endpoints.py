"""Parse EndpointSlices and Endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from xds.mesh.model.families import family_of
from xds.mesh.model.objects import EndpointAddress, EndpointGroup, EndpointPort, Endpoints, Fact, Meta, Ref
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP, unknown_service
from xds.mesh.parse.fail_closed import FailClosed
from xds.mesh.parse.ports import transport_protocol
from xds.mesh.parse.reading import Field, Log, shown

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


def endpoints(obj: Field, meta: Meta) -> Endpoints:
    """Parse an Endpoints object, which has the same name as its Service."""
    obj.mapping(f"{TOP} subsets")
    return Endpoints(meta=meta, service=meta.ref.name, groups=tuple(_groups(obj, meta.ref.namespace)))


def _groups(obj: Field, namespace: str) -> Iterator[EndpointGroup]:
    for subset in obj["subsets"].items():
        subset.mapping("addresses notReadyAddresses ports")
        addresses = [
            EndpointAddress(
                address=names.canonical(item["ip"].required().name(names.address)),
                ready=ready,
                pod=_target_pod(item["targetRef"], namespace),
                pod_uid=item["targetRef"]["uid"].text(),
                hostname=item["hostname"].name(names.label),
            )
            for key, ready in (("addresses", True), ("notReadyAddresses", False))
            for item in subset[key].items()
            if item.mapping("ip hostname nodeName targetRef")
        ]
        yield EndpointGroup(addresses=tuple(addresses), ports=tuple(_endpoint_ports(subset["ports"])))


def endpoint_slice(obj: Field, meta: Meta) -> Endpoints | None:
    """Parse an EndpointSlice; return None if it belongs to no Service or contains host names."""
    obj.mapping(f"{TOP} addressType endpoints ports")
    family = obj["addressType"].required().one_of("IPv4", "IPv6", "FQDN")
    if family == "FQDN":
        obj["addressType"].notice("FQDN is ignored", "endpoints need IP addresses")
        return None
    owner = meta.labels.get(SERVICE_NAME_LABEL, "")
    if not owner:
        obj["metadata"]["labels"].notice(
            "do not name the Service, so the object is ignored",
            f"add the label {SERVICE_NAME_LABEL}: NAME",
        )
        return None
    addresses = tuple(_slice_addresses(obj["endpoints"], meta.ref.namespace, family))
    group = EndpointGroup(addresses=addresses, ports=tuple(_endpoint_ports(obj["ports"])))
    return Endpoints(meta=meta, service=owner, groups=(group,))


def _slice_addresses(field: Field, namespace: str, family: str) -> Iterator[EndpointAddress]:
    for item in field.items():
        item.mapping("addresses conditions deprecatedTopology hints hostname nodeName targetRef zone")
        conditions = item["conditions"].mapping("ready serving terminating")
        ready = conditions["ready"].boolean()
        terminating = conditions["terminating"].boolean()
        listed = item["addresses"]
        if not listed.value:
            listed.refuse("is required")
        addresses = [_address(address, family) for address in listed.items()]
        if addresses and not terminating:
            target = item["targetRef"]
            # All addresses of an endpoint belong to one pod. Like Kubernetes, use the first address.
            yield EndpointAddress(
                address=addresses[0],
                ready=ready is not False,
                pod=_target_pod(target, namespace),
                pod_uid=target["uid"].text(),
                hostname=item["hostname"].name(names.label),
                zone=item["zone"].text(),
            )


def _address(field: Field, family: str) -> str:
    text = field.name(names.address)
    if not names.address(text) and family and f"IPv{family_of(text)}" != family:
        field.refuse(f"{shown(text)} is not an {family} address, as addressType requires")
    return names.canonical(text)


def _target_pod(field: Field, namespace: str) -> Ref | None:
    """Parse a targetRef; return None if it does not refer to a Pod."""
    field.mapping("apiVersion fieldPath kind name namespace resourceVersion uid")
    if field["kind"].text() != "Pod":
        return None
    return Ref("Pod", field["namespace"].text() or namespace, field["name"].required().text())


def _endpoint_ports(field: Field) -> Iterator[EndpointPort]:
    items = list(field.items())
    seen: set[str] = set()
    for item in items:
        item.mapping("name port protocol appProtocol")
        name = item["name"].name(names.label)
        if not name and len(items) > 1:
            item["name"].refuse("is required when there is more than one port")
        elif name in seen:
            item["name"].refuse(f"{shown(name)} is the name of two ports")
        seen.add(name)
        number = item["port"].required().port()
        if transport_protocol(item["protocol"]) == "TCP":
            yield EndpointPort(port=number, name=name)


def endpoints_fail_closed(meta: Meta, _: Fact | None, _log: Log) -> FailClosed | None:
    """Return the replacement of rejected endpoints: their Service, with unknown ports."""
    owner = meta.ref.name if meta.ref.kind == "Endpoints" else meta.labels.get(SERVICE_NAME_LABEL, "")
    return unknown_service(meta, owner) if owner else None
