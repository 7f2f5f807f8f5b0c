"""Each registered kind is granted to the control plane and described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xds.mesh.kube.packaged import load_packaged
from xds.mesh.parse import KINDS, Kind, Watch

WATCHED = [kind for kind in KINDS if kind.watch is not Watch.NEVER]


@pytest.fixture(scope="module")
def granted() -> set[tuple[str, str, str]]:
    """API group, plural and verb of what the ClusterRole grants."""
    [role] = [
        obj
        for _, obj in load_packaged("install")
        if (obj["kind"], obj["metadata"]["name"]) == ("ClusterRole", "xds")
    ]
    return {
        (group, plural, verb)
        for rule in role["rules"]
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for plural in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("kind", WATCHED, ids=lambda kind: kind.name)
def test_watched_kind_is_granted(kind: Kind, granted: set[tuple[str, str, str]]) -> None:
    assert {(kind.group, kind.plural, verb) for verb in ("list", "watch")} <= granted


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.has_status], ids=lambda kind: kind.name)
def test_status_of_a_kind_is_granted(kind: Kind, granted: set[tuple[str, str, str]]) -> None:
    assert (kind.group, f"{kind.plural}/status", "patch") in granted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind_is_described(kind: Kind) -> None:
    assert re.search(rf"\b{kind.name}\b", Path("docs/reference/kinds.md").read_text())
