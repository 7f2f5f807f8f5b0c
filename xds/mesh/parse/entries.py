"""Parse WorkloadEntries and ServiceEntries: workloads and services outside the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from xds.mesh.model.locality import LOCALITY_LABEL
from xds.mesh.model.objects import (
    CLUSTER_DOMAIN,
    TLS_MODE_LABEL,
    ContainerPort,
    EndpointAddress,
    EndpointGroup,
    EndpointPort,
    Endpoints,
    Interception,
    Meta,
    Pod,
    Ref,
    Service,
    ServiceEntry,
    ServicePort,
    entry_ref,
)
from xds.mesh.model.redirection import REDIRECT_ALL
from xds.mesh.parse import names
from xds.mesh.parse.core import TOP, intercepted
from xds.mesh.parse.destinationrule import export_to
from xds.mesh.parse.ports import protocol
from xds.mesh.parse.reading import Field, shown
from xds.mesh.parse.redirection import parse_redirection

_WORKLOAD = "address ports labels network locality weight serviceAccount"
_PROTOCOLS = (
    *("HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY", "TCP", "TLS"),
    *("MONGO", "MYSQL", "REDIS"),
)
_DNS = ("DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_TOP_LEVEL_WILDCARD = re.compile(r"\*\.[^.]+")
_STATIC_HINT = "use STATIC with the IP addresses as endpoints"


@dataclass(frozen=True, slots=True)
class _EntryFields:
    """The fields of a WorkloadEntry, or of an endpoint of a ServiceEntry."""

    address: str
    ports: Mapping[str, int]
    labels: Mapping[str, str]
    account: str

    def pod(self, meta: Meta) -> Pod:
        """Return the workload as a pod."""
        ports = (ContainerPort(port=number, name=name) for name, number in self.ports.items())
        return Pod(meta=meta, address=self.address, service_account=self.account, ports=tuple(ports))


def _workload(spec: Field, own_labels: Mapping[str, str]) -> _EntryFields:
    """Parse a workload. `own_labels` are labels of the object, which override those of the spec."""
    address = spec["address"].required().text()
    if error := names.address(address) if address else "":
        hint = "host names and Unix sockets are not supported"
        spec["address"].refuse(f"{shown(address)} {error}", hint)
    labels = {**names.labels(spec["labels"]), **own_labels}
    account = spec["serviceAccount"].name(names.subdomain)
    if account:
        # As in Istio, a workload with an identity has a sidecar, unless the label says otherwise.
        labels.setdefault(TLS_MODE_LABEL, "istio")
    if locality := spec["locality"].text():
        labels.setdefault(LOCALITY_LABEL, locality)
    for name in ("network", "weight"):
        if spec[name]:
            spec[name].notice("is ignored")
    ports: dict[str, int] = {}
    for name, number in spec["ports"].entries():
        if error := names.label(name):
            number.refuse(f"{shown(name)} {error}")
        ports[name] = number.required().port()
    return _EntryFields(names.canonical(address), ports, labels, account or "default")


def workload_entry(obj: Field, meta: Meta) -> Pod:
    """Parse a WorkloadEntry. It becomes a pod with the name `we/NAME`."""
    obj.mapping(f"{TOP} spec status")
    spec = obj["spec"].required().mapping(_WORKLOAD)
    workload = _workload(spec, meta.labels)
    pod = workload.pod(replace(meta, ref=entry_ref(meta.ref), labels=workload.labels))
    annotations = obj["metadata"]["annotations"]
    interception, app_address = intercepted(annotations, spec["address"], workload.address)
    return replace(
        pod,
        ready=not obj["metadata"]["deletionTimestamp"],
        interception=interception,
        app_address=app_address,
        redirection=REDIRECT_ALL
        if interception is Interception.NONE
        else parse_redirection(meta.annotations),
        is_entry=True,
    )


def service_entry(obj: Field, meta: Meta) -> ServiceEntry | None:
    """Parse a ServiceEntry; return None if it has no effect on this control plane."""
    obj.mapping(f"{TOP} spec status")
    spec = (
        obj["spec"]
        .required()
        .mapping(
            "hosts addresses ports location resolution endpoints workloadSelector exportTo subjectAltNames"
        )
    )
    hosts = [item.text() for item in spec["hosts"].required().items() if _is_host(item)]
    if spec["hosts"].value == []:
        spec["hosts"].refuse("is required")
    if len(hosts) != len(set(hosts)):
        spec["hosts"].refuse("lists a host twice")
    addresses = tuple(dict.fromkeys(filter(None, map(_address, spec["addresses"].items()))))
    external = spec["location"].one_of("MESH_EXTERNAL", "MESH_INTERNAL") != "MESH_INTERNAL"
    resolution = spec["resolution"].one_of("NONE", "STATIC", *_DNS) or "NONE"
    ports = tuple(_ports(spec["ports"], external=external))
    selector = workload_selector(spec["workloadSelector"])
    scopes = tuple(meta.ref.namespace if name == "." else name for name in export_to(spec["exportTo"]))
    if {*scopes} != {meta.ref.namespace} and _warn_of_wide_claims(spec):
        scopes = (meta.ref.namespace,)
    accounts = [item.required().text() for item in spec["subjectAltNames"].items()]
    groups = tuple(_groups(spec["endpoints"], meta, ports))
    if groups and selector:
        spec["endpoints"].refuse("cannot be combined with workloadSelector", "remove one of them")
    if resolution in _DNS:
        spec["resolution"].warn(f"{resolution} is not supported, so the object has no effect", _STATIC_HINT)
        return None
    if resolution == "NONE":
        if groups or selector:
            field = spec["endpoints" if groups else "workloadSelector"]
            field.refuse("requires resolution STATIC", "set resolution: STATIC")
        if not addresses:
            spec["addresses"].warn(
                "is empty, and resolution is NONE, so the object has no effect: connections pass through if "
                "outboundTrafficPolicy is ALLOW_ANY",
                "list the IP addresses",
            )
            return None
        # Clients connect to an endpoint itself.
        listed = tuple(EndpointAddress(address=address) for address in addresses)
        groups = (EndpointGroup(addresses=listed, ports=_endpoint_ports(ports, {})),)
        addresses = ()
    services = tuple(
        Service(
            meta=meta,
            entry_host=host,
            addresses=addresses,
            # Without an address of its own, the host resolves to its endpoints.
            headless=not addresses,
            ports=ports,
            selector=selector,
            service_accounts=tuple(accounts),
            export_to=scopes,
        )
        for host in hosts
    )
    endpoints = (
        ()
        if selector
        else tuple(Endpoints(meta=meta, service=service.name, groups=groups) for service in services)
    )
    return ServiceEntry(meta=meta, services=services, endpoints=endpoints) if services else None


def _is_host(field: Field) -> bool:
    """Whether a host is valid. Otherwise, add a problem."""
    host = field.required().name(names.host)
    if not host:
        return False
    if host.rpartition(".")[2].isdecimal():
        field.refuse(f"{shown(host)} is an IP address", "write a DNS name, and the IP address in addresses")
    elif host == "*" or "." not in host:
        field.refuse(f"{shown(host)} is not a full DNS name", "write a name with a dot, or *.DOMAIN")
    elif f".{host}".endswith((".svc", f".{CLUSTER_DOMAIN}")) or (
        host.startswith("*") and f".{CLUSTER_DOMAIN}".endswith(host[1:])
    ):
        field.refuse(
            f"{shown(host)} is, or includes, the name of a Service in the cluster",
            "use another name; a WorkloadEntry with the labels of a Service's selector becomes its endpoint",
        )
    return True


def _warn_of_wide_claims(spec: Field) -> bool:
    """Add a problem for each host and address that only clients of the own namespace may use.

    Otherwise, anyone who can write a ServiceEntry could attract the traffic of the whole mesh to them.
    """
    hosts = [item for item in spec["hosts"].items() if _TOP_LEVEL_WILDCARD.fullmatch(str(item.value))]
    endpoints = [item["address"] for item in spec["endpoints"].items()]
    addresses = [
        item
        for item in (*spec["addresses"].items(), *endpoints)
        if names.is_special(str(item.value).partition("/")[0])
    ]
    for item in (*hosts, *addresses):
        item.warn(
            f"{shown(item.value)} cannot be exported, so only clients in this namespace use the object",
            "write exportTo: ['.']",
        )
    return bool(hosts or addresses)


def _address(field: Field) -> str:
    address, slash, length = field.text().partition("/")
    if not slash or names.address(address):
        return names.canonical(field.name(names.address))
    if length != ("128" if ":" in address else "32"):
        what = f"{shown(field.value)} is a range of addresses, which is not supported"
        field.refuse(what, "list the addresses")
        return ""
    return names.canonical(address)


def workload_selector(field: Field) -> dict[str, str]:
    """Parse a workloadSelector, whose labels are in the field `labels`."""
    field.mapping("labels", strict=True)
    selector = names.labels(field["labels"], select=True)
    if field and not selector:
        field.refuse("selects no workload", "write the workloads' labels in labels")
    return selector


def _ports(field: Field, *, external: bool) -> Iterator[ServicePort]:
    seen: set[str | int] = set()
    for item in field.required().items():
        item.mapping("number name protocol targetPort")
        number = item["number"].required().port()
        name = item["name"].required().name(names.label)
        for key, value in (("number", number), ("name", name)):
            if value in seen:
                item[key].refuse(f"{value} is listed twice")
            seen.add(value)
        declared = item["protocol"].text()
        if declared.upper() == "UDP":
            item["protocol"].notice("UDP is ignored")
            continue
        if declared and declared.upper() not in _PROTOCOLS:
            item["protocol"].refuse(f"must be one of {', '.join(_PROTOCOLS)}, not {shown(declared)}")
        yield ServicePort(
            port=number,
            target=item["targetPort"].port() if item["targetPort"] else number,
            name=name,
            protocol=protocol(number, name, declared),
            target_by_name=True,
            external=external,
        )


def _endpoint_ports(ports: tuple[ServicePort, ...], own: Mapping[str, int]) -> tuple[EndpointPort, ...]:
    return tuple(EndpointPort(port=own.get(port.name) or int(port.target), name=port.name) for port in ports)


def _groups(field: Field, meta: Meta, ports: tuple[ServicePort, ...]) -> Iterator[EndpointGroup]:
    for index, item in enumerate(field.items()):
        workload = _workload(item.mapping(_WORKLOAD), {})
        ref = Ref("ServiceEntry", meta.ref.namespace, f"{meta.ref.name}/{index}")
        # It has no meta of its own: its identity is the ServiceEntry's namespace and its service account.
        pod = workload.pod(Meta(ref=ref, labels=workload.labels))
        for name in workload.ports:
            if all(name != port.name for port in ports):
                item["ports"][name].notice("is not the name of a port of the ServiceEntry")
        address = EndpointAddress(address=workload.address, workload=pod)
        yield EndpointGroup(addresses=(address,), ports=_endpoint_ports(ports, workload.ports))
