"""A value that proxies change to, step by step, and what may be active in the meantime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from xds.mesh.model.objects import Mode
from xds.mesh.policy.mtls import Send

T = TypeVar("T")

BOTH = (Send.PLAINTEXT, Send.MTLS)

ACCEPTED_SENDS: Mapping[Mode, frozenset[Send]] = {
    Mode.DISABLE: frozenset({Send.PLAINTEXT}),
    Mode.PERMISSIVE: frozenset(BOTH),
    Mode.STRICT: frozenset({Send.MTLS}),
}
"""What a server accepts in each mode. The application's own TLS counts as plaintext."""

MODE_ACCEPTING = {sends: mode for mode, sends in ACCEPTED_SENDS.items()}


@dataclass(frozen=True, slots=True)
class Staged(Generic[T]):
    """What proxies are served, and what they may still use."""

    current: T
    """The value that is served."""
    generation: int
    """Once this generation is ACKed, only `current` can be active."""
    possible: tuple[T, ...]
    """The values that may be active, including `current`."""
    since: float = field(default=0.0, compare=False)
    """When `generation` was first served, in seconds of the event loop's clock."""
    acked_at: float | None = field(default=None, compare=False)
    """When the last ACK arrived; None while proxies lag."""
    is_change: bool = field(default=True, compare=False)
    """True if the served value changed; False if it is only unknown what proxies use."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing but the current value is active."""
        return len(self.possible) == 1

    def propose(self, value: T, generation: int, now: float) -> Staged[T]:
        """Serve another value from `generation` on."""
        if value == self.current:
            return self
        return Staged(value, generation, _united(self.possible, (value,)), now)

    def widen(self, values: Collection[T], generation: int, now: float) -> Staged[T]:
        """Count more values as possible, until proxies have ACKed `generation`."""
        possible = _united(self.possible, values)
        if possible == self.possible:
            return self
        is_change = self.is_change and not self.is_settled
        return Staged(self.current, generation, possible, now, is_change=is_change)

    def confirm(self, *, is_acked: bool, now: float, delay: float = 0.0) -> Staged[T]:
        """Settle `delay` seconds after proxies have ACKed the generation."""
        if self.is_settled:
            return self
        acked_at = (now if self.acked_at is None else self.acked_at) if is_acked else None
        if acked_at is not None and now >= acked_at + delay:
            return self.settled()
        return self if acked_at == self.acked_at else replace(self, acked_at=acked_at)

    def settled(self) -> Staged[T]:
        """Return the same value, as the only one that is active."""
        return replace(self, possible=(self.current,), acked_at=None)


def _united(known: tuple[T, ...], more: Collection[T]) -> tuple[T, ...]:
    return (*known, *(value for value in more if value not in known))
