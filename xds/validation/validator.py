"""The interface of validators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from xds.snapshot import Resource


class Validator(Protocol):
    """Decides which resources may be served."""

    async def validate(self, resources: Sequence[Resource]) -> Mapping[Resource, str]:
        """Return the resources that must not be served, each with the reason.

        Resources are validated again with later changes, so the method should remember its results. It must
        not block the event loop.

        Args:
            resources: Distinct resources, in any order.
        """
