"""Names: sort and list them, and find objects by POD.NAMESPACE, SERVICE.NAMESPACE[:PORT] or KIND/NS/NAME."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from xds.mesh.model.objects import CLUSTER_DOMAIN, Ref

if TYPE_CHECKING:
    from xds.mesh.model.mesh import Mesh
    from xds.mesh.model.objects import Pod, Service, ServicePort

_Named = TypeVar("_Named", "Pod", "Service")

_MAX_NAMES = 5
"""Maximum number of names that a message suggests."""
MAX_CANDIDATES = 100
"""Maximum number of names to compare for a suggestion. One comparison takes up to 0.1 ms."""
MAX_SUGGESTION_LENGTH = 64
"""Number of characters to compare for a suggestion. The time grows with the square of the length."""


def natural_key(*names: str) -> tuple[tuple[object, ...], ...]:
    """Return a sort key that orders the numbers in names by their value: `s2` before `s10`."""
    return tuple(map(_natural_key, names))


@lru_cache(maxsize=1 << 14)
def _natural_key(name: str) -> tuple[object, ...]:
    # Texts and numbers alternate, so a number is never compared with a text. A longer number is greater.
    texts = re.split(r"0*([0-9]+)", name)
    return tuple((len(text), text) if index % 2 else text for index, text in enumerate(texts))


def join_names(names: Iterable[str], limit: int, kind: str = "") -> str:
    """Return at most `limit` names, and the number of the others: `a, b and 3 more`.

    Args:
        names: the names.
        limit: maximum number of names.
        kind: what the names stand for, such as `clients`; it follows the number.
    """
    all_names = list(names)
    more = f" and {len(all_names) - limit} more {kind}".rstrip() if len(all_names) > limit else ""
    return ", ".join(all_names[:limit]) + more


def host_port(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def service_key(cluster_host: str) -> tuple[str, str]:
    """Return the namespace and name of the service with a host in names of clusters; else empty texts."""
    entry_host, _, namespace = cluster_host.rpartition("@")
    if entry_host:
        return namespace, entry_host
    name, _, namespace = cluster_host.removesuffix(f".svc.{CLUSTER_DOMAIN}").partition(".")
    return (namespace, name) if cluster_host.endswith(f".svc.{CLUSTER_DOMAIN}") else ("", "")


class UnknownNameError(LookupError):
    """No object can have the name that the user entered. The message says why, or suggests similar names."""


def unknown_name(kind: str, name: str, known: list[str], form: str) -> str:
    """Return the message that no object has the name, with similar names.

    Args:
        kind: the kind of object, such as `pod`.
        name: the name that the user entered.
        known: the names that exist.
        form: the form of a name, such as `POD.NAMESPACE`, or where the name was looked up.
    """
    if not known:
        return f"{kind} {name} not found: there is no {kind}"
    # Complete a name without its namespace, and a Deployment's name without the suffix of its pods.
    first_name, _, namespace = name.rpartition(".")
    completions = [
        known_name
        for known_name in known
        if known_name.startswith((f"{name}.", f"{first_name}-")) and known_name.endswith(namespace)
    ]
    completions += [known_name for known_name in known if known_name.split(".")[0] == name]
    similar = list(dict.fromkeys(completions)) or _similar(name, known, namespace)
    names = similar or known
    listed = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    hint = f"did you mean {listed}?" if similar else f"known: {listed}"
    return f"{kind} {name} not found ({form}); {hint}"


def _similar(name: str, known: list[str], namespace: str) -> list[str]:
    """Return the known names that are most similar. Names in the namespace are compared first."""
    candidates = sorted(known, key=lambda known_name: not known_name.endswith(f".{namespace}"))
    by_start = {candidate[:MAX_SUGGESTION_LENGTH]: candidate for candidate in candidates[:MAX_CANDIDATES]}
    matches = difflib.get_close_matches(name[:MAX_SUGGESTION_LENGTH], by_start, n=3, cutoff=0.5)
    return [by_start[match] for match in matches]


def ambiguous_name(text: str, names: list[str]) -> str:
    """Return the message that several names start with a text."""
    listed = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return f"{text} is ambiguous: it matches {listed}"


def _with_prefix(text: str, objects: Iterable[tuple[str, _Named]]) -> _Named | None:
    """Return the only object with a name that starts with a text; None without one.

    Raises UnknownNameError if there are several.
    """
    matches = {item.ref: (name, item) for name, item in objects if text and name.startswith(text)}
    if len(matches) > 1:
        raise UnknownNameError(ambiguous_name(text, [name for name, _ in matches.values()]))
    return next((item for _, item in matches.values()), None)


def pod_matching(mesh: Mesh, text: str) -> Pod:
    """Return the pod of `pod_named`. Without one, it is the only pod whose POD.NAMESPACE starts with a text.

    For questions about a pod. Whatever gives a pod its identity uses `pod_named`. Raises UnknownNameError if
    no pod matches, or several do.
    """
    try:
        return pod_named(mesh, text)
    except UnknownNameError:
        names = ((f"{name}.{pod.namespace}", pod) for pod in mesh.pods() for name in _short_names(pod))
        if pod := _with_prefix(text, names):
            return pod
        raise


def _short_names(pod: Pod) -> tuple[str, ...]:
    """Return the name of a pod, with and without the kind of its workload."""
    return (pod.name, pod.name.partition("/")[2]) if "/" in pod.name else (pod.name,)


def pod_named(mesh: Mesh, name: str) -> Pod:
    """Return the pod named POD.NAMESPACE. Raises UnknownNameError if there is none.

    A workload without pods and a WorkloadEntry can be named with or without their kind: `deploy/web.shop` or
    `web.shop`.
    """
    pod_name, _, namespace = name.rpartition(".")
    if pod := mesh.pod(namespace, pod_name):
        return pod
    pods = mesh.in_namespace(namespace).pods.values()
    named = [pod for pod in pods if pod.name.partition("/")[2] == pod_name]
    if len(named) != 1:
        known = [f"{pod.name}.{pod.namespace}" for pod in mesh.pods()]
        raise UnknownNameError(unknown_name("pod", name, known, "POD.NAMESPACE"))
    return named[0]


def service_named(mesh: Mesh, host: str) -> Service:
    """Return the Service named SERVICE.NAMESPACE, or HOST of a ServiceEntry that no other namespace defines.

    Raises UnknownNameError if there is none.
    """
    if len(named := [item for item in mesh.services() if item.entry_host == host]) == 1:
        return named[0]
    name, _, namespace = host.removesuffix(".svc.cluster.local").removesuffix(".svc").rpartition(".")
    service = mesh.service(namespace, name)
    if service is None:
        known = [f"{service.name}.{service.namespace}" for service in mesh.services()]
        raise UnknownNameError(unknown_name("service", host, known, "SERVICE.NAMESPACE"))
    return service


def _service_matching(mesh: Mesh, text: str) -> Service:
    try:
        return service_named(mesh, text)
    except UnknownNameError:
        names = ((f"{service.name}.{service.namespace}", service) for service in mesh.services())
        if service := _with_prefix(text, names):
            return service
        raise


def ports_named(mesh: Mesh, text: str) -> tuple[Service, tuple[ServicePort, ...]]:
    """Return the Service of SERVICE.NAMESPACE[:PORT], and the selected ports. PORT is a number or a name.

    Without PORT, all ports are selected. Without a Service of this name, it is the only one whose name starts
    like this. Raises UnknownNameError if the Service or the port does not exist, or several Services match.
    """
    host, _, port = text.partition(":")
    service = _service_matching(mesh, host)
    ports = tuple(item for item in service.ports if port in ("", str(item.port), item.name))
    if port and not ports:
        known = [str(item.port) for item in service.ports]
        raise UnknownNameError(unknown_name("port", port, known, f"service {host}"))
    return service, ports


def ref_named(text: str, kinds: Mapping[str, bool]) -> Ref:
    """Return the object that KIND/NS/NAME, or KIND/NAME for a cluster-scoped kind, refers to.

    Raises UnknownNameError if the kind is unknown or a part is missing. The object need not exist.

    Args:
        text: the name that the user entered, with the kind in any case.
        kinds: the known kinds, and whether each is namespaced.
    """
    word, _, rest = text.partition("/")
    kind = next((kind for kind in kinds if kind.lower() == word.lower()), None)
    if kind is None:
        raise UnknownNameError(unknown_name("kind", word, list(kinds), text))
    # The name of a workload's expected pod contains a slash: Pod/shop/deploy/web.
    namespace, _, name = rest.partition("/") if kinds[kind] else rest.rpartition("/")
    if not name or bool(namespace) != kinds[kind]:
        form = "NS/NAME" if kinds[kind] else "NAME"
        raise UnknownNameError(f"{text} is not the name of an object: write {kind}/{form}")
    return Ref(kind, namespace, name)
