"""Variants, methods and responses of the protocol, and what a check can end with.

Messages are those of `xds.testing`. It decodes them with protobuf's own classes, because the server's decoder
is under test.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from xds import testing
from xds.conformance.world import SHORT, TYPES, CheckError, read
from xds.snapshot import Resource
from xds.testing.streams import method_of

_MAX_RESPONSE = 64 * 1024 * 1024
_OPTIONS = (("grpc.max_receive_message_length", _MAX_RESPONSE), ("grpc.use_local_subchannel_pool", 1))
"""Channel arguments: each check has a connection of its own."""


def connect(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Return a channel with a connection of its own; without credentials, in plaintext."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, _OPTIONS)
    return grpc.aio.secure_channel(target, credentials, _OPTIONS)


class Variant(StrEnum):
    """A variant of the protocol."""

    SOTW = "sotw"
    SOTW_ADS = "sotw-ads"
    DELTA = "delta"
    DELTA_ADS = "delta-ads"

    @property
    def is_delta(self) -> bool:
        """Whether the variant is incremental."""
        return self in (Variant.DELTA, Variant.DELTA_ADS)

    @property
    def protocol(self) -> testing.Variant:
        """The variant of the messages."""
        return testing.Variant.DELTA if self.is_delta else testing.Variant.SOTW

    @property
    def is_ads(self) -> bool:
        """Whether all types share a stream."""
        return self in (Variant.SOTW_ADS, Variant.DELTA_ADS)


class NotApplicableError(Exception):
    """The rule does not apply to the server."""


class EndedError(CheckError):
    """The server ended the stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"the server ended the stream with {code.name}: {details}")
        self.code = code


class Response(testing.Response):
    """A decoded response, with the contents of its resources."""

    __slots__ = ()

    def __str__(self) -> str:
        words = [f"{name}={content}" for name, content in self.contents.items()]
        words += [f"-{name}" for name in sorted(self.removed)]
        return f"{self.type} nonce={self.nonce} version={self.version} [{' '.join(words)}]"

    @property
    def type(self) -> str:
        """Short name of the type."""
        return SHORT.get(self.type_url, self.type_url)

    @property
    def contents(self) -> dict[str, str]:
        """Contents by name."""
        return {each.name: read(self.type, each.body)[1] for each in self.own}

    @property
    def versions(self) -> dict[str, str]:
        """Versions by name (delta)."""
        return {each.name: each.version for each in self.own}

    @property
    def own(self) -> list[Resource]:
        """Resources of the response's type, if it is one of `TYPES`."""
        return [each for each in self.resources if each.type_url == self.type_url and self.type in TYPES]


def path_of(short: str, variant: Variant) -> str:
    """Return the path of the method that serves a type."""
    return method_of(variant.protocol, "" if variant.is_ads else TYPES.get(short, short))


def decode(data: bytes, variant: Variant) -> Response:
    """Decode a response.

    Raises:
        CheckError: The bytes are no response, or a name occurs twice.
    """
    try:
        response = Response.decode(data, variant.protocol, _resource)
    except DecodeError as error:
        raise CheckError(f"a response cannot be decoded: {error}") from error
    for name, count in Counter(each.name for each in response.own).items():
        if count > 1:
            raise CheckError(f"R30: {response.type}: a response contains {name} twice")
    return response


def _resource(type_url: str, name: str, body: bytes) -> Resource:
    own_name, _ = read(SHORT[type_url], body) if type_url in SHORT else ("", "")
    return Resource.of(type_url, name or own_name, body)
