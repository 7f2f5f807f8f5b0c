"""Encoding of plans and reports (`xds.mesh.rollout.sync`) as the text of an annotation."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, TypeVar

from xds.mesh.model.objects import Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.observation import Ask, Generations, Report
from xds.mesh.rollout.plan import StoredPlan, StoredRule
from xds.mesh.rollout.stages import Staged

MAX_LENGTH = 200 * 1024
"""Maximum characters of a text. The API server limits annotations to 256 KiB."""
MAX_PLAIN_LENGTH = 2000
"""Maximum characters of an uncompressed text."""
_MAX_UNPACKED_LENGTH = 16 * 2**20
"""Maximum characters of a decompressed text."""

T = TypeVar("T")

_MODES = {mode.value[0]: mode for mode in Mode}
_SENDS = {send.value[0]: send for send in (Send.PLAINTEXT, Send.MTLS)}

_MALFORMED = (
    Error,
    zlib.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)


class CodecError(Exception):
    """A text that is too large to be written, or cannot be read."""


def encode_plan(plan: StoredPlan) -> str:
    """Return a plan as text. Ports in the same state form a group, by namespace and pod."""
    states = {key: f"{_stage(listener)}/{_stage(clients)}" for key, (listener, clients) in plan.ports.items()}
    return _pack(
        {
            "generation": plan.generation,
            "members": sorted(plan.members),
            "ports": _grouped(states),
            "rules": {_name(ref): list(rule) for ref, rule in sorted(plan.rules.items())},
        }
    )


def decode_plan(text: str) -> StoredPlan:
    """Parse a plan. CodecError: it cannot be read, for example because it is of another version."""
    try:
        content = _unpack(text)
        ports: dict[PortKey, tuple[Staged[Mode], Staged[Send]]] = {}
        for key, state in _ungrouped(content["ports"]):
            listener, _, clients = state.partition("/")
            ports[key] = _parse_stage(listener, _MODES), _parse_stage(clients, _SENDS)
        rules = {
            _rule_ref(name): StoredRule(str(served), str(desired), int(generation), bool(settled))
            for name, (served, desired, generation, settled) in content["rules"].items()
        }
        members = frozenset(map(str, content["members"]))
        return StoredPlan(int(content["generation"]), ports, rules, members)
    except _MALFORMED as error:
        raise CodecError(f"cannot read the plan: {type(error).__name__}: {error}") from error


def encode_report(report: Report) -> str:
    """Return a report as text."""
    asks = {
        key: f"{ask.mode.value[0]}/{ask.send.value[0]}{'+' * ask.is_from_server}"
        for key, ask in report.asks.items()
    }
    return _pack(
        {
            "generation": report.generation,
            "alone": report.is_alone,
            "servers": {_name(pod): number for pod, number in report.servers.named.items()},
            "otherServers": None if report.servers.others == inf else report.servers.others,
            "clients": dict(report.clients.named),
            "otherClients": None if report.clients.others == inf else report.clients.others,
            "rejectedListeners": {_name(pod): error for pod, error in report.rejected_listeners.items()},
            "rejectedClusters": {name: dict(errors) for name, errors in report.rejected_clusters.items()},
            "returned": report.has_earlier_connections,
            "asks": _grouped(asks),
            "heldRules": sorted(map(_name, report.unplanned_rules)),
        }
    )


def decode_report(text: str) -> Report:
    """Parse a report. One that cannot be read says that nothing is known."""
    try:
        content = _unpack(text)
        asks = {}
        for key, state in _ungrouped(content["asks"]):
            mode, _, send = state.removesuffix("+").partition("/")
            asks[key] = Ask(_MODES[mode], _SENDS[send], is_from_server=state.endswith("+"))
        servers = {_pod_ref(name): int(number) for name, number in content["servers"].items()}
        clients = {str(name): int(number) for name, number in content["clients"].items()}
        return Report(
            generation=int(content["generation"]),
            is_alone=bool(content["alone"]),
            servers=Generations(servers, _parse_others(content["otherServers"])),
            clients=Generations(clients, _parse_others(content["otherClients"])),
            rejected_listeners={
                _pod_ref(name): str(error) for name, error in content["rejectedListeners"].items()
            },
            rejected_clusters={
                str(name): {str(cluster): str(error) for cluster, error in errors.items()}
                for name, errors in content["rejectedClusters"].items()
            },
            has_earlier_connections=bool(content["returned"]),
            asks=asks,
            unplanned_rules=frozenset(map(_rule_ref, content["heldRules"])),
        )
    except _MALFORMED:
        return Report().without_progress()


def _parse_others(number: int | None) -> float:
    return inf if number is None else int(number)


def _stage(stage: Staged[Mode] | Staged[Send]) -> str:
    return (
        stage.current.value[0] + str(stage.generation) + "".join(value.value[0] for value in stage.possible)
    )


def _parse_stage(text: str, values: Mapping[str, T]) -> Staged[T]:
    number = text[1:].rstrip("".join(values))
    possible = tuple(values[letter] for letter in text[1 + len(number) :])
    current = values[text[0]]
    if current not in possible:
        raise ValueError(text)
    return Staged(current, int(number), possible)


def _grouped(states: Mapping[PortKey, str]) -> dict[str, dict[str, dict[str, list[int]]]]:
    groups: dict[str, dict[str, dict[str, list[int]]]] = {}
    for (pod, port), state in sorted(states.items()):
        pods = groups.setdefault(state, {}).setdefault(pod.namespace, {})
        pods.setdefault(pod.name, []).append(port)
    return groups


def _ungrouped(groups: Mapping[str, Mapping[str, Mapping[str, list[int]]]]) -> Iterator[tuple[PortKey, str]]:
    for state, namespaces in groups.items():
        for namespace, pods in namespaces.items():
            for pod, ports in pods.items():
                yield from (((Ref("Pod", namespace, pod), int(port)), state) for port in ports)


def _name(ref: Ref) -> str:
    return f"{ref.namespace}/{ref.name}"


def _pod_ref(name: str) -> Ref:
    return Ref("Pod", *name.split("/", 1))


def _rule_ref(name: str) -> Ref:
    return Ref("DestinationRule", *name.split("/", 1))


def _pack(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"))
    if len(text) > MAX_PLAIN_LENGTH:
        text = b64encode(zlib.compress(text.encode(), 6)).decode()
    if len(text) > MAX_LENGTH:
        raise CodecError(f"{len(text)} characters do not fit into an annotation; the limit is {MAX_LENGTH}")
    return text


def _unpack(text: str) -> Any:
    if not text.startswith("{"):
        text = zlib.decompressobj().decompress(b64decode(text), _MAX_UNPACKED_LENGTH).decode()
    return json.loads(text)
