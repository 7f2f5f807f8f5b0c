"""AuthorizationPolicies for tests."""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.support.manifests import Manifest


def authorization_policy(
    namespace: str,
    *rules: Mapping[str, Any],
    action: str = "ALLOW",
    name: str = "rules",
    selector: Mapping[str, str] | None = None,
    dry_run: bool = False,
    tries_deletion: bool = False,
) -> Manifest:
    """Return an AuthorizationPolicy."""
    spec: dict[str, Any] = {"action": action}
    if selector:
        spec["selector"] = {"matchLabels": dict(selector)}
    if action == "CUSTOM":
        spec["provider"] = {"name": "external"}
    if rules:
        spec["rules"] = [dict(rule) for rule in rules]
    meta: dict[str, Any] = {"name": name, "namespace": namespace}
    if dry_run:
        meta["annotations"] = {"istio.io/dry-run": "true"}
    if tries_deletion:
        meta["annotations"] = {"sidecar.xds/dry-run": "delete"}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": meta,
        "spec": spec,
    }


def is_dry_run(policy: Manifest) -> bool:
    """Whether an AuthorizationPolicy has `istio.io/dry-run`."""
    return "istio.io/dry-run" in policy["metadata"].get("annotations", {})


def source(**conditions: Any) -> dict[str, Any]:
    """Return a rule's `from` with one source."""
    return {"from": [{"source": conditions}]}


def operation(**conditions: Any) -> dict[str, Any]:
    """Return a rule's `to` with one operation."""
    return {"to": [{"operation": conditions}]}


def when(key: str, *values: str, excluded: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a rule's `when` with one condition."""
    condition: dict[str, Any] = {"key": key}
    if values:
        condition["values"] = list(values)
    if excluded:
        condition["notValues"] = list(excluded)
    return {"when": [condition]}


# --- Istio's rules, read from the manifests ----------------------------------------------------------------


class Call(NamedTuple):
    """A request or connection to a workload."""

    identity: str
    """SPIFFE ID without its scheme; empty in plaintext."""
    address: str
    """IP address of the client."""
    server: str
    """IP address of the server."""
    port: int
    """Port of the workload."""
    host: str = ""
    method: str = ""
    """Empty: the connection is not HTTP."""
    path: str = ""
    headers: Mapping[str, str] = {}


def is_allowed(policies: Iterable[Manifest], call: Call, namespace: str, labels: Mapping[str, str]) -> bool:
    """Say what Istio's documents say of a call, condition by condition. What cannot be enforced denies."""
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] in (namespace, "istio-system")
        and (policy["spec"].get("selector") or {"matchLabels": {}})["matchLabels"].items() <= labels.items()
        and not is_dry_run(policy)
    ]
    by_action: dict[str, list[Any]] = {}
    for policy in mine:
        by_action.setdefault(policy["spec"]["action"], []).append(policy)
    for policy in (*by_action.get("DENY", ()), *by_action.get("CUSTOM", ())):
        if any(_matches(rule, call, policy, denies=True) for rule in policy["spec"]["rules"]):
            return False
    allowing = by_action.get("ALLOW", [])
    return not allowing or any(
        _matches(rule, call, policy, denies=False)
        for policy in allowing
        for rule in policy["spec"].get("rules", ())
    )


_NOT_ENFORCED = re.compile(r"requestPrincipals|notRequestPrincipals|request\.auth\..*")
_OF_HTTP = re.compile(r"(not)?(hosts|methods|paths|Hosts|Methods|Paths)|request\.headers.*")


def _matches(rule: Mapping[str, Any], call: Call, policy: Manifest, *, denies: bool) -> bool:
    sources = [item["source"] for item in rule.get("from", ())] or [{}]
    operations = [item["operation"] for item in rule.get("to", ())] or [{}]
    conditions = {}
    for item in rule.get("when", ()):
        for name in ("values", "notValues"):
            if name in item:
                conditions[item["key"], name == "notValues"] = item[name]
    groups = [
        [_by_attribute(each) for each in sources],
        [_by_attribute(each) for each in operations],
        [conditions],
    ]
    unknown = [
        key
        for group in groups
        for alternative in group
        for key, _ in alternative
        if _NOT_ENFORCED.fullmatch(key) or (not call.method and _OF_HTTP.fullmatch(key))
    ]
    if unknown and not denies:
        return False
    return all(
        any(
            all(
                any(_has(key, value, call, policy) for value in values) is not negated
                for (key, negated), values in alternative.items()
                if key not in unknown
            )
            for alternative in group
        )
        for group in groups
    )


def _by_attribute(conditions: Mapping[str, Any]) -> dict[tuple[str, bool], Any]:
    found = {}
    for key, values in conditions.items():
        negated = key.startswith("not")
        found[key[3].lower() + key[4:] if negated else key, negated] = values
    return found


