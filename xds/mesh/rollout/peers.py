"""What replicas of a control plane tell each other of ports that are on their way, and what each may conclude from it.

Each replica knows only how far its own proxies are. So each publishes a `Report`: of every port that is on its way with
anybody, what a listener of that pod may accept if it is, or comes to be, connected to this replica, and what this replica's
clients may be sending to it (`Stand`). Reports arrive late, and are all written to one place that keeps them in one order.

Two acts can harm a request that another replica's proxies make: to close a listener to what was accepted (a lock, say), and
to have clients begin to send something else. Whoever is about to do either

1. publishes that it may be so already: the report is a superset of what is in force, at any time;
2. waits until it reads back its own report, and with it all that others wrote before;
3. does it if no report that it has read then is in the way: nobody's clients may send what is to be refused; everybody's
   listeners take what is to be sent.

Of two such acts that exclude each other, the report of one was written first, and whoever wrote the other one has read it
before the act: both never happen. What opens a listener needs nobody's consent. Reports that another one may have
overtaken count as well: a write whose answer is missing (`Exchange`). docs/adr/0015 has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xds.mesh.model.objects import Mode, PortKey
from xds.mesh.policy.mtls import Send

TAKES: Mapping[Mode, frozenset[Send]] = {
    Mode.DISABLE: frozenset({Send.PLAINTEXT}),
    Mode.PERMISSIVE: frozenset({Send.PLAINTEXT, Send.MTLS}),
    Mode.STRICT: frozenset({Send.MTLS}),
}
"""What a server accepts in each mode. TLS of the application's own is passed on where plaintext is, and counts as that."""


class Stand(NamedTuple):
    """What a replica says of a port."""

    open: bool
    """Whether it is on its way there; else it is told because it is on its way elsewhere."""
    modes: frozenset[Mode]
    sends: frozenset[Send]


NOT_HERE = Stand(open=False, modes=frozenset(), sends=frozenset())
"""Of a pod that is not known."""


class Report(NamedTuple):
    """What a replica says of all ports that are on their way with anybody."""

    number: int
    """Grows with each report of a replica."""
    view: str
    """Stands for all DestinationRules, and the settings by which they count, that are known there."""
    stands: Mapping[PortKey, Stand] | None
    """None: there is too much on its way to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What other replicas say of the proxies that are connected to them; as it is, that there are none."""

    said: tuple[Mapping[PortKey, Stand], ...] | None = None
    """What others may be reading of us, in each version that they may have; None: there is nobody to be told anything."""
    cut_off: bool = False
    """Whether it is not certain that others still reckon with us, nor that we hear from them."""
    rules_said: bool = True
    """Whether others can know by now that we know of all DestinationRules that we know of."""
    others: Mapping[str, Mapping[PortKey, Stand] | None] = field(default_factory=dict)
    """By name of a replica; None: it has too much to tell."""
    apart_in_rules: frozenset[str] = frozenset()
    """Which of these have not seen the same DestinationRules, so that it is not known what their clients may be sending."""
    opened: frozenset[PortKey] = frozenset()
    """What is on its way with any of them."""

    def refusing(self, key: PortKey, send: Send) -> list[str]:
        """Return whose listener of a port may refuse what is sent, or is not known not to."""
        return self._who(key, lambda stand: not all(send in TAKES[mode] for mode in stand.modes))

    def sending(self, key: PortKey, refused: Collection[Send]) -> list[str]:
        """Return whose clients may be sending to a port what is to be refused, or are not known not to."""
        return self._who(key, lambda stand: not stand.sends.isdisjoint(refused))

    def apart(self, key: PortKey, mode: Mode, send: Send) -> list[str]:
        """Return who is not, or is not known to be, where nothing but this is in force."""
        return self._who(key, lambda stand: not (stand.modes <= {mode} and stand.sends <= {send}))

    def silent(self, key: PortKey) -> list[str]:
        """Return who says nothing of a port."""
        return [name for name, stands in self.others.items() if stands is None or key not in stands]

    def modes(self, key: PortKey) -> set[Mode]:
        """Return what may be in force at others', as far as is known."""
        stands = [each[key] for each in self.others.values() if each and key in each]
        return {mode for stand in stands for mode in stand.modes}

    def may_serve(self, key: PortKey, mode: Mode) -> bool:
        """Whether others can know that this may be in force here."""
        return self.said is None or self._knows(lambda said: key in said and mode in said[key].modes)

    def may_tell(self, key: PortKey, send: Send) -> bool:
        """Whether others can know that our clients may be sending this."""
        return self.said is None or self._knows(lambda said: key in said and send in said[key].sends)

    def _knows(self, knows: Callable[[Mapping[PortKey, Stand]], bool]) -> bool:
        return not self.cut_off and bool(self.said) and all(knows(each) for each in self.said or ())

    def _who(self, key: PortKey, is_in_the_way: Callable[[Stand], bool]) -> list[str]:
        return [
            name
            for name, stands in self.others.items()
            if stands is None
            or key not in stands
            or name in self.apart_in_rules
            or is_in_the_way(stands[key])
        ]
