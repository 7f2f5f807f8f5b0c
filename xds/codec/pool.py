"""A descriptor pool of all packages of envoy_data_plane. Each package is described at its first use."""

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
"""A lower-case package, optionally followed by a message, enum or service and its members.

All names match this.
"""


class PackageDatabase:
    """A descriptor database that describes a package of envoy_data_plane when one of its names is looked up.

    Only that package is imported. Other names are looked up in protobuf's default pool, which contains the
    well-known types and, once imported, the files of gRPC's health, reflection and channelz services. Unknown
    names raise KeyError, as descriptor pools expect.
    """

    def FindFileByName(self, name: str) -> FileDescriptorProto:  # noqa: N802
        """Return the file with a name. Raise KeyError if there is none."""
        file = _describe_package(name.removesuffix(".proto").replace("/", "."))
        return file or _copy(descriptor_pool.Default().FindFileByName(name).serialized_pb)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptorProto:  # noqa: N802
        """Return the file that declares a symbol. Raise KeyError if there is none."""
        match = _SYMBOL.fullmatch(symbol)
        file = _describe_package(match[1]) if match else None
        return file or _copy(descriptor_pool.Default().FindFileContainingSymbol(symbol).serialized_pb)


def _describe_package(package: str) -> FileDescriptorProto | None:
    # The name may come from a client, so only packages of envoy_data_plane are imported.
    if package == WELL_KNOWN or not _SYMBOL.fullmatch(package):
        return None
    try:
        return describe(importlib.import_module(f"{ROOT}.{package}"))
    except ImportError:
        return None


def _copy(serialized: bytes) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(serialized)


pool: Final = descriptor_pool.DescriptorPool(descriptor_db=PackageDatabase())
"""Descriptor pool of envoy_data_plane's packages, and of google.protobuf from protobuf itself."""


_pool_lock = threading.RLock()


@cache
def message_class(name: str) -> type[Message]:
    """Return the protobuf class of a message. This function is thread-safe.

    Args:
        name: Full name of the message, such as `envoy.config.cluster.v3.Cluster`.

    Raises:
        KeyError: There is no message with this name.
    """
    with _pool_lock:  # Otherwise another thread could add a file while its package is being imported.
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def type_url(message: betterproto2.Message | type[betterproto2.Message]) -> str:
    """Return the type URL of a message or of a message class."""
    return "type.googleapis.com/" + full_name(message if isinstance(message, type) else type(message))
