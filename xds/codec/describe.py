"""Reconstruction of protobuf file descriptors from envoy_data_plane's generated classes.

The field metadata of these classes contains all names, numbers, types and oneofs. This is enough to describe
each package as a `FileDescriptorProto`. The packages have no import cycles, so one file per package suffices.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import ModuleType
from typing import Any, TypeAlias

import betterproto2
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf import (
    any_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

ROOT = "envoy_data_plane"
WELL_KNOWN = "google.protobuf"
"""Package that is not reconstructed, because protobuf ships its files."""

WELL_KNOWN_FILES = (any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
"""Modules to import, which adds their files to protobuf's default pool."""

REFERRING_TYPES = (betterproto2.TYPE_MESSAGE, betterproto2.TYPE_ENUM, betterproto2.TYPE_MAP)
"""Types of fields that refer to other classes."""

_CLASS_NAME = re.compile(r"([\w.]+)\]?(?: \| None)?$", re.ASCII)
"""Name of the class in an annotation: NAME, NAME | None, list[NAME] or dict[TYPE, NAME]."""

_References: TypeAlias = set[type[Any]]
"""Message and enum classes that a file refers to."""

ENUM_NAMES = {
    "envoy.config.core.v3.ProxyProtocolPassThroughTlVsPassTlVsMatchType": (
        "ProxyProtocolPassThroughTLVs.PassTLVsMatchType"
    ),
    "envoy.config.route.v3.RetryPolicyResetHeaderFormat": "RetryPolicy.ResetHeaderFormat",
    "envoy.data.accesslog.v2.HttpAccessLogEntryHttpVersion": "HTTPAccessLogEntry.HTTPVersion",
    "envoy.data.accesslog.v2.TlsPropertiesTlsVersion": "TLSProperties.TLSVersion",
    "envoy.data.accesslog.v3.HttpAccessLogEntryHttpVersion": "HTTPAccessLogEntry.HTTPVersion",
    "envoy.data.accesslog.v3.TlsPropertiesTlsVersion": "TLSProperties.TLSVersion",
    "envoy.data.core.v2alpha.HealthCheckFailureType": "HealthCheckFailureType",
    "envoy.data.core.v3.HealthCheckFailureType": "HealthCheckFailureType",
    "envoy.extensions.common.ratelimit.v3.XRateLimitHeadersRfcVersion": "XRateLimitHeadersRFCVersion",
    "envoy.extensions.filters.http.ratelimit.v3.RateLimitXRateLimitHeadersRfcVersion": (
        "RateLimit.XRateLimitHeadersRFCVersion"
    ),
    "envoy.service.status.v3.ClientConfigStatus": "ClientConfigStatus",
}
"""Protobuf names of enums that cannot be derived from the class name (acronyms, ambiguous nesting)."""


def package_of(module_name: str) -> str:
    """Return the protobuf package of a module of envoy_data_plane."""
    return module_name.removeprefix(ROOT + ".")


def full_name(cls: type[betterproto2.Message]) -> str:
    """Return the protobuf name of a generated message class."""
    return default_message_pool.type_to_url[cls].rpartition("/")[2]


def file_name(package: str) -> str:
    """Return the name of the file that describes a package."""
    return package.replace(".", "/") + ".proto"


def describe(module: ModuleType) -> FileDescriptorProto:
    """Describe the package that a module of envoy_data_plane was generated from."""
    package = package_of(module.__name__)
    file = FileDescriptorProto(name=file_name(package), package=package, syntax="proto3")
    references: _References = set()
    messages: dict[str, DescriptorProto] = {}
    for cls in sorted(_classes(module, _is_message), key=lambda cls: full_name(cls).count(".")):
        path = full_name(cls).removeprefix(package + ".")
        outer, _, name = path.rpartition(".")
        messages[path] = (messages[outer].nested_type if outer else file.message_type).add(name=name)
        _describe_fields(cls, messages[path], references)
    for cls in _classes(module, _is_enum):
        outer, _, name = enum_name(cls).removeprefix(package + ".").rpartition(".")
        _describe_enum(cls, (messages[outer] if outer else file).enum_type.add(name=name))
    for cls in _classes(module, _is_service):
        _describe_service(cls, file, references)
    file.dependency.extend(sorted({_file_of(cls) for cls in references} - {file.name}))
    return file


def _classes(module: ModuleType, predicate: Callable[[type[Any]], bool]) -> Iterator[type[Any]]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and predicate(value):
            yield value


def _is_message(cls: type[Any]) -> bool:
    # Message is an ABC, and issubclass() with an ABC takes seconds for the classes of all packages.
    return cls in default_message_pool.type_to_url


def _is_enum(cls: type[Any]) -> bool:
    return issubclass(cls, betterproto2.Enum)


def _is_service(cls: type[Any]) -> bool:
    return cls.__name__.endswith("Base") and hasattr(cls, "__mapping__")


