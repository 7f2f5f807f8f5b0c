"""Parse `loadBalancer` of DestinationRules, and the mesh's `localityLbSetting`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import isqrt

from xds.mesh.model.loadbalancer import (
    MAX_HASH_ENTRIES,
    ConsistentHash,
    Cookie,
    Distribute,
    HashKey,
    LoadBalancer,
    LocalityLb,
    LocalityPattern,
    Simple,
    Warmup,
)
from xds.mesh.model.locality import TOPOLOGY_LABELS
from xds.mesh.parse.reading import Field, shown

_KEYS = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")
_FORMERLY_LEAST_REQUEST = "LEAST_CONN"
_MIN_WARMUP = 0.001
_MAX_TOKEN_LENGTH = 256
"""Limit of Envoy. It would reject the whole cluster or route configuration."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_COOKIE_PATH = re.compile(r"/[ -:<-~]*")


def load_balancer(field: Field) -> LoadBalancer | None:
    """Parse `loadBalancer`; return None if a part of it is invalid, which then must not choose endpoints."""
    refusals = len(field.log.refusals)
    if not field.mapping("simple consistentHash localityLbSetting warmupDurationSecs warmup"):
        return None
    if field["simple"].value and field["consistentHash"].value:
        field.refuse("has both simple and consistentHash; only one is allowed")
    chosen = field["simple"].one_of(*Simple, _FORMERLY_LEAST_REQUEST) or Simple.UNSPECIFIED
    simple = Simple.LEAST_REQUEST if chosen == _FORMERLY_LEAST_REQUEST else Simple(chosen)
    consistent_hash = _consistent_hash(field["consistentHash"])
    warmup = _warmup(field)
    if warmup and (consistent_hash or simple in {Simple.RANDOM, Simple.PASSTHROUGH}):
        name = "warmup" if field["warmup"] else "warmupDurationSecs"
        how = "consistentHash" if consistent_hash else simple
        field[name].notice(f"has no effect with {how}", "use LEAST_REQUEST or ROUND_ROBIN")
        warmup = None
    parsed = LoadBalancer(simple, consistent_hash, warmup, locality_lb(field["localityLbSetting"]))
    return parsed if len(field.log.refusals) == refusals else None


def _warmup(field: Field) -> Warmup | None:
    """Parse `warmup`, or else the deprecated `warmupDurationSecs`."""
    old, new = field["warmupDurationSecs"], field["warmup"]
    if new.mapping("duration minimumPercent aggression"):
        if old:
            old.notice("is ignored, because warmup is set")
        duration = new["duration"].required().seconds(_MIN_WARMUP)
        percent = new["minimumPercent"].number(0, 100)
        aggression = new["aggression"].number(1, 1000)
        return Warmup(duration, percent, aggression) if duration else None
    duration = old.seconds(_MIN_WARMUP)
    return Warmup(duration) if duration else None


def _consistent_hash(field: Field) -> ConsistentHash | None:
    if not field.mapping(f"{' '.join(_KEYS)} minimumRingSize ringHash maglev"):
        return None
    if sum(bool(field[name]) for name in _KEYS) != 1:
        field.refuse(f"must have exactly one of {', '.join(_KEYS)}")
    key = HashKey(
        header=_token(field["httpHeaderName"], prefix=":"),
        cookie=_cookie(field["httpCookie"]),
        source_ip=field["useSourceIp"].boolean() or False,
        query_parameter=_bounded(field["httpQueryParameterName"]),
    )
    if not any(key):
        field.refuse("has an empty key, so requests would go to random endpoints")
    sizes = [name for name in ("minimumRingSize", "ringHash", "maglev") if field[name]]
    if len(sizes) > 1:
        field.refuse(f"has both {' and '.join(sizes)}; only one is allowed")
    ring = field["ringHash"].mapping("minimumRingSize")["minimumRingSize"] or field["minimumRingSize"]
    table = field["maglev"].mapping("tableSize")["tableSize"]
    table_size = table.integer(0, MAX_HASH_ENTRIES) or None
    if table_size and not _is_prime(table_size):
        table.refuse(f"must be a prime number, not {table_size}", "the default is 65537")
    if field["maglev"]:
        return ConsistentHash(key, maglev=True, size=table_size)
    return ConsistentHash(key, size=ring.integer(0, MAX_HASH_ENTRIES) or None)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _cookie(field: Field) -> Cookie | None:
    if not field.mapping("name path ttl attributes"):
        return None
    if field["attributes"]:
        field["attributes"].notice("is not supported and is ignored", "create the cookie in the application")
    path = _bounded(field["path"])
    if path and not _COOKIE_PATH.fullmatch(path):
        field["path"].refuse(f"{shown(path)} is not a cookie's path", "write a path such as /shop")
    name = field["name"].required()
    return Cookie(_token(name), path, field["ttl"].seconds())


