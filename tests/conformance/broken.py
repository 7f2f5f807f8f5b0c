"""The library's server with one fault each: its sessions change requests or responses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from typing import Any, ClassVar

from google.protobuf.message import DecodeError

from xds.codec import message_class
from xds.protocol.session import Session, Variant
from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, ROUTE, VIRTUAL_HOST
from xds.testing.messages import request_class, response_class


class Broken(Session):
    """A session that changes messages. This one changes none."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.is_delta = variant is Variant.DELTA
        self._request, self._response = request_class(variant), response_class(variant)
        self.last: Any = None
        self.again: list[Any] = []

    def receive(self, message: bytes, now: float) -> Any:
        request: Any = self._request.FromString(message)
        self.change_request(request)
        return super().receive(request.SerializeToString(), now)

    @property
    def is_idle(self) -> bool:
        return not self.again and super().is_idle

    def next(self, now: float) -> bytes | None:
        if self.again:
            return self.again.pop().SerializeToString()
        message = super().next(now)
        if message is None:
            return None
        self.last = self._response.FromString(message)
        self.change_response(self.last)
        return self.last.SerializeToString()

    def change_request(self, request: Any) -> None:
        """Change a request before the session receives it."""

    def change_response(self, response: Any) -> None:
        """Change a response before the client receives it."""


class Mortal(Broken):
    """A session that can stop sending responses."""

    is_dead = False

    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        return None if self.is_dead else message


class IgnoresTheType(Broken):
    """A request is for the stream's type; without one, for clusters if it has no type."""

    def change_request(self, request: Any) -> None:
        request.type_url = self._type_url or request.type_url or CLUSTER


class DiesOfUnknownTypes(Mortal):
    def change_request(self, request: Any) -> None:
        self.is_dead |= request.type_url.endswith("Unknown")


class DiesOfForeignNonces(Mortal):
    def change_request(self, request: Any) -> None:
        self.is_dead |= bool(request.response_nonce) and not self.last


class IgnoresStaleSubscriptions(Broken):
    """Delta: names are ignored in a request with the nonce of an older response."""

    def change_request(self, request: Any) -> None:
        if request.response_nonce and self.last and request.response_nonce != self.last.nonce:
            del request.resource_names_subscribe[:]


class IgnoresNamesInAnswers(Broken):
    """An ACK or NACK does not change the subscription."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.nonces, self.names = {""}, defaultdict[str, list[str]](list)

    def change_request(self, request: Any) -> None:
        is_answer = request.response_nonce not in self.nonces
        self.nonces.add(request.response_nonce)
        if self.is_delta and is_answer:
            del request.resource_names_subscribe[:]
        elif not self.is_delta and is_answer:
            request.resource_names[:] = self.names[request.type_url]
        elif not self.is_delta:
            self.names[request.type_url] = [*request.resource_names]


class SendsUnchanged(Broken):
    """The last response is sent again when the resources change, but not those that the client has."""

    def serve(self, snapshot: Any) -> None:
        super().serve(snapshot)
        if self.last:
            watch = self._watches[self.last.type_url]
            served = {name: watch.get(name) for name in watch.sent}
            if all(item and item.version == watch.sent[name] for name, item in served.items()):
                self.again.append(self.last)


class IgnoresNewNames(Broken):
    """SotW: a client cannot add names to its first request."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.first: dict[str, list[str]] = {}

    def change_request(self, request: Any) -> None:
        first = self.first.setdefault(request.type_url, [*request.resource_names])
        request.resource_names[:] = [name for name in request.resource_names if name in first]


class AnswersRequestsForAll(Broken):
    """SotW: a request that names only some of the resources gets no response."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: dict[str, set[str]] = {}

    def change_request(self, request: Any) -> None:
        self.names[request.type_url] = {*request.resource_names}

    def next(self, now: float) -> bytes | None:
        if (message := super().next(now)) is None:
            return None
        names, kind = self.names[self.last.type_url], self.last.type_url
        missing = {*self._snapshot.types.get(kind, ())} - names
        return None if names and "*" not in names and missing else message


class AnswersFewerNames(Broken):
    names: frozenset[str] = frozenset()

    def change_request(self, request: Any) -> None:
        before, self.names = self.names, frozenset(request.resource_names)
        if self.last and self.names < before:
            self.again.append(self.last)


class IgnoresReturningNames(Broken):
    """A client that has unsubscribed from a name cannot subscribe to it again."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: set[str] = set()
        self.left: set[str] = set()

    def concerns(self, name: str) -> bool:
        return name != "*"

    def change_request(self, request: Any) -> None:
        if self.is_delta:
            self.left.update(filter(self.concerns, request.resource_names_unsubscribe))
            names = request.resource_names_subscribe
        else:
            names = request.resource_names
            self.left.update(filter(self.concerns, self.names - {*names}))
            self.names = {*names}
        names[:] = [name for name in names if name not in self.left]


