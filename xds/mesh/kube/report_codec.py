"""Encoding of a replica's report (`xds.mesh.rollout.peers`) as the text of an annotation."""

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

    Ports with the same stand are together: {"mPS+pm": {"namespace": {"pod": [8080]}}} are on their way, those
    without `+` are told because somebody else has them on their way.
    """
    found: dict[str, object] = {"number": report.number, "view": report.rules_version}
    if report.ports is not None:
        found["stands"] = _group(report.ports)
    text = json.dumps(found, separators=(",", ":"))
    if len(text) > MAX_PLAIN_LENGTH:
        text = b64encode(zlib.compress(text.encode(), 6)).decode()
    return text if len(text) <= MAX_LENGTH else None


def _group(stands: Mapping[PortKey, PortReport]) -> dict[str, dict[str, dict[str, list[int]]]]:
    groups: dict[str, dict[str, dict[str, list[int]]]] = {}
    for (pod, port), stand in sorted(stands.items()):
        modes, sends = (
            "".join(sorted(each.value[0] for each in letters)) for letters in (stand.modes, stand.sends)
        )
        group = groups.setdefault(f"{modes}/{sends}{'+' * stand.in_transition}", {})
        group.setdefault(pod.namespace, {}).setdefault(pod.name, []).append(port)
    return groups


def decode_report(text: str) -> ReplicaReport:
    """Parse a report. A report that cannot be parsed, for example of another version, is empty."""
    try:
        if not text.startswith("{"):
            text = zlib.decompressobj().decompress(b64decode(text), _MAX_UNPACKED_LENGTH).decode()
        found = json.loads(text)
        stands = found.get("stands")
        return ReplicaReport(
            int(found["number"]), str(found["view"]), None if stands is None else dict(_ungroup(stands))
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
    found = []
    for name, namespaces in groups.items():
        modes, _, sends = name.removesuffix("+").partition("/")
        stand = PortReport(
            in_transition=name.endswith("+"),
            modes=frozenset(_MODES[each] for each in modes),
            sends=frozenset(_SENDS[each] for each in sends),
        )
        found += [
            ((Ref("Pod", namespace, pod), int(port)), stand)
            for namespace, pods in namespaces.items()
            for pod, ports in pods.items()
            for port in ports
        ]
    return found
