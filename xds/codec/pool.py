"""A descriptor pool over everything that envoy_data_plane has, described when first asked for."""

from __future__ import annotations

import importlib
import re
import threading
from functools import cache
from typing import Final

import betterproto2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message

from xds.codec.describe import ROOT, WELL_KNOWN, describe, full_name

_SYMBOL = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?:\.[A-Z]\w*(?:\.\w+)*)?", re.ASCII)
"""A package in lower case, then perhaps a message, enum or service and what is inside. Every name in the API is so."""


class PackageDatabase:
    """A descriptor database: finds the file of a package by importing it, and only it, from envoy_data_plane.

    What is not there is looked for in protobuf's own default pool: the well-known types, and the files of gRPC's
    health, reflection and channelz services once they are imported. Absence is a KeyError, as pools expect.
    """

    def FindFileByName(self, name: str) -> FileDescriptorProto:  # noqa: N802
        """Return the file of this name."""
        found = _described(name.removesuffix(".proto").replace("/", "."))
        return found or _copy(descriptor_pool.Default().FindFileByName(name).serialized_pb)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptorProto:  # noqa: N802
        """Return the file that declares a message, enum, service or method."""
        match = _SYMBOL.fullmatch(symbol)
        found = _described(match[1]) if match else None
        return found or _copy(descriptor_pool.Default().FindFileContainingSymbol(symbol).serialized_pb)


def _described(package: str) -> FileDescriptorProto | None:
    # The name may come from a client: nothing outside envoy_data_plane is ever imported for it.
    if package == WELL_KNOWN or not _SYMBOL.fullmatch(package):
        return None
    try:
        return describe(importlib.import_module(f"{ROOT}.{package}"))
    except ImportError:
        return None


def _copy(serialized: bytes) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(serialized)


pool: Final = descriptor_pool.DescriptorPool(descriptor_db=PackageDatabase())
"""Every message, enum and service of envoy_data_plane, and the real google.protobuf.*."""


_filling = threading.RLock()


@cache
def message_class(name: str) -> type[Message]:
    """Return the protobuf class of a full name such as `envoy.config.cluster.v3.Cluster`; KeyError if there is none.

    It may be called by several threads at the same time.
    """
    with _filling:  # While the pool imports a package, another thread would have it add the same file again.
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def type_url(message: betterproto2.Message | type[betterproto2.Message]) -> str:
    """Return the type URL of a message or of a message class."""
    return "type.googleapis.com/" + full_name(message if isinstance(message, type) else type(message))
