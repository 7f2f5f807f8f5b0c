"""Reflection with grpcurl (v1alpha) and with a client of our own (v1)."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import threading

import betterproto2
import envoy_data_plane
import grpc
import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from tests.introspect.grpcurl import grpcurl
from xds.codec import describe, full_name
from xds.introspect import csds, reflection
from xds.server.services import SERVICES

VERSIONS = (reflection.V1, reflection.V1ALPHA)
LISTED = {*SERVICES, *VERSIONS, csds.SERVICE, "grpc.channelz.v1.Channelz", "grpc.health.v1.Health"}


async def ask(channel: grpc.aio.Channel, version: str, *requests: dict[str, str]):
    call = channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**request) for request in requests]))
    return [response async for response in call]


def files(response: reflection_pb2.ServerReflectionResponse) -> list[FileDescriptorProto]:
    encoded = response.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(file) for file in encoded]


async def test_grpcurl_lists_every_service(target):
    status, output = await grpcurl(target, "list")
    assert status == 0, output
    assert set(output.split()) >= LISTED
    for service in LISTED:
        status, output = await grpcurl(target, "list", service)
        assert status == 0, output
        assert output.startswith(f"{service}.")


async def test_grpcurl_describes_services_and_messages(target):
    described = {
        "": [f"{service} is a service:" for service in LISTED],
        f"{reflection.V1}.ServerReflectionInfo": ["stream .grpc.reflection.v1.ServerReflectionRequest"],
        "envoy.config.cluster.v3.Cluster.DiscoveryType": ["is an enum", "EDS = 3;", "ORIGINAL_DST = 4;"],
        "envoy.config.cluster.v3.Cluster": ["transport_socket_matches = 43", ".DiscoveryType type = 2"],
        "envoy.config.core.v3.Metadata": ["map<string, .google.protobuf.Any> typed_filter_metadata = 2"],
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": [
            "CommonTlsContext common_tls_context"
        ],
        "envoy.service.discovery.v3.DeltaDiscoveryRequest": ["initial_resource_versions = 5"],
        "google.protobuf.Any": ["type_url = 1"],
        "grpc.health.v1.HealthCheckResponse.ServingStatus": ["SERVICE_UNKNOWN = 3"],
    }
    for symbol, wanted in described.items():
        status, output = await grpcurl(target, "describe", *([symbol] if symbol else []))
        assert status == 0, output
        for words in wanted:
            assert words in output


@pytest.mark.parametrize("version", VERSIONS)
async def test_both_versions_answer_all_kinds_of_requests(channel, version):
    services, cluster, again, method, types, extension, nothing, file, no_file = await ask(
        channel,
        version,
        {"list_services": ""},
        {"file_containing_symbol": "envoy.config.cluster.v3.Cluster"},
        {"file_containing_symbol": "envoy.config.cluster.v3.Cluster.name"},
        {"file_containing_symbol": f"{version}.ServerReflectionInfo"},
        {"all_extension_numbers_of_type": "envoy.config.cluster.v3.Cluster"},
        {"file_containing_extension": {"containing_type": "google.protobuf.Any", "extension_number": 1}},
        {},
        {"file_by_filename": "envoy/config/cluster/v3.proto"},
        {"file_by_filename": "envoy/nothing.proto"},
    )
    assert {service.name for service in services.list_services_response.service} == LISTED
    assert services.original_request.WhichOneof("message_request") == "list_services"
    names = [each.name for each in files(cluster)]
    assert names[0] == "envoy/config/cluster/v3.proto"
    assert "envoy/config/core/v3.proto" in names
    # A stream is not sent a dependency twice, only a file that it asks for.
    assert [each.name for each in files(again)] == [names[0]]
    assert files(method)[0].service[0].name == "ServerReflection"
    assert types.all_extension_numbers_response.base_type_name == "envoy.config.cluster.v3.Cluster"
    assert not types.all_extension_numbers_response.extension_number
    assert extension.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert nothing.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [each.name for each in files(file)] == [names[0]]
    assert no_file.error_response.error_message == "no file envoy/nothing.proto"


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        ".",
        "os.path",
        "envoy.config.cluster.v3.Nothing",
        "envoy.config.cluster.v3.Cluster.nothing",
        "a\0b",
        "ü",
    ],
)
async def test_unknown_symbol_does_not_end_the_stream(channel, symbol):
    missing, found = await ask(
        channel,
        reflection.V1,
        {"file_containing_symbol": symbol},
        {"file_containing_symbol": "envoy.config.core.v3.Node"},
    )
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert symbol in missing.error_response.error_message
    assert files(found)


async def test_the_files_of_a_service_make_a_pool_of_its_own(channel):
    for service in sorted(LISTED):
        (response,) = await ask(channel, reflection.V1, {"file_containing_symbol": service})
        pool = DescriptorPool()
        left = {file.name: file for file in files(response)}
        while left:
            ready = [file for file in left.values() if not left.keys() & set(file.dependency)]
            assert ready, "files need each other in a circle"
            for file in ready:
                pool.Add(file)
                del left[file.name]
        for method in pool.FindServiceByName(service).methods:
            assert method.input_type.full_name
            assert method.output_type.full_name


def test_all_messages_and_enums_of_envoy_are_found() -> None:
    names: dict[str, set[str]] = {}
    for module in pkgutil.walk_packages(envoy_data_plane.__path__, "envoy_data_plane."):
        package = module.name.removeprefix("envoy_data_plane.")
        for cls in tuple(vars(importlib.import_module(module.name)).values()):
            if not isinstance(cls, type) or cls.__module__ != module.name or package == "google.protobuf":
                continue
            if cls in default_message_pool.type_to_url:
                names.setdefault(package, set()).add(full_name(cls))
            elif issubclass(cls, betterproto2.Enum):
                names.setdefault(package, set()).add(describe.enum_name(cls))
    assert sum(map(len, names.values())) > 2000
    for package, wanted in names.items():
        file = reflection.file_of(min(wanted))
        assert file == describe.file_name(package)
        assert wanted <= set(reflection._symbols(reflection._file(file)))
        whole = sum(reflection._file(each).ByteSize() for each in reflection.dependency_closure(file))
        assert whole < 1024 * 1024, file


async def test_describing_does_not_block_the_event_loop(channel, monkeypatch):
    started, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(name: str) -> tuple[str, ...]:
        loop.call_soon_threadsafe(started.set)
        assert go_on.wait(60)
        return (name,)

    monkeypatch.setattr(reflection, "dependency_closure", slow)
    asking = asyncio.create_task(
        ask(channel, reflection.V1, {"file_by_filename": "envoy/config/core/v3.proto"})
    )
    await started.wait()
    await ask(channel, reflection.V1, {"list_services": ""})
    assert not asking.done()
    go_on.set()
    (response,) = await asking
    assert len(files(response)) == 1