class LetsNobodyReturnToTheWildcard(IgnoresReturningNames):
    def concerns(self, name: str) -> bool:
        return name == "*"


class ForgetsMissingNames(Broken):
    """SotW: names without a resource are forgotten."""

    def change_request(self, request: Any) -> None:
        if self._snapshot:
            resources = self._snapshot.of(request.type_url)
            names = [name for name in request.resource_names if name == "*" or name in resources]
            request.resource_names[:] = names


class HasAWildcardForVirtualHosts(Broken):
    def change_request(self, request: Any) -> None:
        if request.type_url == VIRTUAL_HOST and not request.response_nonce and not self.last:
            request.resource_names_subscribe[:] = request.resource_names_subscribe or ["routes/alpha"]


class DiesOfKnownVersions(Mortal):
    """SotW: a client that reports a version on a new stream gets nothing."""

    def change_request(self, request: Any) -> None:
        self.is_dead |= bool(request.version_info) and not request.response_nonce


class RemovesUnrequested(Broken):
    """Delta: reported resources that the client does not subscribe to are removed."""

    unrequested: frozenset[str] = frozenset()

    def change_request(self, request: Any) -> None:
        if request.resource_names_subscribe and "omega" in request.initial_resource_versions:
            self.unrequested = frozenset({"omega"} - {*request.resource_names_subscribe})

    def change_response(self, response: Any) -> None:
        response.removed_resources.extend(self.unrequested)
        self.unrequested = frozenset()


class SendsNoAssignmentAgain(Broken):
    """An assignment that the client has is sent only if the client asks for it."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: list[str] = []
        self.content: list[bytes] = []
        self.has_asked = False

    def change_request(self, request: Any) -> None:
        if request.type_url == ENDPOINT:
            names = [*(request.resource_names_subscribe if self.is_delta else request.resource_names)]
            self.has_asked |= bool(names) if self.is_delta else names != self.names
            self.names = names

    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        if message is None or self.last.type_url != ENDPOINT:
            return message
        content = [item.SerializeToString() for item in self.last.resources]
        is_repeated = content == self.content and not self.has_asked
        self.content, self.has_asked = content, False
        return None if is_repeated else message


class SendsRoutesWithListeners(Broken):
    routes: Any = None

    def change_response(self, response: Any) -> None:
        if response.type_url == ROUTE:
            self.routes = response
        elif response.type_url == LISTENER and self.routes:
            self.again.append(self.routes)


class SendsTypesInReverse(Broken):
    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options, patience=0.0)
        self._watches = dict(reversed(self._watches.items()))


class WaitsForNoAcks(Broken):
    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options, patience=0.0)


class RemovesAtOnce(Broken):
    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options, grace=0.0)


class ServesTheNewestStreamOnly(Mortal):
    newest: ClassVar[dict[str, Mortal]] = {}

    def change_request(self, request: Any) -> None:
        if request.node.id:
            self.newest.setdefault(request.node.id, self).is_dead = True
            self.newest[request.node.id], self.is_dead = self, False


class LimitsStreams(Mortal):
    streams: ClassVar[defaultdict[str, int]] = defaultdict(int)

    def change_request(self, request: Any) -> None:
        if request.node.id and not self.last:
            self.streams[request.node.id] += 1
            self.is_dead |= self.streams[request.node.id] > 8


class DiesOfUnknownNodes(Mortal):
    def serve(self, snapshot: Any) -> None:
        super().serve(snapshot)
        self.is_dead |= not self.last and not any(snapshot.types.values())


class DiesWithOthers(Mortal):
    """A malformed request stops all streams of the server."""

    is_broken: ClassVar[set[str]] = set()

    def receive(self, message: bytes, now: float) -> Any:
        try:
            request_class(self._variant).FromString(message)
        except DecodeError:
            self.is_broken.add("all")
        self.is_dead |= bool(self.is_broken)
        return super(Broken, self).receive(message, now)


class ResendsOnNack(Broken):
    def change_request(self, request: Any) -> None:
        if request.HasField("error_detail"):
            self.again.append(self.last)


class ResendsOnNackOfAChange(Broken):
    """Only the NACK of a response that follows an ACK gets the response again."""

    has_acked = False

    def change_request(self, request: Any) -> None:
        if request.response_nonce and not request.HasField("error_detail"):
            self.has_acked = True
        elif request.HasField("error_detail") and self.has_acked:
            self.again.append(self.last)


class AnswersAcks(Broken):
    acked = ""

    def change_request(self, request: Any) -> None:
        if not self.last:
            return
        if request.response_nonce not in ("", self.acked) and not request.HasField("error_detail"):
            self.acked = request.response_nonce
            self.again.append(self.last)


class RepeatsNonces(Broken):
    nonce = ""

    def change_request(self, request: Any) -> None:
        if request.response_nonce:
            request.response_nonce = self.nonce

    def change_response(self, response: Any) -> None:
        self.nonce, response.nonce = response.nonce, "1"


class AcceptsStaleRequests(Broken):
    def change_request(self, request: Any) -> None:
        if request.response_nonce and self.last:
            request.response_nonce = self.last.nonce


class TakesOldVersionsForNacks(Broken):
    """A request with an old version is taken for a NACK, and the names in a NACK are ignored."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: list[str] = []

    def change_request(self, request: Any) -> None:
        is_old = request.response_nonce and self.last and request.version_info != self.last.version_info
        if is_old and not request.HasField("error_detail"):
            request.resource_names[:] = self.names
        self.names = [*request.resource_names]


