"""Assertions about who may connect to which servers, as a user writes them for `xds prove`."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from xds.mesh.model.authorization import Condition, Pattern


class Claim(StrEnum):
    """What an assertion says about its servers."""

    ONLY = "only"
    """No client but those of `from` can connect."""
    DENY = "deny"
    """No client of `from` can connect; without `from`, no client at all."""
    ENCRYPTED = "encrypted"
    """No client can connect in plaintext."""
    STRICT = "strict"
    """A sidecar enforces mode STRICT on every port."""

    @property
    def is_about_clients(self) -> bool:
        """Whether it distinguishes clients by their identity."""
        return self in {Claim.ONLY, Claim.DENY}


class Servers(NamedTuple):
    """An item of `to`: ports of Services, or all ports of the pods in namespaces."""

    services: tuple[str, ...] = ()
    """SERVICE.NAMESPACE or SERVICE.NAMESPACE:PORT."""
    namespaces: tuple[Pattern, ...] = ()
    """Namespaces of the pods; empty for all."""
    excluded: tuple[Pattern, ...] = ()
    """Namespaces whose pods are left out."""


class Assertion(NamedTuple):
    """An assertion about the mesh."""

    name: str
    """Its name."""
    claim: Claim
    """What it says."""
    sources: tuple[tuple[Condition, ...], ...]
    """Conditions of each item of `from`, as in a rule of an AuthorizationPolicy; empty for any client."""
    servers: tuple[Servers, ...]
    """Each item of `to`."""
    origin: str = ""
    """Place where it was read: `FILE:LINE`."""
