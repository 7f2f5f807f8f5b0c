"""The interface of validators."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from xds.snapshot import Resource

log = structlog.get_logger(__name__)


class Validator(Protocol):
    """Decides which resources may be served."""

    async def validate(self, resources: Sequence[Resource]) -> Mapping[Resource, str]:
        """Return the resources that must not be served, each with the reason.

        Resources are validated again with later changes, so the method should remember its results. It must
        not block the event loop. If it judges only some of the resources now, it returns `Refusals`.

        Args:
            resources: Distinct resources, in any order.
        """


class Refusals(dict[Resource, str]):
    """Refused resources, each with the reason.

    Args:
        refused: Refused resources, each with the reason.
        unjudged: Resources that are served although the validator could not judge them.
    """

    def __init__(self, refused: Mapping[Resource, str], unjudged: Iterable[Resource] = ()) -> None:
        super().__init__(refused)
        self.unjudged = frozenset(unjudged)


async def find_refused(validator: Validator, resources: Sequence[Resource]) -> Refusals:
    """Return the resources that must not be served. If the validator fails, these are all resources."""
    try:
        refused = await validator.validate(resources)
    except Exception as error:  # noqa: BLE001 - a validator of the program
        # A log processor that formats tracebacks may print local variables, and so private keys.
        log.error("validator failed", stack=traceback.format_exc())  # noqa: TRY400
        return Refusals(dict.fromkeys(resources, f"the validator failed: {type(error).__name__}: {error}"))
    return refused if isinstance(refused, Refusals) else Refusals(refused)
