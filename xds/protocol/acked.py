"""The resources that a client last ACKed.

A session stores them only where they differ from the current ones or are sent again, so a synced client costs
no memory. Resources are shared by all clients, and an entry is only a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from xds.protocol.events import Acked, Nacked, Response
from xds.protocol.shared import SharedChange
from xds.snapshot import Resource, ResourceSet

if TYPE_CHECKING:
    from xds.protocol.watch import Watch


class Unknown(Enum):
    """Type of `UNKNOWN`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""The client may have the resource from an earlier stream, in a version whose content is not known."""

AckedResource: TypeAlias = Resource | Literal[Unknown.UNKNOWN] | None
"""What a client last ACKed: a resource, None if it has ACKed none or its removal, or `UNKNOWN`."""


class AckedResources:
    """What a client last ACKed of each resource of one type.

    A resource without an entry is ACKed in the current version if it was sent and its response is answered.
    If the response is unanswered, the client has not ACKed any version.
    """

    __slots__ = ("_older", "_shared", "_superseded")

    def __init__(self) -> None:
        self._older: dict[str, AckedResource] = {}
        """What the client last ACKed, where that may differ from the current version."""
        self._shared: SharedChange | None = None
        """Change whose previous versions the client last ACKed."""
        self._superseded: dict[str, set[str]] = {}
        """Names in each unanswered response, by nonce, that the client has ACKed in a later response."""

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> tuple[str, ...]:
        """Return the names of the resources whose last ACKed version may differ from the current one."""
        return (*self._older, *(self._shared.before if self._shared else ()))

    def get(self, watch: Watch, name: str, open_names: Collection[str]) -> AckedResource:
        """Return what the client last ACKed of a resource.

        Args:
            watch: Watch of the type.
            name: Name of the resource.
            open_names: `watch.acks.open_names`.
        """
        if name in self._older:
            return self._older[name]
        if self._shared and (resource := self._shared.before.get(name)):
            return resource
        version = watch.sent.get(name)
        if version is None or name in open_names:
            return _unreported(watch)
        resource = watch.get(name)
        return resource if resource and resource.version == version else UNKNOWN

    def keep(self, watch: Watch, names: Iterable[str]) -> None:
        """Keep what the client last ACKed of resources that are about to be removed or sent."""
        shared = self._shared.before if self._shared else ()
        names = [name for name in names if name in watch.sent and name not in shared]
        open_names = watch.acks.open_names if names else ()
        for name in names:
            if name not in open_names and name not in self._older:
                self._older[name] = self.get(watch, name, open_names)

    def share(self, watch: Watch, change: SharedChange, resources: ResourceSet) -> None:
        """Same as `replace` for a change that many clients share.

        Args:
            watch: Watch of the type, which still has the previous resources.
            change: Change of the resources. The client has their previous versions.
            resources: Next resources of the watch.
        """
        if self._shared or watch.acks.unanswered or not change.before.keys().isdisjoint(self._older):
            self.replace(watch, change.before, resources)
        else:
            self._shared = change

    def replace(self, watch: Watch, names: Collection[str], resources: ResourceSet) -> None:
        """Keep what the client last ACKed of resources that are about to change.

        Args:
            watch: Watch of the type, which still has the previous resources.
            names: Names of the resources that differ.
            resources: Next resources of the watch.
        """
        if not names or not (watch.sent or self._older or self._shared):
            return
        self._spread()
        open_names = watch.acks.open_names
        obsolete = []
        for name in names:
            if name in open_names:
                continue
            acked, resource = self.get(watch, name, open_names), watch.get_from(resources, name)
            if acked is None or acked is UNKNOWN:
                if name not in watch.sent:
                    obsolete.append(name)
            elif resource is None or resource.version != acked.version:
                self._older[name] = acked
            elif watch.sent.get(name) == acked.version:
                obsolete.append(name)
        self._discard(obsolete)

    def record_answer(
        self, watch: Watch, response: Response, event: Acked | Nacked, *, may_have_unreported: bool
    ) -> None:
        """Record what the client has ACKed with its answer to a response.

        Args:
            watch: Watch of the type, which has processed the answer.
            response: Response that the client answered.
            event: Answer.
            may_have_unreported: `watch.may_have_unreported` before the answer, if it is a NACK.
        """
        rejected: tuple[Resource, ...] = ()
        if isinstance(event, Nacked):
            rejected = event.culprits or response.fresh
            self._record_unacked(watch, rejected, UNKNOWN if may_have_unreported else None)
        elif watch.synced and not (watch.lingering or watch.still_subscribed or watch.acks.rejected):
            # All resources are current. This check is cheap, and the loop below is not.
            self._older, self._shared = {}, None
            return
        self._spread()
        ignored = {resource.name for resource in rejected} | self._superseded.pop(response.nonce, set())
        if isinstance(event, Acked):
            self._supersede(watch, response)
        open_names = watch.acks.open_names
        current = []
        for resource in response.fresh:
            name = resource.name
            if name in ignored:
                continue
            desired = watch.get(name)
            is_desired = desired is not None and desired.version == resource.version
            is_latest = watch.sent.get(name) == resource.version
            if is_latest and is_desired and name not in open_names:
                current.append(name)
            else:
                self._older[name] = resource
        self._discard(current)
        if isinstance(event, Acked) or event.culprits:
            self._discard(response.removed)

    def _supersede(self, watch: Watch, response: Response) -> None:
        """Record that the client has ACKed a response before earlier ones, which may still be ACKed.

        Envoy ACKs a response with clusters that are warming after later ones.
        """
        names = {*(resource.name for resource in response.fresh), *response.removed}
        for nonce in takewhile(lambda nonce: int(nonce) < int(response.nonce), watch.acks.unanswered):
            self._superseded.setdefault(nonce, set()).update(names)

    def record_unanswered(self, watch: Watch, response: Response) -> None:
        """Record that the client will not answer a response."""
        self._superseded.pop(response.nonce, None)
        self._record_unacked(watch, response.fresh, _unreported(watch))

    def forget_unsent(self, watch: Watch, names: Iterable[str]) -> None:
        """Forget removed resources that the client neither has nor has ever ACKed."""
        self._discard(
            [name for name in names if name not in watch.sent and self._older.get(name, UNKNOWN) is None]
        )

    def forget_current(self, watch: Watch, names: Iterable[str]) -> None:
        """Forget resources that the client was sent in the current version before, and has ACKed."""
        self._spread()
        self._discard([name for name in names if watch.has_acked(name)])

    def retain(self, covers: Callable[[str], bool]) -> None:
        """Forget the resources that the client no longer subscribes to."""
        self._spread()
        self._discard([name for name in self._older if not covers(name)])

    def _record_unacked(self, watch: Watch, resources: Iterable[Resource], default: AckedResource) -> None:
        self._spread()
        open_names = watch.acks.open_names
        for resource in resources:
            if resource.name in watch.sent or resource.name in open_names:
                self._older.setdefault(resource.name, default)

    def _spread(self) -> None:
        """Store the previous versions of a shared change one by one."""
        if self._shared:
            self._older = {**self._shared.previous, **self._older}
            self._shared = None

    def _discard(self, names: Iterable[str]) -> None:
        """Forget resources that the client has ACKed in the current version, or no longer has."""
        if not self._older:
            return
        for name in names:
            self._older.pop(name, None)
        if not self._older:
            self._older = {}  # A dict does not shrink when entries are removed.


def _unreported(watch: Watch) -> AckedResource:
    """Return what the client last ACKed of a resource that this stream has not got an answer for."""
    return UNKNOWN if watch.may_have_unreported else None
