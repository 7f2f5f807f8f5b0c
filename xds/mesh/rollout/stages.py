"""A served value, and the values that proxies may still use until they have ACKed it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from xds.mesh.model.objects import Mode
from xds.mesh.policy.mtls import Send

T = TypeVar("T")

BOTH = (Send.PLAINTEXT, Send.MTLS)
"""All that clients can send."""

ACCEPTED_SENDS: Mapping[Mode, frozenset[Send]] = {
    Mode.DISABLE: frozenset({Send.PLAINTEXT}),
    Mode.PERMISSIVE: frozenset(BOTH),
    Mode.STRICT: frozenset({Send.MTLS}),
}
"""What a server accepts in each mode. The application's own TLS counts as plaintext."""

MODE_ACCEPTING = {sends: mode for mode, sends in ACCEPTED_SENDS.items()}
"""The mode in which a server accepts exactly these sends."""


@dataclass(frozen=True, slots=True)
class Staged(Generic[T]):
    """What proxies are served, and what they may still use.

    `propose` and `widen` start a wait for ACKs of a generation; `confirm` and `settle` end it.
    """

    current: T
    """The value that is served."""
    generation: int
    """Once this generation is ACKed, only `current` can be active."""
    possible: tuple[T, ...]
    """The values that may be active, including `current`."""
    since: float = field(default=0.0, compare=False)
    """When `generation` was first served, in seconds of the event loop's clock."""
    acked_at: float | None = field(default=None, compare=False)
    """When all proxies had ACKed `generation`; None while some lag."""
    is_change: bool = field(default=True, compare=False)
    """Whether the wait began because the served value changed.

    False if `widen` began it: proxies are served the same value, but the planner does not know what they use.
    """

    @property
    def is_settled(self) -> bool:
        """Whether only the current value can be active."""
        return len(self.possible) == 1

    def propose(self, value: T, generation: int, now: float) -> Staged[T]:
        """Return the stage that serves a value from `generation` on; the same stage if it already does."""
        if value == self.current:
            return self
        return Staged(value, generation, _united(self.possible, (value,)), now)

    def widen(self, values: Collection[T], generation: int, now: float) -> Staged[T]:
        """Return the stage with more possible values, until proxies have ACKed `generation`.

        `is_change` remains true only if the stage is already waiting for a changed value.
        """
        possible = _united(self.possible, values)
        if possible == self.possible:
            return self
        is_change = self.is_change and not self.is_settled
        return Staged(self.current, generation, possible, now, is_change=is_change)

    def confirm(self, *, is_acked: bool, now: float, delay: float = 0.0) -> Staged[T]:
        """Return the stage, settled if proxies ACKed its generation at least `delay` seconds ago."""
        if self.is_settled:
            return self
        acked_at = (now if self.acked_at is None else self.acked_at) if is_acked else None
        if acked_at is not None and now >= acked_at + delay:
            return self.settle()
        return self if acked_at == self.acked_at else replace(self, acked_at=acked_at)

    def settle(self) -> Staged[T]:
        """Return the stage with only the current value: proxies use no other, or are skipped."""
        # Not `replace`, which is slow: a mesh-wide change settles each port.
        return Staged(self.current, self.generation, (self.current,), self.since, None, self.is_change)


def _united(known: tuple[T, ...], more: Collection[T]) -> tuple[T, ...]:
    return (*known, *(value for value in more if value not in known))
