"""The library's server with one fault each: its sessions change requests or responses."""

from __future__ import annotations

from typing import Any

from xds.protocol.session import Session, Variant
from xds.snapshot import CLUSTER, LISTENER, ROUTE
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


class ResendsOnNack(Broken):
    def change_request(self, request: Any) -> None:
        if request.HasField("error_detail"):
            self.again.append(self.last)


class AnswersAcks(Broken):
    acked = ""

    def change_request(self, request: Any) -> None:
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
    def change_request(self, request: Any) -> None:
        if request.response_nonce and request.version_info != self.last.version_info:
            self.again.append(self.last)


class CountsVersions(Broken):
    number = 0

    def change_response(self, response: Any) -> None:
        type(self).number += 1
        for resource in response.resources if self.is_delta else ():
            resource.version = str(self.number)
        if not self.is_delta:
            response.version_info = str(self.number)


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


class SendsUnrequested(Broken):
    def change_request(self, request: Any) -> None:
        names = request.resource_names_subscribe if self.is_delta else request.resource_names
        if "alpha" in names:
            names.append("beta")


class SetsCanary(Broken):
    def change_response(self, response: Any) -> None:
        response.canary = True


class HasNoIdentifier(Broken):
    def change_response(self, response: Any) -> None:
        response.ClearField("control_plane")


class DropsLaterResponses(Broken):
    """Clusters and listeners are sent once only, and later changes are lost."""

    def next(self, now: float) -> bytes | None:
        had = self.last is not None
        message = super().next(now)
        return None if had and message and self.last.type_url in (CLUSTER, LISTENER) else message
