"""`loadBalancer` of DestinationRules, and the mesh's `localityLbSetting`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parse.steps import assert_linear
from xds.mesh.model.loadbalancer import (
    ConsistentHash,
    Cookie,
    Distribute,
    HashKey,
    LoadBalancer,
    LocalityLb,
    Simple,
    Warmup,
)
from xds.mesh.model.objects import DestinationRule
from xds.mesh.model.traffic import TrafficPolicy
from xds.mesh.parse import Parsed, dotted, parse
from xds.mesh.parse.meshconfig import mesh_config

HEADER = {"httpHeaderName": "x-user"}
BY_HEADER = HashKey(header="x-user")


def read(settings: Any, **more: Any) -> Parsed:
    policy = more or {"outlierDetection": {}}
    [parsed] = parse(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"host": "web", "trafficPolicy": {"loadBalancer": settings, **policy}},
        },
        dotted,
    )
    return parsed


def policy(settings: Any) -> TrafficPolicy:
    """Return the policy of valid settings."""
    parsed = read(settings)
    assert not parsed.problems
    assert isinstance(parsed.fact, DestinationRule)
    assert parsed.fact.policy
    return parsed.fact.policy


def locality(**settings: Any) -> dict[str, Any]:
    return {"localityLbSetting": settings}


def spread(*entries: tuple[str, dict[str, int]], **more: Any) -> dict[str, Any]:
    """Return settings that distribute requests: from a locality to others, with weights."""
    return locality(distribute=[{"from": place, "to": to} for place, to in entries], **more)


def failover(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    return locality(failover=[{"from": one, "to": other} for one, other in pairs], **more)


ANYWHERE = {"*": 100}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, LoadBalancer()),
        ({"simple": "LEAST_CONN"}, LoadBalancer(Simple.LEAST_REQUEST)),
        ({"simple": "UNSPECIFIED", "warmup": {"duration": "1m"}}, LoadBalancer(warmup=Warmup(60))),
        (
            {"simple": "ROUND_ROBIN", "warmup": {"duration": "5s", "minimumPercent": 20, "aggression": 1.5}},
            LoadBalancer(Simple.ROUND_ROBIN, warmup=Warmup(5, 20, 1.5)),
        ),
        ({"warmupDurationSecs": "30s"}, LoadBalancer(warmup=Warmup(30))),
    ],
)
def test_algorithm_and_warmup(settings: Any, expected: LoadBalancer) -> None:
    assert policy(settings).load_balancer == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (HEADER, ConsistentHash(BY_HEADER)),
        ({"httpHeaderName": ":path"}, ConsistentHash(HashKey(header=":path"))),
        ({"useSourceIp": True}, ConsistentHash(HashKey(source_ip=True))),
        ({"httpQueryParameterName": "user"}, ConsistentHash(HashKey(query_parameter="user"))),
        (
            {"httpCookie": {"name": "user", "path": "/shop", "ttl": "0s"}},
            ConsistentHash(HashKey(cookie=Cookie("user", "/shop", 0))),
        ),
        ({"httpCookie": {"name": "user"}}, ConsistentHash(HashKey(cookie=Cookie("user")))),
        (HEADER | {"minimumRingSize": 100}, ConsistentHash(BY_HEADER, size=100)),
        (HEADER | {"ringHash": {"minimumRingSize": 100}}, ConsistentHash(BY_HEADER, size=100)),
        (HEADER | {"ringHash": {}}, ConsistentHash(BY_HEADER)),
        (HEADER | {"maglev": {"tableSize": 11}}, ConsistentHash(BY_HEADER, maglev=True, size=11)),
        (HEADER | {"maglev": {}}, ConsistentHash(BY_HEADER, maglev=True)),
    ],
)
def test_consistent_hash(settings: Any, expected: ConsistentHash) -> None:
    found = policy({"consistentHash": settings})
    assert (found.load_balancer, found.hash_key) == (LoadBalancer(consistent_hash=expected), expected.key)


LOCALITY = [
    (locality(), LocalityLb()),
    (locality(enabled=False), LocalityLb(enabled=False)),
    (failover(("eu", "us")), LocalityLb(failover=(("eu", "us"),))),
    (
        locality(failoverPriority=["topology.kubernetes.io/zone", "version=v1"]),
        LocalityLb(failover_priority=(("topology.kubernetes.io/zone", None), ("version", "v1"))),
    ),
    (
        spread(("eu/*", {"eu/eu-1/*": 70, "eu/eu-2/rack": 20, "us": 10})),
        LocalityLb(
            distribute=(
                Distribute(("eu",), ((("eu", "eu-1"), 70), (("eu", "eu-2", "rack"), 20), (("us",), 10))),
            )
        ),
    ),
    (spread(("*", ANYWHERE)), LocalityLb(distribute=(Distribute((), (((), 100),)),))),
]


@pytest.mark.parametrize(("settings", "expected"), LOCALITY)
def test_locality_settings_of_rules_and_the_mesh(settings: Any, expected: LocalityLb) -> None:
    assert policy(settings).load_balancer == LoadBalancer(locality=expected)
    config, problems = mesh_config(settings, dotted)
    assert not problems
    assert config.locality_lb == expected


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"simple": "RANDOM", "consistentHash": HEADER}, "has both simple and consistentHash"),
        ({"consistentHash": {}}, "must have exactly one of httpHeaderName"),
        ({"consistentHash": HEADER | {"useSourceIp": True}}, "must have exactly one of httpHeaderName"),
        ({"consistentHash": {"useSourceIp": False}}, "has an empty key"),
        ({"consistentHash": {"httpHeaderName": "x user"}}, "'x user' is not the name of a header"),
        ({"consistentHash": {"httpHeaderName": "x" * 300}}, "has 300 characters"),
        ({"consistentHash": {"httpCookie": {}}}, "httpCookie.name is required"),
        ({"consistentHash": {"httpCookie": {"name": "a;b"}}}, "'a;b' is not the name"),
        ({"consistentHash": {"httpCookie": {"name": "a", "path": "/;x"}}}, "is not a cookie's path"),
        ({"consistentHash": HEADER | {"maglev": {"tableSize": 10}}}, "must be a prime number, not 10"),
        ({"consistentHash": HEADER | {"ringHash": {}, "maglev": {}}}, "has both ringHash and maglev"),
        ({"consistentHash": HEADER | {"minimumRingSize": 8_388_608}}, "must be a number from 0 to 65537"),
        ({"consistentHash": HEADER | {"maglev": {"tableSize": 5_000_011}}}, "a number from 0 to 65537"),
        ({"warmup": {}}, "warmup.duration is required"),
        ({"warmup": {"duration": "1s", "minimumPercent": 101}}, "must be a number from 0 to 100"),
        ({"warmup": {"duration": "1s", "aggression": 0.5}}, "must be a number from 1 to 1000"),
        ({"warmup": {"duration": "1s", "aggression": float("nan")}}, "must be a number from 1 to 1000"),
        ({"warmup": {"duration": "1s", "aggression": True}}, "must be a number from 1 to 1000"),
        (failover(("eu", "us"), distribute=[{"from": "*", "to": ANYWHERE}]), "both distribute and failover"),
        (spread(("eu", {"eu": 99})), "the sum 99"),
        *((spread((place, ANYWHERE)), "not a locality") for place in ("eu/*/x", "eu//x", "e*", "a/b/c/d")),
        (spread(("eu", {"us": 50, "us/us-1": 50})), "contains 'us/us-1' twice: 'us' includes it"),
        (spread(("*", ANYWHERE), ("eu", ANYWHERE)), "contains 'eu' after '*', which includes it"),
        (failover(("eu", "eu")), "must be another region"),
        (failover(("eu/1", "us")), "must name two regions"),
        (
            failover(("eu", "us"), failoverPriority=["topology.kubernetes.io/region"]),
            "has both failover and topology labels",
        ),
        (locality(failoverPriority=["a", "a=b"]), "must be a label that is listed once"),
    ],
)
def test_invalid_settings_are_refused(settings: Any, what: str) -> None:
    parsed = read(settings)
    assert parsed.refused
    assert what in str(parsed.problems[0])
    # A setting that is invalid must not choose endpoints.
    assert parsed.replacement
    assert isinstance(parsed.replacement.fact, DestinationRule)
    assert parsed.replacement.fact.policy
    assert parsed.replacement.fact.policy.load_balancer is None


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"simple": "RANDOM", "warmup": {"duration": "1s"}}, "warmup has no effect with RANDOM"),
        ({"consistentHash": HEADER, "warmupDurationSecs": "1s"}, "has no effect with consistentHash"),
        ({"warmup": {"duration": "1s"}, "warmupDurationSecs": "2s"}, "warmupDurationSecs is ignored"),
        (failover(("eu", "us"), ("eu", "ap")), "failover[1] is ignored"),
        (spread(("*", ANYWHERE), failoverPriority=["a"]), "failoverPriority is ignored"),
    ],
)
def test_settings_without_effect_get_a_notice(settings: Any, what: str) -> None:
    parsed = read(settings)
    [problem] = parsed.problems
    assert problem.notice
    assert what in problem.what


def test_an_earlier_locality_of_clients_may_be_more_specific() -> None:
    assert not read(spread(*((place, ANYWHERE) for place in ("us/a", "us/*", "*")))).problems


@pytest.mark.parametrize("settings", [failover(("eu", "us")), locality(failoverPriority=["a"])])
def test_failover_needs_outlier_detection(settings: Any) -> None:
    [problem] = read(settings, tls={"mode": "ISTIO_MUTUAL"}).problems
    assert problem.notice
    assert "localityLbSetting has no effect without outlierDetection" in problem.what
    port = {"port": {"number": 80}, "loadBalancer": settings}
    [on_port] = read({}, outlierDetection={}, portLevelSettings=[port]).problems
    assert "portLevelSettings[0].loadBalancer.localityLbSetting has no effect" in on_port.what
    assert not read({}, portLevelSettings=[{**port, "outlierDetection": {}}]).problems


def test_unsupported_fields_of_a_port_are_reported_once() -> None:
    ports = [{"port": {"number": 80}, "tunnel": {}, "compression": {}}]
    problems = read({}, portLevelSettings=ports).problems
    assert [("tunnel" in problem.what, problem.notice) for problem in problems] == [
        (True, False),
        (False, True),
    ]


def test_cost_of_localities_is_linear() -> None:
    def parse(size: int) -> None:
        weights = {f"r{number}": 1 for number in range(size)}
        read(spread(("*", weights)))
        read(spread(*((name, ANYWHERE) for name in weights)))
        read(failover(*((name, "us") for name in weights), failoverPriority=[*weights]))

    assert_linear(parse, 500)
