"""Contents of the versions that a program chooses. One version must never get another content.

Clients keep resources by version. A resource with a version that a client already has is not sent to it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Protocol, TypeAlias

from xds.snapshot import Resource

MAX_VERSIONS = 100_000
"""Maximum number of versions whose contents are remembered."""

_Version: TypeAlias = tuple[str, str, str]
"""Type, name and version of a resource."""


class _Scope(Hashable, Protocol):
    @property
    def kind(self) -> str: ...


class ChosenVersions:
    """The contents of versions that are not made from the content, by the scope that they were set in.

    Different nodes may have different contents of one version, and so may different groups.
    """

    def __init__(self) -> None:
        self._contents: dict[_Version, dict[str, dict[_Scope, str]]] = {}
        """Hashes of the contents, by kind of scope and by scope."""

    def add(self, resources: Iterable[tuple[_Scope, Resource]]) -> None:
        """Remember the chosen versions among the resources of a change. The oldest versions are forgotten.

        Raises:
            ValueError: Another content of a resource has the same version, and a node may have that.
        """
        added = ChosenVersions()
        for scope, resource in resources:
            content = resource.content_version
            if content != resource.version:
                version = (resource.type_url, resource.name, resource.version)
                if self._conflicts(version, scope, content) or added._conflicts(version, scope, content):
                    raise ValueError(
                        f"{resource.description}: version {resource.version!r} already has another content: "
                        "pass a new version, or omit it to derive it from the content"
                    )
                added._contents.setdefault(version, {}).setdefault(scope.kind, {})[scope] = content
        for version, kinds in added._contents.items():
            for kind, contents in kinds.items():
                self._contents.setdefault(version, {}).setdefault(kind, {}).update(contents)
        while len(self._contents) > MAX_VERSIONS:
            del self._contents[next(iter(self._contents))]

    def _conflicts(self, version: _Version, scope: _Scope, content: str) -> bool:
        """Whether another content has the version in this scope, or in a scope of another kind."""
        kinds: Mapping[str, Mapping[_Scope, str]] = self._contents.get(version, {})
        return kinds.get(scope.kind, {}).get(scope, content) != content or any(
            other != content
            for kind, contents in kinds.items()
            if kind != scope.kind
            for other in contents.values()
        )
