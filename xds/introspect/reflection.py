"""gRPC server reflection, v1 and v1alpha: what services there are, and the files that describe every message.

The files come from `xds.codec`: those of Envoy's API are described anew from envoy_data_plane's classes, when they are
asked for, others are protobuf's own. To describe one the first time takes some milliseconds, which a thread spends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from xds.codec.pool import PackageDatabase

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"

_V1_PACKAGE = "grpc.reflection.v1."

_METHOD = "ServerReflectionInfo"
_MAX_SYMBOLS = 1024
"""Whose file is remembered; a client may ask for any."""

DescriptorLookup: TypeAlias = Callable[[str], FileDescriptorProto | None]
"""Returns the file of this name with its comments, which generated code lacks; None for an unknown file."""

_packages = PackageDatabase()


def handlers(
    services: Iterable[str], documented: DescriptorLookup = lambda _: None
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return both versions of the service, which are the same on the wire. They list `services` and themselves."""
    listed = sorted({*services, V1, V1ALPHA})

    async def info(requests: AsyncIterator[Any], _: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        told: set[str] = set()
        async for request in requests:
            yield await _answer(request, listed, told, documented)

    method = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(name, {_METHOD: method}) for name in (V1, V1ALPHA))


async def _answer(request: Any, listed: list[str], told: set[str], documented: DescriptorLookup) -> Any:
    """Answer one request; `told` are the files that this stream has already."""
    response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
    try:
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in listed:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                await _tell(response, request.file_by_filename, told, documented)
            case "file_containing_symbol":
                name = await asyncio.to_thread(file_of, request.file_containing_symbol)
                await _tell(response, name, told, documented)
            case "all_extension_numbers_of_type":
                await asyncio.to_thread(file_of, request.all_extension_numbers_of_type)
                response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
            case "file_containing_extension":
                extended = request.file_containing_extension.containing_type
                raise KeyError(f"there is no extension of {extended}")  # noqa: TRY301 - proto3 has none
            case _:
                _refuse(response, grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")
    except KeyError as error:
        _refuse(response, grpc.StatusCode.NOT_FOUND, error.args[0])
    return response


async def _tell(response: Any, name: str, told: set[str], documented: DescriptorLookup) -> None:
    """Put a file into a response, and what it needs and the client has not been told."""
    needed = await asyncio.to_thread(dependency_closure, name)
    for file in needed:
        if file == name or file not in told:
            response.file_descriptor_response.file_descriptor_proto.append(
                _file(file, documented).SerializeToString()
            )
    told.update(needed)


def _refuse(response: Any, code: grpc.StatusCode, message: str) -> None:
    response.error_response.error_code = code.value[0]
    response.error_response.error_message = message


@lru_cache(_MAX_SYMBOLS)
def file_of(symbol: str) -> str:
    """Return the name of the file that declares a symbol: a service or method, a message or field, an enum or value.

    KeyError: there is none.
    """
    found = _v1() if symbol.startswith(_V1_PACKAGE) else _find(symbol)
    if symbol not in set(_symbols(found)):
        raise KeyError(f"there is no symbol {symbol}")
    return found.name


def _find(symbol: str) -> FileDescriptorProto:
    """Find the file of a symbol, or of what it is inside of: databases know methods and fields not always."""
    outer = symbol
    while outer:
        try:
            return _packages.FindFileContainingSymbol(outer)
        except KeyError:
            outer = outer.rpartition(".")[0]
    raise KeyError(f"there is no symbol {symbol}")


@cache
def _file(name: str, documented: DescriptorLookup = lambda _: None) -> FileDescriptorProto:
    """Return the file of this name with every field's JSON name, which some clients do not make themselves."""
    try:
        file = _v1() if name == _v1().name else documented(name) or _packages.FindFileByName(name)
    except KeyError:
        raise KeyError(f"there is no file {name}") from None
    for message in _messages(file.message_type):
        for field in message.field:
            field.json_name = _json_name(field.name)
    return file


def _messages(messages: Iterable[DescriptorProto]) -> Iterator[DescriptorProto]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def _json_name(name: str) -> str:
    """Return a field's name in JSON as protoc does: without underscores, and what follows one in upper case."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


@cache
def dependency_closure(name: str) -> tuple[str, ...]:
    """Return the names of a file and of all that it needs, to any depth. KeyError: there is no such file."""
    found = dict.fromkeys((name,))
    for dependency in _file(name).dependency:
        found |= dict.fromkeys(dependency_closure(dependency))
    return tuple(found)


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Go through the full names of all that a file declares."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _inside(message, prefix)
    for enum in file.enum_type:
        yield prefix + enum.name
        yield from (prefix + value.name for value in enum.value)
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _inside(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
    for nested in message.nested_type:
        yield from _inside(nested, f"{name}.")
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)


@cache
def _v1() -> FileDescriptorProto:
    """Describe v1, which is v1alpha under another name; grpcio-reflection has only that."""
    alpha = FileDescriptorProto.FromString(
        descriptor_pool.Default().FindFileContainingSymbol(V1ALPHA).serialized_pb
    )
    alpha.ClearField("options")
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    file = FileDescriptorProto()
    text_format.Parse(text, file)
    return file