class CountsVersions(Broken):
    number = 0

    def change_response(self, response: Any) -> None:
        type(self).number += 1
        for resource in response.resources if self.is_delta else ():
            resource.version = str(self.number)
        if not self.is_delta:
            response.version_info = str(self.number)


class UsesTheVersionsOfTheAdapter(Broken):
    """SotW: the version is that of the adapter's request, if the type has one resource."""

    def change_response(self, response: Any) -> None:
        (resource,) = response.resources
        response.version_info = sha256(resource.value).hexdigest()[:16]


class IgnoresRepeatedSubscriptions(Broken):
    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: set[str] = set()

    def change_request(self, request: Any) -> None:
        names = [name for name in request.resource_names_subscribe if name not in self.names]
        self.names = (self.names | {*names}) - {*request.resource_names_unsubscribe}
        request.resource_names_subscribe[:] = names


class IgnoresUnsubscriptions(Broken):
    def change_request(self, request: Any) -> None:
        del request.resource_names_unsubscribe[:]


class ReportsNoRemovals(Broken):
    def change_response(self, response: Any) -> None:
        del response.removed_resources[:]


class IgnoresReportedVersions(Broken):
    def change_request(self, request: Any) -> None:
        request.initial_resource_versions.clear()


class HasAWildcardForRoutes(Broken):
    def change_request(self, request: Any) -> None:
        if request.type_url == ROUTE and not request.response_nonce and not self.last:
            names = request.resource_names_subscribe if self.is_delta else request.resource_names
            names[:] = names or ["alpha"]


class RepeatsNames(Broken):
    def change_response(self, response: Any) -> None:
        response.resources.extend(list(response.resources))


class RepeatsNamesInsideAWildcard(Broken):
    """SotW: a resource that the client names beside `*` is sent twice."""

    named: frozenset[str] = frozenset()

    def change_request(self, request: Any) -> None:
        names = {*request.resource_names}
        self.named = frozenset(names - {"*"} if "*" in names else ())

    def change_response(self, response: Any) -> None:
        for item in list(response.resources) if self.named else ():
            message: Any = message_class(response.type_url.rpartition("/")[2]).FromString(item.value)
            if message.name in self.named:
                response.resources.append(item)


class KeepsTheLastResource(Broken):
    """SotW: an empty response is not sent, so the client keeps the last cluster or listener."""

    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        return message if message and self.last.resources else None


