"""docs/reference/istio-fields.md: each row's field, set to its example, gets exactly the row's verdict."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from xds.mesh.model.objects import Problem
from xds.mesh.parse import Parsed, dotted, mesh_config, parse, reading

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "istio-fields.md"
ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| `([^`]+)` \| (.*)\|$", re.MULTILINE)
SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)

LOCALITY = {"localityLbSetting": {"enabled": True}}
DISTRIBUTE = {"localityLbSetting": {"distribute": [{"from": "eu", "to": {"us": 100}}]}}
FAILOVER = {"localityLbSetting": {"failover": [{"from": "eu", "to": "us"}]}}
HASH = {"consistentHash": {"httpHeaderName": "x"}}
COOKIE = {"consistentHash": {"httpCookie": {"name": "x"}}}
KEYS = {"httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"}
TLS = {"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k"}


def base(kind: str, path: str) -> dict[str, Any]:
    """Return the fields that the object needs besides the field, with other values than the example."""
    if kind == "PeerAuthentication":
        return {"selector": {"matchLabels": {"x": "y"}}}
    if kind == "Sidecar":
        return {"egress": [{"hosts": ["x/*"]}]} if "egress" in path else {}
    if kind == "AuthorizationPolicy":
        return {"rules": [{}]} if path == "action" else {}
    found: dict[str, Any] = {"host": "web", "trafficPolicy": {}} if kind == "DestinationRule" else {}
    policy = found.get("trafficPolicy", found)
    if path.startswith("subsets[].") and not path.endswith("name"):
        found["subsets"] = [{"name": "x"}]
    elif "portLevelSettings" in path:
        policy["portLevelSettings"] = [{"port": {"number": 90}}]
    elif ".tls." in path:
        policy["tls"] = dict(TLS)
    balancer = policy.setdefault("loadBalancer", {}) if "loadBalancer" in path else policy
    if "failover" in path and kind == "DestinationRule":
        policy["outlierDetection"] = {}
    if "distribute" in path:
        balancer |= copy.deepcopy(DISTRIBUTE)
    elif "failover[]" in path:
        balancer |= copy.deepcopy(FAILOVER)
    elif "localityLbSetting" in path:
        balancer |= copy.deepcopy(LOCALITY)
    elif "httpCookie" in path:
        balancer |= copy.deepcopy(COOKIE)
    elif "consistentHash" in path and path.rpartition(".")[2] not in KEYS:
        balancer |= copy.deepcopy(HASH)
    elif "warmup." in path:
        balancer["warmup"] = {"duration": "1s"}
    if path.startswith("meshMTLS.cipherSuites"):
        policy["meshMTLS"] = {"minProtocolVersion": "TLSV1_2"}
    return found


def parent(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the mapping that contains a field. `[]` is the first item of a list."""
    for step in path.split(".")[:-1]:
        if step.endswith("[]"):
            document = document.setdefault(step[:-2], [{}])[0]
        else:
            document = document.setdefault(step, {})
    return document


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set a field."""
    document, last = parent(document, path), path.rpartition(".")[2]
    document[last.removesuffix("[]")] = [value] if last.endswith("[]") else value


def read(kind: str, document: dict[str, Any]) -> tuple[Any, tuple[Problem, ...], bool]:
    """Return what is read from a document, the problems, and whether they reject it."""
    if kind == "MeshConfig":
        config, problems = mesh_config(document, dotted)
        return config, tuple(problems), any(not problem.notice for problem in problems)
    group = "networking" if kind in {"DestinationRule", "Sidecar"} else "security"
    meta = {"name": "x", "namespace": "shop"}
    whole = {"apiVersion": f"{group}.istio.io/v1", "kind": kind, "metadata": meta, "spec": document}
    parsed: Parsed
    [parsed] = parse(whole, dotted)
    return parsed.fact, parsed.problems, parsed.refused


class Row(NamedTuple):
    kind: str
    path: str
    verdict: str
    example: str
    notes: str


def rows() -> Iterator[Row]:
    for kind, section in SECTION.findall(PAGE.read_text()):
        for path, verdict, example, notes in ROW.findall(section):
            yield Row(kind, path, verdict, example, notes)


def verdict(row: Row) -> str:
    """Return what becomes of a row's field."""
    before = base(row.kind, row.path)
    parent(before, row.path)
    after = copy.deepcopy(before)
    put(after, row.path, yaml.safe_load(row.example))
    known, already, _ = read(row.kind, before)
    fact, problems, rejected = read(row.kind, after)
    new = [problem for problem in problems if problem not in already]
    if any(not problem.notice for problem in new):
        assert row.path.removesuffix("[]").replace("[]", "[0]") in str(new[0])
        return "rejected" if rejected else "unenforced"
    if fact != known:
        assert not new, new
        return "supported"
    [notice] = new
    assert row.path.replace("[]", "[0]") in str(notice)
    assert notice.where
    return "ignored"


ROWS = list(rows())


def test_every_row_of_the_page_is_read() -> None:
    lines = re.findall(r"^\| `", PAGE.read_text(), re.MULTILINE)
    assert len(ROWS) == len(lines) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}.{row.path}")
def test_field_gets_its_verdict(row: Row) -> None:
    assert verdict(row) == row.verdict


@pytest.mark.parametrize(
    "kind", ["DestinationRule", "PeerAuthentication", "AuthorizationPolicy", "MeshConfig"]
)
def test_every_field_that_is_known_has_a_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser names the fields that it knows for each mapping that it reads."""
    known: set[str] = set()
    real = reading.Field.mapping

    def recording(self: reading.Field, words: str = "", *, strict: bool = False) -> reading.Field:
        path = [str(step) for step in self.path if not isinstance(step, int)]
        if isinstance(self.value, dict) and (kind == "MeshConfig" or path[:1] == ["spec"]):
            inner = path if kind == "MeshConfig" else path[1:]
            known.update(".".join((*inner, word)) for word in words.split())
        return real(self, words, strict=strict)

    monkeypatch.setattr(reading.Field, "mapping", recording)
    listed = {row.path.replace("[]", "") for row in ROWS if row.kind == kind}
    for row in ROWS:
        if row.kind == kind:
            document = base(kind, row.path)
            put(document, row.path, yaml.safe_load(row.example))
            read(kind, document)

    def is_covered(path: str) -> bool:
        """Whether there is a row for a field, for something that it contains, or for what contains it."""
        return any(f"{row}.".startswith(f"{path}.") or f"{path}.".startswith(f"{row}.") for row in listed)

    assert not {path for path in known if not is_covered(path)}
    assert len(known) > 3
