"""gRPC server reflection, v1 and v1alpha: the services of a server, and the files that declare them.

The files come from `xds.codec`. Files of Envoy's API are reconstructed from envoy_data_plane's classes on
request, in a thread, because this takes several milliseconds. All other files are protobuf's own.
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
"""Maximum number of symbols whose file is cached. Clients choose the symbols."""

DescriptorLookup: TypeAlias = Callable[[str], FileDescriptorProto | None]
"""Returns the file with a name, including JSON names and comments; None if unknown.

Generated code lacks the comments.
"""

_packages = PackageDatabase()


def handlers(services: Iterable[str], documented: DescriptorLookup) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of both versions of the service, which are the same on the wire.

    Args:
        services: Names of the services to list besides reflection.
        documented: Returns descriptors with comments.
    """
    listed = sorted({*services, V1, V1ALPHA})

    async def info(requests: AsyncIterator[Any], _: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        sent: set[str] = set()
        async for request in requests:
            yield await _answer(request, listed, sent, documented)

    method = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(name, {_METHOD: method}) for name in (V1, V1ALPHA))


async def _answer(request: Any, listed: list[str], sent: set[str], documented: DescriptorLookup) -> Any:
    """Answer one request. The client already has the files in `sent`."""
    response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
    try:
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in listed:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                await _add_files(response, request.file_by_filename, sent, documented)
            case "file_containing_symbol":
                name = await asyncio.to_thread(file_of, request.file_containing_symbol)
                await _add_files(response, name, sent, documented)
            case "all_extension_numbers_of_type":
                await asyncio.to_thread(file_of, request.all_extension_numbers_of_type)
                response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
            case "file_containing_extension":
                extended = request.file_containing_extension.containing_type
                raise KeyError(f"no extension of {extended}")  # noqa: TRY301 - proto3 has none
            case _:
                _set_error(response, grpc.StatusCode.INVALID_ARGUMENT, "the request has no message_request")
    except KeyError as error:
        _set_error(response, grpc.StatusCode.NOT_FOUND, error.args[0])
    return response


async def _add_files(response: Any, name: str, sent: set[str], documented: DescriptorLookup) -> None:
    """Add a file to a response, and the dependencies that the client does not have yet."""
    closure = await asyncio.to_thread(dependency_closure, name)
    for file in closure:
        if file == name or file not in sent:
            descriptor = documented(file) or _file(file)
            response.file_descriptor_response.file_descriptor_proto.append(descriptor.SerializeToString())
    sent.update(closure)


def _set_error(response: Any, code: grpc.StatusCode, message: str) -> None:
    response.error_response.error_code = code.value[0]
    response.error_response.error_message = message


@lru_cache(_MAX_SYMBOLS)
def file_of(symbol: str) -> str:
    """Return the name of the file that declares a symbol.

    Args:
        symbol: Full name of a service, method, message, field, enum or enum value.

    Raises:
        KeyError: There is no such symbol.
    """
    file = _v1() if symbol.startswith(_V1_PACKAGE) else _find(symbol)
    if symbol not in set(_symbols(file)):
        raise KeyError(f"no symbol {symbol}")
    return file.name


def _find(symbol: str) -> FileDescriptorProto:
    """Return the file of a symbol or its parent. A database may not find methods and fields themselves."""
    outer = symbol
    while outer:
        try:
            return _packages.FindFileContainingSymbol(outer)
        except KeyError:
            outer = outer.rpartition(".")[0]
    raise KeyError(f"no symbol {symbol}")


@cache
def _file(name: str) -> FileDescriptorProto:
    """Return the file with a name. Its fields have their JSON names, which some clients need."""
    try:
        file = _v1() if name == _v1().name else _packages.FindFileByName(name)
    except KeyError:
        raise KeyError(f"no file {name}") from None
    for message in _messages(file.message_type):
        for field in message.field:
            field.json_name = _json_name(field.name)
    return file


def _messages(messages: Iterable[DescriptorProto]) -> Iterator[DescriptorProto]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def _json_name(name: str) -> str:
    """Return the JSON name of a field as protoc derives it: in camel case, without underscores."""
    first, *words = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in words)


@cache
def dependency_closure(name: str) -> tuple[str, ...]:
    """Return the names of a file and of its dependencies, at any depth.

    Raise KeyError if there is no such file.
    """
    names = dict.fromkeys((name,))
    for dependency in _file(name).dependency:
        names |= dict.fromkeys(dependency_closure(dependency))
    return tuple(names)


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Yield the full names of all declarations in a file."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _message_symbols(message, prefix)
    for enum in file.enum_type:
        yield prefix + enum.name
        yield from (prefix + value.name for value in enum.value)
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _message_symbols(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
    for nested in message.nested_type:
        yield from _message_symbols(nested, f"{name}.")
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)


@cache
def _v1() -> FileDescriptorProto:
    """Return the file of v1. It is derived from v1alpha, because grpcio-reflection has no v1.

    Both versions are identical except for their package.
    """
    alpha = FileDescriptorProto.FromString(
        descriptor_pool.Default().FindFileContainingSymbol(V1ALPHA).serialized_pb
    )
    alpha.ClearField("options")
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    file = FileDescriptorProto()
    text_format.Parse(text, file)
    return file
