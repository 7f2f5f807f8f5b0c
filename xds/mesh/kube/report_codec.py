"""Codec for a replica's report (`xds.mesh.rollout.peers`) as the text of an annotation."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping

from xds.mesh.model.objects import Mode, PortKey, Ref
from xds.mesh.policy.mtls import Send
from xds.mesh.rollout.peers import PortReport, ReplicaReport

MAX_LENGTH = 200 * 1024
"""Maximum characters of a report. The API server limits annotations to 256 KiB."""
MAX_PLAIN_LENGTH = 2000
"""Maximum characters of an uncompressed report."""
_MAX_UNPACKED_LENGTH = 16 * 2**20
"""Maximum characters of a decompressed report."""

_MODES = {mode.value[0]: mode for mode in Mode}
_SENDS = {send.value[0]: send for send in Send}


def encode_report(report: ReplicaReport) -> str | None:
    """Return a report as text, or None if it is too large.

    Ports with equal reports form a group: {"PS/mp+": {"namespace": {"pod": [8080]}}}. The group's name
    consists of the initials of its modes and sends, and a `+` if its ports are in transition on this replica.
    """
    content: dict[str, object] = {"number": report.number, "view": report.rules_version}
    if report.ports is not None:
        content["stands"] = _group(report.ports)
    text = json.dumps(content, separators=(",", ":"))
    if len(text) > MAX_PLAIN_LENGTH:
        text = b64encode(zlib.compress(text.encode(), 6)).decode()
    return text if len(text) <= MAX_LENGTH else None


def _group(ports: Mapping[PortKey, PortReport]) -> dict[str, dict[str, dict[str, list[int]]]]:
    groups: dict[str, dict[str, dict[str, list[int]]]] = {}
    for (pod, port), report in sorted(ports.items()):
        modes, sends = (
            "".join(sorted(member.value[0] for member in members)) for members in (report.modes, report.sends)
        )
        group = groups.setdefault(f"{modes}/{sends}{'+' * report.in_transition}", {})
        group.setdefault(pod.namespace, {}).setdefault(pod.name, []).append(port)
    return groups


def decode_report(text: str) -> ReplicaReport:
    """Parse a report. An invalid text, for example from another version of xds, becomes an empty report."""
    try:
        if not text.startswith("{"):
            text = zlib.decompressobj().decompress(b64decode(text), _MAX_UNPACKED_LENGTH).decode()
        content = json.loads(text)
        groups = content.get("stands")
        return ReplicaReport(
            int(content["number"]), str(content["view"]), None if groups is None else dict(_ungroup(groups))
        )
    except (
        Error,
        zlib.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        return ReplicaReport(0, "", None)


def _ungroup(groups: Mapping[str, Mapping[str, Mapping[str, list[int]]]]) -> list[tuple[PortKey, PortReport]]:
    reports = []
    for name, namespaces in groups.items():
        modes, _, sends = name.removesuffix("+").partition("/")
        report = PortReport(
            in_transition=name.endswith("+"),
            modes=frozenset(_MODES[initial] for initial in modes),
            sends=frozenset(_SENDS[initial] for initial in sends),
        )
        reports += [
            ((Ref("Pod", namespace, pod), int(port)), report)
            for namespace, pods in namespaces.items()
            for pod, ports in pods.items()
            for port in ports
        ]
    return reports