def _token(field: Field, prefix: str = "") -> str:
    """Parse the name of a cookie or, with the prefix of pseudo-headers, of a header."""
    text = _bounded(field)
    if text and not _TOKEN.fullmatch(text.removeprefix(prefix)):
        field.refuse(f"{shown(text)} is not the name of a header or cookie", "write a name such as x-user")
    return text


def _bounded(field: Field) -> str:
    text = field.text()
    if len(text) > _MAX_TOKEN_LENGTH:
        field.refuse(f"has {len(text)} characters; at most {_MAX_TOKEN_LENGTH} are supported")
        return ""
    return text


def locality_lb(field: Field) -> LocalityLb | None:
    """Parse `localityLbSetting`."""
    if not field.mapping("distribute failover failoverPriority enabled"):
        return None
    if field["distribute"].value and field["failover"].value:
        field.refuse("has both distribute and failover; only one is allowed")
    distribute = tuple(_distributions(field["distribute"]))
    _refuse_hidden(field["distribute"], (entry.clients for entry in distribute))
    failover = tuple(_failovers(field["failover"]))
    priority = tuple(_priorities(field["failoverPriority"]))
    if failover and any(label in TOPOLOGY_LABELS for label, _ in priority):
        field.refuse("has both failover and topology labels in failoverPriority; only one is allowed")
    if distribute and priority:
        field["failoverPriority"].notice("is ignored, because distribute is set")
    enabled = field["enabled"].boolean()
    return LocalityLb(enabled is not False, distribute, failover, priority)


def _distributions(field: Field) -> Iterator[Distribute]:
    for item in field.items():
        item.mapping("from to")
        weights = tuple(
            (_locality(entry, name), entry.integer(1, 100) or 0) for name, entry in item["to"].entries()
        )
        total = sum(weight for _, weight in weights)
        if total != 100:
            item["to"].refuse(f"has weights with the sum {total}; it must be 100")
        _refuse_overlap(item["to"], (pattern for pattern, _ in weights))
        yield Distribute(_locality(item["from"].required(), item["from"].text()), weights)


def _locality(field: Field, text: str) -> LocalityPattern:
    """Parse REGION/ZONE/SUBZONE, of which only the end can be `*` or absent."""
    parts = text.split("/")
    wildcard = parts.index("*") if "*" in parts else len(parts)
    named = parts[:wildcard]
    if len(parts) > 3 or wildcard < len(parts) - 1 or not all(named) or "*" in "".join(named):
        field.refuse(
            f"{shown(text)} is not a locality", "write REGION/ZONE/SUBZONE, REGION/ZONE/*, REGION/* or *"
        )
        return ()
    return tuple(named)


def _refuse_overlap(field: Field, patterns: Iterable[LocalityPattern]) -> None:
    # In sorted order, a pattern is followed by the patterns that start with its parts.
    for shorter, longer in pairwise(sorted(patterns)):
        if longer[: len(shorter)] == shorter:
            field.refuse(f"contains {_shown(longer)} twice: {_shown(shorter)} includes it")
            return


def _refuse_hidden(field: Field, patterns: Iterable[LocalityPattern]) -> None:
    """Refuse a pattern if an earlier one includes it: the first one that includes a client applies."""
    seen: set[LocalityPattern] = set()
    for pattern in patterns:
        for length in range(len(pattern) + 1):
            if (earlier := pattern[:length]) in seen:
                field.refuse(f"contains {_shown(pattern)} after {_shown(earlier)}, which includes it")
                return
        seen.add(pattern)


def _shown(pattern: LocalityPattern) -> str:
    return shown("/".join(pattern) or "*")


def _failovers(field: Field) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for item in field.items():
        item.mapping("from to")
        source, target = item["from"].required().text(), item["to"].required().text()
        if "*" in source + target or "/" in source + target:
            item.refuse("must name two regions, without zones or wildcards")
        if source == target:
            item["to"].refuse("must be another region than from")
        if source in seen:
            item.notice(f"is ignored, because an earlier entry is from {shown(source)}")
        else:
            yield source, target
        seen.add(source)


def _priorities(field: Field) -> Iterator[tuple[str, str | None]]:
    seen: set[str] = set()
    for item in field.items():
        label, equals, value = item.required().text().partition("=")
        if label in seen or not label:
            item.refuse(f"{shown(label)} must be a label that is listed once")
        seen.add(label)
        yield label, value if equals else None