def _describe_fields(cls: type[Any], message: DescriptorProto, references: _References) -> None:
    oneofs: dict[str, int] = {}
    presence: list[FieldDescriptorProto] = []
    for attribute in dataclasses.fields(cls):
        meta = betterproto2.FieldMetadata.get(attribute)
        field = message.field.add(name=proto_name(attribute.name), number=meta.number)
        field.label = field.LABEL_REPEATED if meta.repeated or meta.map_meta else field.LABEL_OPTIONAL
        if meta.map_meta:
            entry = message.nested_type.add(name=_entry_name(field.name))
            entry.options.map_entry = True
            for name, part_meta in zip(("key", "value"), meta.map_meta, strict=True):
                part = entry.field.add(name=name, number=part_meta.number, label=field.LABEL_OPTIONAL)
                _describe_type(part, part_meta, cls, attribute, references)
            field.type = field.TYPE_MESSAGE
            field.type_name = f".{full_name(cls)}.{entry.name}"
            continue
        _describe_type(field, meta, cls, attribute, references)
        if meta.group:
            field.oneof_index = oneofs.setdefault(meta.group, len(oneofs))
        elif meta.optional and meta.proto_type != betterproto2.TYPE_MESSAGE:
            presence.append(field)
    for name in oneofs:
        message.oneof_decl.add(name=name)
    for field in presence:  # protoc puts the oneofs of `optional` fields last.
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name="_" + field.name)


def _describe_type(
    field: FieldDescriptorProto,
    meta: betterproto2.FieldMetadata,
    owner: type[Any],
    attribute: dataclasses.Field[Any],
    references: _References,
) -> None:
    field.type = FieldDescriptorProto.Type.Value(f"TYPE_{meta.proto_type.upper()}")
    if meta.proto_type not in REFERRING_TYPES:
        return
    cls = meta.unwrap() if meta.unwrap else _class_in(attribute.type, sys.modules[owner.__module__])
    field.type_name = "." + (full_name(cls) if _is_message(cls) else enum_name(cls))
    references.add(cls)


def _class_in(annotation: Any, module: ModuleType) -> Any:
    """Return the class in the annotation of a field. To evaluate thousands of annotations takes too long."""
    (name,) = _CLASS_NAME.findall(annotation)
    return attrgetter(name)(module)


def _describe_enum(cls: type[betterproto2.Enum], enum: EnumDescriptorProto) -> None:
    renamed = cls.betterproto_value_to_renamed_proto_names()
    members = {proto_name(name): int(member) for name, member in cls.__members__.items()}
    for name, number in sorted(members.items(), key=lambda item: item[1] != 0):  # In proto3, zero is first.
        enum.value.add(name=renamed.get(number, name), number=number)
    if len(set(members.values())) < len(members):
        enum.options.allow_alias = True


def _describe_service(base: type[Any], file: FileDescriptorProto, references: _References) -> None:
    for path, handler in base().__mapping__().items():
        _, service_name, method_name = path.split("/")
        name = service_name.removeprefix(file.package + ".")
        service = next((service for service in file.service if service.name == name), None)
        method = (service or file.service.add(name=name)).method.add(name=method_name)
        method.input_type = "." + full_name(handler.request_type)
        method.output_type = "." + full_name(handler.reply_type)
        method.client_streaming = handler.cardinality.client_streaming
        method.server_streaming = handler.cardinality.server_streaming
        references.update((handler.request_type, handler.reply_type))


def proto_name(attribute: str) -> str:
    """Return the protobuf name of a generated attribute, without an underscore that betterproto2 added."""
    if attribute.endswith("_") and keyword.iskeyword(attribute[:-1]):
        return attribute[:-1]
    return attribute[1:] if attribute[:1] == "_" and attribute[1:2].isdigit() else attribute


def _entry_name(field: str) -> str:
    """Return protoc's name for the entry message of a map field."""
    return "".join(part[:1].upper() + part[1:] for part in field.split("_")) + "Entry"


def enum_name(cls: type[Any]) -> str:
    """Return the protobuf name of an enum.

    Unlike messages, enums are not registered by name, so their nesting is derived from the class names.
    """
    package = package_of(cls.__module__)
    plain = f"{package}.{cls.__name__}"
    if plain in ENUM_NAMES:
        return f"{package}.{ENUM_NAMES[plain]}"
    outer: type[Any] | None = None
    for message in _classes(sys.modules[cls.__module__], _is_message):
        suffix = cls.__name__.removeprefix(message.__name__)
        is_deeper = outer is None or len(message.__name__) > len(outer.__name__)
        if suffix != cls.__name__ and suffix[:1].isupper() and is_deeper:
            outer = message
    return f"{full_name(outer)}.{cls.__name__.removeprefix(outer.__name__)}" if outer else plain


def _file_of(cls: type[Any]) -> str:
    package = package_of(cls.__module__)
    if package != WELL_KNOWN:
        return file_name(package)
    name = full_name(cls) if _is_message(cls) else enum_name(cls)
    return descriptor_pool.Default().FindFileContainingSymbol(name).name