def _has(key: str, value: str, call: Call, policy: Manifest) -> bool:
    domain, _, rest = call.identity.partition("/ns/")
    namespace, _, account = rest.partition("/sa/")
    match key:
        case "principals" | "source.principal":
            return bool(call.identity) and _like(value, call.identity)
        case "namespaces" | "source.namespace":
            return bool(call.identity) and _like(value, namespace)
        case "serviceAccounts" | "source.serviceAccount":
            owner, _, name = value.rpartition("/")
            return (owner or policy["metadata"]["namespace"], name) == (namespace, account)
        case "trustDomains" | "source.trustDomain":
            return bool(call.identity) and _like(value, domain)
        case "ipBlocks" | "source.ip" | "remoteIpBlocks" | "remote.ip":
            return ipaddress.ip_address(call.address) in ipaddress.ip_network(value, strict=False)
        case "destination.ip":
            return ipaddress.ip_address(call.server) in ipaddress.ip_network(value, strict=False)
        case "ports" | "destination.port":
            return value == str(call.port)
        case "hosts":
            return _like(value.lower(), call.host.lower())
        case "methods":
            return _like(value, call.method)
        case "paths" if "{" in value:
            text = re.escape(value).replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+")
            return bool(re.fullmatch(text, call.path))
        case "paths":
            return _like(value, call.path)
        case _:
            name = key.removeprefix("request.headers[").removesuffix("]")
            return name in call.headers and _like(value, call.headers[name])


def _like(value: str, text: str) -> bool:
    if value == "*":
        return bool(text)
    return bool(re.fullmatch(".*".join(map(re.escape, value.split("*"))), text))


# --- random policies ---------------------------------------------------------------------------------------

_VALUES = {
    "principals": (
        *("cluster.local/ns/apps/sa/client", "cluster.local/ns/apps/sa/*", "*/sa/other", "*", "*t"),
        *("cluster.local/ns/ns/sa/sa", "*/cluster.local/ns/apps/sa/client", "*ns/sa/sa", "spiffe*", "c*"),
    ),
    "namespaces": ("apps", "ap*", "*ps", "*", "outside", "*s", "ns", "sa", "*a", "*ns"),
    "serviceAccounts": ("apps/client", "client", "apps/other", "ns/sa", "sa/ns"),
    "trustDomains": ("cluster.local", "cluster*", "*.local", "*", "other"),
    "hosts": ("web.full", "web.full:80", "WEB.FULL*", "*.full", "*:83", "*"),
    "methods": ("GET", "POST", "P*", "*T", "*"),
    "paths": ("/", "/info*", "/admin/a", "*/a", "/{*}/a", "/admin/{**}", "/{*}", "*"),
    "ports": ("8080", "9000", "8083", "9003", "1"),
    "request.headers[x-token]": ("a", "b*", "*b", "*"),
    "requestPrincipals": ("*", "issuer/x"),
    "request.auth.claims[groups]": ("admin",),
}


def random_policies(chance: random.Random, addresses: Sequence[str]) -> list[Manifest]:
    """Return a few policies for the server of `tests/real/test_authorization.py`."""
    values = dict(_VALUES)
    blocks = (*addresses, f"{addresses[0]}/24", "10.200.0.0/16", "0.0.0.0/0", "::/0")
    values |= {"ipBlocks": blocks, "remoteIpBlocks": blocks, "destination.ip": blocks}

    def conditions(*names: str) -> dict[str, Any]:
        rare = [name for name in names if "equestPrincipals" not in name or chance.random() < 0.2]
        found: dict[str, Any] = {}
        for name in chance.sample(rare, chance.choice((1, 1, 1, 2, 2, 3))):
            negated = chance.random() < 0.25
            key = f"not{name[0].upper()}{name[1:]}" if negated else name
            found[key] = chance.sample(values[name], chance.choice((1, 1, 2)))
        if any("erviceAccounts" in name for name in found):
            found = {key: found[key] for key in found if not re.search("rincipals|amespaces", key)}
        return found

    def rule(action: str) -> dict[str, Any]:
        of_identity = action != "CUSTOM"  # which does not support identities
        parts: dict[str, Any] = {}
        if chance.random() < 0.6:
            names = ("principals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks")
            names = (*names, "remoteIpBlocks", "requestPrincipals") if of_identity else ("ipBlocks",) * 3
            parts["from"] = [{"source": conditions(*names)} for _ in range(chance.choice((1, 1, 2)))]
        if chance.random() < 0.5:
            names = ("hosts", "methods", "paths", "ports")
            parts["to"] = [{"operation": conditions(*names)} for _ in range(chance.choice((1, 1, 2)))]
        if chance.random() < 0.4:
            keys = {
                "source.principal": "principals",
                "source.namespace": "namespaces",
                "source.serviceAccount": "serviceAccounts",
                "source.trustDomain": "trustDomains",
                "source.ip": "ipBlocks",
                "remote.ip": "ipBlocks",
                "destination.ip": "destination.ip",
                "destination.port": "ports",
                "request.headers[x-token]": "request.headers[x-token]",
                "request.auth.claims[groups]": "request.auth.claims[groups]",
            }
            key = chance.choice(
                [key for key in keys if of_identity or not re.match(r"source\.[^i]|request\.auth", key)]
            )
            chosen = chance.sample(values[keys[key]], 1)
            parts |= when(key, *chosen) if chance.random() < 0.75 else when(key, excluded=tuple(chosen))
        return parts

    return [
        authorization_policy(
            "istio-system" if chance.random() < 0.15 else "full",
            *(rule(action) for _ in range(chance.choice((1, 1, 2, 3)))),
            action=action,
            name=f"p{index}",
            selector=chance.choice((None, None, {"app": "web"}, {"app": "other"})),
        )
        for index in range(chance.choice((1, 1, 2, 3)))
        for action in chance.choices(("ALLOW", "DENY", "CUSTOM", "AUDIT"), (12, 8, 1, 1))
    ]