class ForgetsDeletedNames(Broken):
    """Delta: an unsubscription from a name that was removed gets no response."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.removed: set[str] = set()

    def change_request(self, request: Any) -> None:
        names = [name for name in request.resource_names_unsubscribe if name not in self.removed]
        request.resource_names_unsubscribe[:] = names

    def change_response(self, response: Any) -> None:
        self.removed.update(response.removed_resources)


class KeepsTtls(Broken):
    """The removal of a TTL is not sent."""

    has_ttl = False

    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        had_ttl = self.has_ttl
        self.has_ttl |= bool(message) and any(item.HasField("ttl") for item in self.last.resources)
        is_removal = had_ttl and message and not any(item.HasField("ttl") for item in self.last.resources)
        return None if is_removal else message


class DiesOfPhantoms(Mortal):
    """Delta: a client that unsubscribes from an unknown name gets nothing any more."""

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.names: set[str] = set()

    def change_request(self, request: Any) -> None:
        self.names |= {*request.resource_names_subscribe}
        self.is_dead |= not self.names.issuperset({*request.resource_names_unsubscribe} - {"*"})
        self.names -= {*request.resource_names_unsubscribe}


class SendsNoNames(Broken):
    def change_response(self, response: Any) -> None:
        for resource in response.resources:
            resource.ClearField("name")


class SendsUnrequested(Broken):
    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe if self.is_delta else request.resource_names
        if "alpha" in names:
            names.append("beta")


class HasNoIdentifier(Broken):
    def change_response(self, response: Any) -> None:
        response.ClearField("control_plane")


class Floods(Broken):
    """The last response is sent again and again."""

    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        if message is None and self.last is not None:
            message = self.last.SerializeToString()
        self.has_more = message is not None
        return message


class DropsLaterResponses(Broken):
    """Clusters and listeners are sent once only, and later changes are lost."""

    def next(self, now: float) -> bytes | None:
        had = self.last is not None
        message = super().next(now)
        return None if had and message and self.last.type_url in (CLUSTER, LISTENER) else message


class AnswersNacksOfOlderResponses(Broken):
    def change_request(self, request: Any) -> None:
        if request.HasField("error_detail") and request.response_nonce != self.last.nonce:
            self.again.append(self.last)


class HasNoAliases(Broken):
    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe
        names[:] = [name for name in names if not name.endswith(".example")]


class ReportsKnownAliases(Broken):
    def change_response(self, response: Any) -> None:
        for resource in list(response.resources):
            for alias in resource.aliases if resource.HasField("resource") else ():
                response.resources.add(name=alias, aliases=[alias])


class HasNoCollections(Broken):
    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe
        names[:] = [name for name in names if not name.endswith("/*")]


class SendsNestedMembers(Broken):
    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe
        names.extend([name.replace("/group/*", "/group/inner/*") for name in names])


class KeepsTheLegacyWildcard(Broken):
    """Names after a legacy wildcard have no effect, and the wildcard cannot be left."""

    legacy: str = ""

    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe if self.is_delta else request.resource_names
        if not request.response_nonce and not self.last and not names:
            self.legacy = request.type_url
        if request.type_url == self.legacy:
            names[:] = []
            if self.is_delta:
                request.resource_names_unsubscribe[:] = []


class EndsTheLegacyWildcard(Broken):
    """A delta client that names a resource loses its wildcard."""

    def change_request(self, request: Any) -> None:
        if self.last and request.resource_names_subscribe:
            request.resource_names_unsubscribe.append("*")


class SendsNoTtl(Broken):
    def change_response(self, response: Any) -> None:
        for resource in response.resources:
            resource.ClearField("ttl")


class SendsNoHeartbeats(Broken):
    def next(self, now: float) -> bytes | None:
        message = super().next(now)
        is_heartbeat = message and not any(item.HasField("resource") for item in self.last.resources)
        return None if is_heartbeat else message


class WrapsResources(Broken):
    """SotW resources are sent in the wrapper that carries a TTL."""

    def change_response(self, response: Any) -> None:
        for resource in response.resources:
            wrapper: Any = message_class("envoy.service.discovery.v3.Resource")()
            wrapper.resource.CopyFrom(resource)
            wrapper.name = "alpha"
            resource.Pack(wrapper)


class RefusesUnknownFields(Broken):
    def receive(self, message: bytes, now: float) -> Any:
        request: Any = self._request.FromString(message)
        known = len(request.SerializeToString())
        request.DiscardUnknownFields()
        if request.ByteSize() < known:
            request.type_url = "type.googleapis.com/unknown"
        return super(Broken, self).receive(request.SerializeToString(), now)


class WaitsForNewerStreams(Broken):
    """A stream gets no response while a newer one of the node has not sent its ACK."""

    waiting: ClassVar[defaultdict[str, set[int]]] = defaultdict(set)
    numbers: ClassVar[Iterator[int]] = count()

    def __init__(self, variant: Variant, **options: Any) -> None:
        super().__init__(variant, **options)
        self.owner, self.number = "", next(self.numbers)

    def change_request(self, request: Any) -> None:
        self.owner = self.owner or request.node.id
        self.waiting[self.owner].discard(self.number)

    def next(self, now: float) -> bytes | None:
        if max(self.waiting[self.owner], default=0) > self.number:
            return None
        message = super().next(now)
        if message is not None:
            self.waiting[self.owner].add(self.number)
        return message


class ForgetsChangesBeforeAnAck(Broken):
    is_waiting = False

    def change_request(self, request: Any) -> None:
        self.is_waiting &= not request.response_nonce

    def next(self, now: float) -> bytes | None:
        was_waiting, message = self.is_waiting, super().next(now)
        self.is_waiting |= message is not None
        return None if was_waiting else message


class NeedsTheNodeAgain(Broken):
    """Requests without a node are for a node that nothing is served to."""

    def change_request(self, request: Any) -> None:
        if not request.node.id:
            request.type_url = "type.googleapis.com/unknown"
