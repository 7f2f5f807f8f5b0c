"""IP versions (families) of addresses."""

from __future__ import annotations

from typing import Literal, TypeAlias

Family: TypeAlias = Literal[4, 6]

LOCALHOST: dict[Family, str] = {4: "127.0.0.1", 6: "::1"}
"""Loopback address of each IP version."""


def family_of(address: str) -> Family:
    """Return the IP version of an address in canonical form; 4 for an empty text."""
    return 6 if ":" in address else 4
