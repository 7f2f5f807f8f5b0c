"""Parse core kinds of Kubernetes: Namespace, ServiceAccount, Service and Pod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

from xds.mesh.model.families import Family, family_of
from xds.mesh.model.objects import (
    APP_ADDRESS,
    INTERCEPTION_MODE,
    CallerFact,
    ContainerPort,
    Fact,
    Interception,
    Meta,
    Namespace,
    OutsideTraffic,
    Pod,
    Service,
    ServiceAccount,
    ServicePort,
    UnknownService,
)
from xds.mesh.model.redirection import REDIRECT_ALL
from xds.mesh.parse import names
from xds.mesh.parse.callers import of_host
from xds.mesh.parse.fail_closed import FailClosed
from xds.mesh.parse.ports import protocol, transport_protocol
from xds.mesh.parse.reading import Field, Log, shown
from xds.mesh.parse.redirection import parse_redirection

TOP = "apiVersion kind metadata"
CANONICAL_ACCOUNTS = "alpha.istio.io/canonical-serviceaccounts"
KUBERNETES_ACCOUNTS = "alpha.istio.io/kubernetes-serviceaccounts"
EXPORT_TO = "networking.istio.io/exportTo"
POD_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


class _UsedMetadata(TypedDict, total=False):
    name: Any
    namespace: Any
    labels: Any
    annotations: Any
    creationTimestamp: Any
    deletionTimestamp: Any
    resourceVersion: Any
    uid: Any


class _UsedSpec(TypedDict, total=False):
    containers: Any
    hostNetwork: Any
    initContainers: Any
    hostname: Any
    subdomain: Any
    serviceAccount: Any
    serviceAccountName: Any


class _UsedStatus(TypedDict, total=False):
    conditions: Any
    phase: Any
    podIP: Any
    podIPs: Any


class UsedPod(TypedDict, total=False):
    """The fields of a Pod that affect its fact. The others are most of its size."""

    metadata: _UsedMetadata
    spec: _UsedSpec
    status: _UsedStatus


_PUBLISHED = ("NodePort", "LoadBalancer")


_FAMILIES: dict[str, Family] = {"IPv4": 4, "IPv6": 6}


def namespace(obj: Field, meta: Meta) -> Namespace:
    """Parse a Namespace."""
    obj.mapping(f"{TOP} spec status")
    return Namespace(meta=meta)


def service_account(obj: Field, meta: Meta) -> ServiceAccount:
    """Parse a ServiceAccount."""
    obj.mapping(f"{TOP} secrets imagePullSecrets automountServiceAccountToken")
    return ServiceAccount(meta=meta)


def service(obj: Field, meta: Meta) -> Service | CallerFact | None:
    """Parse a Service. One of type ExternalName is ignored, unless its name stands for another Service."""
    obj.mapping(f"{TOP} spec status")
    spec = obj["spec"].mapping(
        "allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName "
        "externalTrafficPolicy healthCheckNodePort internalTrafficPolicy ipFamilies "
        "ipFamilyPolicy loadBalancerClass loadBalancerIP loadBalancerSourceRanges ports "
        "publishNotReadyAddresses selector sessionAffinity sessionAffinityConfig "
        "trafficDistribution type"
    )
    if spec["type"].one_of("ClusterIP", *_PUBLISHED, "ExternalName") == "ExternalName":
        call = of_host(spec["externalName"].value)
        hint = "call the Service itself instead, so that sidecars use mutual TLS"
        hint = hint if call else "external names are not part of the mesh"
        spec["type"].notice("ExternalName is ignored", hint)
        return CallerFact(meta=meta, traffic=OutsideTraffic.EXTERNAL_NAME, calls=(call,)) if call else None
    if spec["trafficDistribution"]:
        spec["trafficDistribution"].notice("is ignored", "use a DestinationRule with outlierDetection")
    if spec["internalTrafficPolicy"].value == "Local":
        hint = (
            "to let kube-proxy apply it, in plaintext, list the clusterIP in "
            "traffic.sidecar.istio.io/excludeOutboundIPRanges of the clients"
        )
        spec["internalTrafficPolicy"].notice("is ignored: sidecars use endpoints on all nodes", hint)
    if spec["sessionAffinity"].value == "ClientIP":
        hint = "use a DestinationRule with loadBalancer.consistentHash.useSourceIp"
        spec["sessionAffinity"].notice("is ignored", hint)
    addresses, headless = _cluster_ips(spec)
    versions = [item.one_of(*_FAMILIES) for item in spec["ipFamilies"].items()]
    families = [_FAMILIES[version] for version in versions if version] or map(family_of, addresses)
    ports = tuple(_service_ports(spec))
    if not headless and not spec["ports"].value:
        spec["ports"].refuse("is required", "only a headless Service (clusterIP: None) may have none")
    elif spec["ports"].value and not ports:
        spec["ports"].notice("has no TCP port, and other protocols are ignored")
    if meta.annotations.get(KUBERNETES_ACCOUNTS):
        annotation = obj["metadata"]["annotations"][KUBERNETES_ACCOUNTS]
        annotation.notice("is ignored", f"list full SPIFFE IDs in {CANONICAL_ACCOUNTS}")
    accounts = meta.annotations.get(CANONICAL_ACCOUNTS, "").split(",")
    return Service(
        meta=meta,
        addresses=addresses,
        headless=headless,
        families=tuple(dict.fromkeys(families)),
        ports=ports,
        selector=_service_selector(spec["selector"]),
        publish_not_ready=spec["publishNotReadyAddresses"].boolean() or False,
        published=spec["type"].value in _PUBLISHED or bool(spec["externalIPs"].value),
        service_accounts=tuple(account.strip() for account in accounts if account.strip()),
        export_to=_export_to(obj["metadata"]["annotations"][EXPORT_TO], meta),
    )


def _export_to(annotation: Field, meta: Meta) -> tuple[str, ...]:
    """Parse the annotation that says which namespaces see a Service.

    With a mistake, all of them do: other clients would pass connections through in plaintext.
    """
    parts = (part.strip() for part in meta.annotations.get(EXPORT_TO, "").split(","))
    scopes = tuple(dict.fromkeys(filter(None, parts)))
    for scope in scopes:
        if scope not in ("*", ".", "~") and (error := names.label(scope)):
            what = f"{shown(scope)} {error}, so the Service is visible to all namespaces"
            annotation.warn(what, "write namespaces, '.' (its own), '*' (all) or '~' (none), with commas")
            return ("*",)
    for scope in ("*", "~"):
        if scope in scopes:
            return (scope,)
    return tuple(meta.ref.namespace if scope == "." else scope for scope in scopes)


def _service_selector(field: Field) -> dict[str, str]:
    for name in ("matchLabels", "matchExpressions"):
        if field[name]:
            field[name].refuse("is not supported in a Service", "write the labels directly below selector")
            return {}
    return names.labels(field)


def _cluster_ips(spec: Field) -> tuple[tuple[str, ...], bool]:
    """Return the clusterIPs, and whether the Service is headless."""
    cluster_ip = spec["clusterIP"].text()
    cluster_ips = [item.text() for item in spec["clusterIPs"].items()]
    if cluster_ip and cluster_ips and cluster_ips[0] != cluster_ip:
        spec["clusterIPs"].refuse(f"must begin with the clusterIP {cluster_ip}")
    addresses = tuple(dict.fromkeys(text for text in (cluster_ip, *cluster_ips) if text))
    if addresses == ("None",):
        return (), True
    for text in addresses:
        if error := names.address(text):
            field = spec["clusterIP" if text == cluster_ip else "clusterIPs"]
            field.refuse(
                f"{shown(text)} {error}",
                "write None for a headless Service" if text.lower() == "none" else "",
            )
    return tuple(dict.fromkeys(map(names.canonical, addresses))), False


def _service_ports(spec: Field) -> Iterator[ServicePort]:
    items = list(spec["ports"].items())
    seen_names: set[str] = set()
    seen_ports: set[tuple[int, str]] = set()
    for item in items:
        item.mapping("name port protocol targetPort appProtocol nodePort")
        number = item["port"].required().port()
        transport = transport_protocol(item["protocol"])
        name = item["name"].name(names.label)
        if not name and len(items) > 1:
            item["name"].refuse("is required when a Service has more than one port")
        elif name and name in seen_names:
            item["name"].refuse(f"{shown(name)} is the name of two ports of this Service")
        if item["port"] and (number, transport) in seen_ports:
            item["port"].refuse(f"{number} is listed twice for {transport}")
        seen_names.add(name)
        seen_ports.add((number, transport))
        target = _target_port(item["targetPort"], number)
        app_protocol = protocol(number, name, item["appProtocol"].text())
        if transport == "TCP":
            yield ServicePort(port=number, target=target, name=name, protocol=app_protocol)


def _target_port(field: Field, number: int) -> int | str:
    """Parse a targetPort. The default is the service port."""
    if not isinstance(field.value, str):
        return field.port() if field else number
    if field.value.isdecimal():
        field.refuse(
            f"{shown(field.value)} in quotes is a port name, not a port number", "write it without quotes"
        )
    return field.name(names.port)


def pod(obj: Field, meta: Meta) -> Pod:
    """Parse a Pod."""
    obj.mapping(f"{TOP} spec status")
    spec = obj["spec"].mapping(
        "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig "
        "dnsPolicy enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork "
        "hostPID hostUsers hostname hostnameOverride imagePullSecrets initContainers nodeName "
        "nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates "
        "resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates "
        "securityContext serviceAccount serviceAccountName setHostnameAsFQDN "
        "shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations "
        "topologySpreadConstraints volumes workloadRef schedulingGroup evictionResponders"
    )
    status = obj["status"].mapping()
    phase = status["phase"].one_of(*POD_PHASES) or "Running"
    account = spec["serviceAccountName"].name(names.subdomain) or spec["serviceAccount"].name(names.subdomain)
    pod_ips = [
        names.canonical(item.mapping("ip")["ip"].required().name(names.address))
        for item in status["podIPs"].items()
        if isinstance(item.mapping().value, dict)
    ]
    first_ip = pod_ips[0] if pod_ips else ""
    metadata = obj["metadata"]
    annotations = metadata["annotations"]
    deleted = bool(metadata["deletionTimestamp"])
    address = names.canonical(status["podIP"].name(names.address)) or first_ip
    more_addresses = tuple(dict.fromkeys(ip for ip in pod_ips if ip and ip != address))
    interception, app_address = intercepted(annotations, status["podIP"], address)
    return Pod(
        meta=meta,
        address=address,
        more_addresses=more_addresses,
        service_account=account or "default",
        ready=phase == "Running" and not deleted and _is_ready(status),
        ended=phase in ("Succeeded", "Failed"),
        ports=tuple(_container_ports(spec)),
        probe_ports=probe_ports(spec),
        host_network=spec["hostNetwork"].boolean() or False,
        hostname=spec["hostname"].name(names.label),
        subdomain=spec["subdomain"].name(names.label),
        interception=interception,
        app_address=app_address,
        redirection=REDIRECT_ALL
        if interception is Interception.NONE
        else parse_redirection(meta.annotations),
    )


def intercepted(annotations: Field, place: Field, address: str) -> tuple[Interception, str]:
    """Return how a workload's traffic reaches its sidecar, and the address of its application in mode NONE.

    Args:
        annotations: the workload's annotations.
        place: field with the workload's address.
        address: the workload's address; empty if it has none.
    """
    interception = interception_mode(annotations[INTERCEPTION_MODE])
    annotation = annotations[APP_ADDRESS]
    app_address = names.canonical(annotation.name(names.address)) or "127.0.0.1"
    if interception is Interception.NONE and address == app_address:
        (annotation or place).refuse(
            f"{address} is the address of both the pod and its application: "
            "the sidecar would send requests to itself",
            f"make the application listen on another address, and set the annotation {APP_ADDRESS} to it",
        )
    return interception, app_address


def _is_ready(status: Field) -> bool:
    """Whether the Ready condition is true. A Pod without the condition (in a hand-written file) is ready."""
    conditions = [
        (condition.mapping()["type"].text(), condition["status"].text())
        for condition in status["conditions"].items()
    ]
    return next((status == "True" for kind, status in conditions if kind == "Ready"), True)


def interception_mode(field: Field) -> Interception:
    """Parse the annotation with the interception mode of a pod."""
    if field.value == "TPROXY":
        field.notice("TPROXY is not supported, REDIRECT is used")
        return Interception.REDIRECT
    return field.choice(Interception) or Interception.REDIRECT


def _container_ports(spec: Field) -> Iterator[ContainerPort]:
    """Yield the ports of containers and of sidecar init containers. A targetPort can name any of them."""
    for container in spec["initContainers"].items():
        if container.mapping()["restartPolicy"].value == "Always":
            yield from _ports_of(container)
    for container in spec["containers"].items():
        yield from _ports_of(container)


def _ports_of(container: Field) -> Iterator[ContainerPort]:
    seen: set[str] = set()
    for item in container.mapping()["ports"].items():
        item.mapping("containerPort name protocol hostPort hostIP")
        name = item["name"].name(names.port)
        if name and name in seen:
            item["name"].refuse(f"{shown(name)} is the name of two ports of this container")
        seen.add(name)
        number = item["containerPort"].required().port()
        if transport_protocol(item["protocol"]) == "TCP":
            published = isinstance(item.value, dict) and bool(item.value.get("hostPort"))
            yield ContainerPort(port=number, name=name, published=published)


def probe_ports(spec: Field) -> tuple[int, ...]:
    """Return the ports of the HTTP and gRPC probes, and of the HTTP hooks, in a pod's spec, sorted.

    They do not affect the sidecar's configuration, so a value that the API server would reject is skipped.
    """
    lists = (spec["initContainers"].value, spec["containers"].value)
    containers = [item for items in lists if isinstance(items, list) for item in items]
    found = {port for item in containers if isinstance(item, dict) for port in _probe_ports(item)}
    return tuple(sorted(found))


def _probe_ports(container: dict[str, Any]) -> Iterator[int]:
    probes = [probe for name in _PROBES if isinstance(probe := container.get(name), dict)]
    hooks = container.get("lifecycle")
    probes += (hook for hook in hooks.values() if isinstance(hook, dict)) if isinstance(hooks, dict) else ()
    for handler in (probe.get(kind) for probe in probes for kind in ("httpGet", "grpc")):
        if not isinstance(handler, dict):
            continue
        port = handler.get("port")
        number = _number_of(container, port) if isinstance(port, str) else port
        if isinstance(number, int) and 0 < number < 65536 and handler.get("host") is None:
            yield number


def _number_of(container: dict[str, Any], name: str) -> object:
    """Return the number of a container's named port; None if there is none."""
    ports = container.get("ports")
    for port in reversed(ports) if isinstance(ports, list) else ():
        if isinstance(port, dict) and port.get("name") == name:
            return port.get("containerPort")
    return None


def service_fail_closed(meta: Meta, _: Fact | None, _log: Log) -> FailClosed:
    """Return the replacement of a rejected Service: a Service with unknown ports."""
    return unknown_service(meta, meta.ref.name)


def unknown_service(meta: Meta, name: str) -> FailClosed:
    """Return an UnknownService, which makes a Policy for it STRICT for every port in the namespace."""
    namespace = meta.ref.namespace
    effect = f"a Policy that targets Service {name} is STRICT for every port of pods in namespace {namespace}"
    return FailClosed(UnknownService(meta=meta, service=name), effect)
