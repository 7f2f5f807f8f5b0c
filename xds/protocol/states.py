"""State of each resource of one type on one stream: the states, and the events that change them.

Most resources need none. The client has the version in `Watch.sent`, which streams share (ADR 21), and an
unanswered response lists what the client has yet to ACK. A name is in `States.due` while its resource may
have to be sent, and has a `Record` while anything else about it is exceptional. The state has three parts.

Is the resource sent with the next response? (`due`)

    -            no
    CHANGED      if the client has another version
    AWAITED      even if unchanged, because the client waits for it, unless the client rejects it
    FORCED       even if unchanged, because the client may have lost it, or rejected it because of another one

What is served if the snapshot does not have it? (`lingering`, `is_still_subscribed`, `is_empty`: any of them)

    -            nothing
    LINGERING    the removed resource, until no other resource uses it
    SUBSCRIBED   nothing, but the client still subscribes to the released resource and may use it
    EMPTY        an assignment without endpoints, because a cluster waits for one (SotW)

Did the client reject it? (`causes`, `error`)

    -            no
    FAILED       yes, but it may be sent; the error is kept until an ACK
    BLOCKED      it was rejected together with its causes; it is sent again once one of them changes
    ABSENT       as BLOCKED, and a cause has changed, but it does not exist; it is sent once it exists again

Each event is a method of `States`. In parentheses are the states that it applies to, if not to all.

    event          sent                   served                   rejected
    check          (-) CHANGED
    wait           (-, CHANGED) AWAITED
    force          FORCED
    skip           -
    change         (-) CHANGED
      its effects  FORCED                                          (BLOCKED, ABSENT) FAILED
    linger                                LINGERING
    restore                               (LINGERING) -
    release        like change            (LINGERING) SUBSCRIBED   -
    send           -                      (SUBSCRIBED) -           (BLOCKED, ABSENT) FAILED
    remove         -                      (LINGERING) -
    reject                                                         (-) FAILED
    block          (AWAITED) CHANGED                               BLOCKED
    ack                                                            (FAILED) -
    unsubscribe    -                      (SUBSCRIBED, EMPTY) -    -, and its effects like change

- The effects of a change are on the other resources that were rejected together with the changed one. Those
  that do not exist become ABSENT instead of FAILED, and are FORCED when they exist. The changed resource
  stays BLOCKED until it is sent.
- A resource is no longer EMPTY once it is sent itself.
- After `release`, the resource is SUBSCRIBED only if the client was sent it and subscribes to its name.
- FORCED also sends a BLOCKED resource, for example if the client subscribes to it again.

Four classes change records on their own. `Watch` ends SUBSCRIBED if a resource exists again unchanged, and
writes `retried`. `SotwWatch.add_empty` makes resources EMPTY. `FullStateWatch` chooses what is BLOCKED and
`withheld`, because its responses cannot omit a resource. `Session` sets how long a resource is LINGERING.
The resources of a change that `SentVersions` is behind are not in `States.due`: they are CHANGED, AWAITED or
FORCED until `DeltaWatch._spread` adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from enum import IntEnum
from math import inf

from xds.protocol.acks import Rejection
from xds.protocol.events import Nacked, Response
from xds.snapshot import Resource

_ABSENT: frozenset[str] = frozenset()
"""Placeholder for the causes of a resource that must be retried, but does not exist at the moment."""


class Due(IntEnum):
    """Reason why a resource may have to be sent. The greatest reason counts."""

    CHANGED = 0
    """The client may have another version."""
    AWAITED = 1
    """The client waits for the resource. It is sent even if unchanged, unless the client rejects it."""
    FORCED = 2
    """The client may have lost the resource. It is sent even if unchanged."""


@dataclass(slots=True)
class Lingering:
    """A removed resource that the client keeps until the resources that use it are removed."""

    resource: Resource | None
    """Resource; None if the client has it from an earlier stream and only its name is known."""
    since: float | None = None
    """Time when the session found that no other lingering resource uses this resource."""
    until: float | None = None
    """Time when the session releases the resource even if it is still used; None if not scheduled."""


@dataclass(slots=True)
class Record:
    """What is exceptional about a resource. The defaults mean that nothing is."""

    lingering: Lingering | None = None
    """Removed resource that the client keeps for now."""
    is_empty: bool = False
    """Whether an empty assignment is served instead of a resource that does not exist."""
    is_still_subscribed: bool = False
    """Whether the resource was removed, but the client subscribes to it, and may therefore still use it.

    Always False for wildcard types.
    """
    causes: frozenset[str] | None = None
    """All names that were rejected together with this one. Empty if it is ABSENT; None if it may be sent.

    One invalid resource can make a client reject a whole response, so all its resources are possible causes.
    The rejection of a smaller response narrows them down.
    """
    withheld: str = ""
    """Full-state types only: version that the client rejected individually, which is not sent again."""
    retried: str = ""
    """Version that was sent again because others in its response had caused the NACK; reset by an ACK."""
    error: Rejection | None = None
    """Last rejection, until the resource is ACKed or removed."""
    is_unacked: bool = False
    """Whether the client has rejected the resource and never ACKed any version of it."""
    outdated_since: float = -inf
    """Time of the first rejection, while the client still has an older version; minus infinity otherwise."""


_NOTHING = Record()


class States:
    """States of the resources of one type on one stream. See the module's table."""

    __slots__ = ("due", "last_error", "records")

    def __init__(self) -> None:
        self.due: dict[str, Due] = {}
        """Names that may have to be sent, in order."""
        self.records: dict[str, Record] = {}
        """What is exceptional, by name."""
        self.last_error: Rejection | None = None
        """Last rejection; None once all rejected resources are ACKed or removed."""

    def of(self, name: str) -> Record:
        """Return the record of a name, for reading."""
        return self.records.get(name, _NOTHING)

    def edit(self, name: str) -> Record:
        """Return the record of a name, for writing."""
        record = self.records.get(name)
        if record is None:
            record = self.records[name] = Record()
        return record

    @property
    def blocked(self) -> list[str]:
        """Names of the rejected resources that were not sent again."""
        return [name for name, record in self.records.items() if record.causes is not None]

    @property
    def outdated_since(self) -> float:
        """Time when the last resource became outdated; minus infinity if none is.

        A resource is outdated if the client rejected an update and uses an older version. The older version
        cannot refer to resources that were first sent after this time. Resources that the client has never
        ACKed are not outdated, because the client has no version of them.
        """
        return max((record.outdated_since for record in self.records.values()), default=-inf)

    # --- events ---------------------------------------------------------------------------------------------

    def check(self, names: Iterable[str]) -> None:
        """Compare resources with what the client has when the next response is composed."""
        if self.due:
            for name in names:
                self.due.setdefault(name, Due.CHANGED)
        else:
            self.due = dict.fromkeys(names, Due.CHANGED)

    def wait(self, names: Iterable[str]) -> None:
        """Handle names that the client waits for, although it may have the current version."""
        for name in names:
            self.due[name] = max(self.due.get(name, Due.AWAITED), Due.AWAITED)

    def force(self, names: Iterable[str]) -> None:
        """Handle resources that the client may not have, although it was sent the current version."""
        for name in names:
            self.due[name] = Due.FORCED

    def change(self, names: Collection[str], exists: Callable[[str], bool]) -> None:
        """Handle resources that have changed or were removed. Retry those that were rejected with them."""
        self.check(names)
        if not (self.records and names):
            return
        changed = frozenset(names)
        groups = {causes for record in self.records.values() if (causes := record.causes) is not None}
        hits = {causes for causes in groups if not causes.isdisjoint(changed)}  # Many have the same causes.
        for name, record in self.records.items():
            if (causes := record.causes) is None or not (name in changed or causes in hits):
                continue
            if not exists(name):
                if len(causes) > 1:
                    record.causes = _ABSENT
            elif not causes or name not in changed:
                # A changed one stays BLOCKED until it is sent, because the change may be reverted before.
                record.causes = None
                self.due[name] = Due.FORCED
        self.tidy()

    def restore(self, names: Iterable[str]) -> None:
        """Handle resources that no longer linger: they exist again."""
        for name in names:
            if name in self.records:
                self.records[name].lingering = None
        self.tidy()

    def linger(self, name: str, resource: Resource | None) -> None:
        """Handle a removed resource that the client keeps; `resource` is None if only its name is known."""
        self.edit(name).lingering = Lingering(resource)

    def release(
        self, names: Collection[str], in_use: Callable[[str], bool], exists: Callable[[str], bool]
    ) -> None:
        """Handle lingering resources that are no longer served. Retry those that were rejected with them."""
        for name in names:
            record = self.records[name]
            record.lingering, record.is_still_subscribed = None, record.is_still_subscribed or in_use(name)
        self.change(names, exists)
        for name in names:
            if name in self.records:
                self.records[name].causes = None
        self.ack(names)

    def send(self, names: Collection[str], served: Container[str]) -> None:
        """Handle resources in a response. Those not in `served` are empty assignments or linger."""
        self.skip(names)
        if not self.records:
            return
        for name in names:
            if record := self.records.get(name):
                record.is_still_subscribed, record.causes = False, None
                record.is_empty = record.is_empty and name not in served
        self.tidy()

    def skip(self, names: Iterable[str]) -> None:
        """Handle names that need not be sent."""
        for name in names:
            self.due.pop(name, None)

    def remove(self, names: Collection[str]) -> None:
        """Handle names whose removal was sent."""
        self.skip(names)
        self.restore(names)

    def ack(self, names: Iterable[str]) -> None:
        """Handle resources that the client ACKed, or that were removed."""
        for name in names if self.records else ():
            if record := self.records.get(name):
                record.error, record.is_unacked, record.outdated_since = None, False, -inf
        self.tidy()
        if not any(record.error for record in self.records.values()):
            self.last_error = None

    def abandon(self, response: Response) -> None:
        """Handle a response that the client will not answer. It may have accepted the resources."""
        for resource in response.fresh if self.records else ():
            if resource.name in self.records:
                self.records[resource.name].is_unacked = False

    def reject(self, event: Nacked, now: float, new: Container[str]) -> None:
        """Record the error of a NACK. `new` are the names that the client has never ACKed.

        If the client rejected resources individually, it accepted the others.
        """
        suspects = {resource.name for resource in event.suspects}
        if event.culprits:
            self.ack(resource.name for resource in event.fresh if resource.name not in suspects)
        for resource in event.culprits or event.fresh:
            record = self.edit(resource.name)
            record.is_unacked = resource.name in suspects and (record.is_unacked or resource.name in new)
            if not record.is_unacked and record.outdated_since == -inf:
                record.outdated_since = now

        def rejection(of: Nacked | Resource) -> Rejection:
            return Rejection(
                version=of.version, code=event.code, message=event.message, at=now, sources=of.sources
            )

        self.last_error = rejection(event)
        for resource in event.suspects:
            self.edit(resource.name).error = rejection(resource)

    def block(self, names: frozenset[str]) -> None:
        """Do not send rejected resources again until one of them changes. They were rejected together."""
        for name in names:
            record = self.edit(name)
            causes = names if record.causes is None else record.causes
            nested = causes <= names or names <= causes
            record.causes = min(causes, names, key=len) if nested else causes | names
            if self.due.get(name) is Due.AWAITED:
                self.due[name] = Due.CHANGED

    def unsubscribe(
        self, covers: Callable[[str], bool], names: Container[str], exists: Callable[[str], bool]
    ) -> None:
        """Forget the resources that a subscription to `names` does not cover. The client may delete them."""
        # The resources that were rejected with them may be valid.
        self.change([name for name in self.blocked if not covers(name)], exists)
        for name, record in self.records.items():
            if not covers(name):
                self.records[name] = Record(lingering=record.lingering)
            elif name not in names:
                record.is_still_subscribed = record.is_empty = False
        self.due = {name: due for name, due in self.due.items() if covers(name)}
        self.ack(())

    def tidy(self) -> None:
        """Delete the records in which nothing is exceptional."""
        if self.records:
            self.records = {name: record for name, record in self.records.items() if record != _NOTHING}
