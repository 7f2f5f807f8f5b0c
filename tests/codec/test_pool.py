"""The descriptors are complete and lazy, and lookups import no other packages."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import betterproto2
import envoy_data_plane
import pytest
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from xds.codec import describe, full_name, message_class, pool, type_url

CDS = "envoy.service.cluster.v3.ClusterDiscoveryService"


def test_every_package_can_be_described() -> None:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(envoy_data_plane.__path__, "envoy_data_plane.")
    ]
    for cls in tuple(default_message_pool.type_to_url):
        descriptor = message_class(full_name(cls)).DESCRIPTOR
        numbers = {field.number for field in descriptor.fields}
        assert numbers >= set(cls._betterproto.field_name_by_number), descriptor.full_name
    enums = 0
    for module in modules:
        package = module.__name__.removeprefix("envoy_data_plane.")
        if package == "google.protobuf":
            continue
        for cls in vars(module).values():
            if (
                isinstance(cls, type)
                and cls.__module__ == module.__name__
                and issubclass(cls, betterproto2.Enum)
            ):
                found = pool.FindEnumTypeByName(describe.enum_name(cls))
                assert {value.number for value in found.values} == {int(member) for member in cls}
                enums += 1
    assert enums > 200


def test_the_exceptions_are_all_needed_still() -> None:
    for name in describe.ENUM_NAMES:
        package, _, cls = name.rpartition(".")
        assert hasattr(importlib.import_module(f"envoy_data_plane.{package}"), cls), name


def test_a_message_is_described_as_in_its_proto_file() -> None:
    descriptor = message_class("envoy.config.core.v3.SocketAddress").DESCRIPTOR
    assert [(field.name, field.number) for field in descriptor.oneofs_by_name["port_specifier"].fields] == [
        ("port_value", 3),
        ("named_port", 4),
    ]
    assert (
        descriptor.fields_by_name["protocol"].enum_type.full_name
        == "envoy.config.core.v3.SocketAddress.Protocol"
    )
    assert descriptor.fields_by_name["address"].type == FieldDescriptor.TYPE_STRING
    assert not descriptor.fields_by_name["address"].has_presence


def test_maps_are_maps() -> None:
    field = message_class("envoy.config.core.v3.Metadata").DESCRIPTOR.fields_by_name["typed_filter_metadata"]
    assert field.message_type.GetOptions().map_entry
    assert field.message_type.full_name == "envoy.config.core.v3.Metadata.TypedFilterMetadataEntry"
    assert field.message_type.fields_by_name["value"].message_type.full_name == "google.protobuf.Any"


def test_keywords_have_their_own_names_again() -> None:
    assert "in" in message_class("validate.StringRules").DESCRIPTOR.fields_by_name


def test_an_enum_with_two_names_for_a_number_has_both() -> None:
    enum = pool.FindEnumTypeByName("envoy.extensions.compression.gzip.compressor.v3.Gzip.CompressionLevel")
    assert enum.values_by_name["BEST_SPEED"].number == enum.values_by_name["COMPRESSION_LEVEL_1"].number == 1


def test_services_are_described() -> None:
    method = pool.FindMethodByName(f"{CDS}.DeltaClusters")
    assert method.input_type.full_name == "envoy.service.discovery.v3.DeltaDiscoveryRequest"
    assert method.output_type.full_name == "envoy.service.discovery.v3.DeltaDiscoveryResponse"
    assert method.client_streaming
    assert method.server_streaming
    assert not pool.FindMethodByName(f"{CDS}.FetchClusters").server_streaming


def test_the_well_known_types_are_protobufs_own() -> None:
    duration = message_class("google.protobuf.Duration")
    assert duration.DESCRIPTOR.file.name == "google/protobuf/duration.proto"
    assert hasattr(duration, "ToTimedelta")


def test_files_of_imported_libraries_are_found() -> None:
    file = FileDescriptorProto(name="somewhere/else.proto", package="somewhere.v1", syntax="proto3")
    file.message_type.add(name="Thing").field.add(name="known", number=1, type=FieldDescriptor.TYPE_BOOL)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    assert message_class("somewhere.v1.Thing")(known=True).known
    assert pool.FindFileByName("somewhere/else.proto").package == "somewhere.v1"


def test_type_url_of_a_message_and_of_its_class() -> None:
    assert type_url(cluster.Cluster) == "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    assert type_url(cluster.Cluster()) == type_url(cluster.Cluster)
    assert full_name(cluster.ClusterEdsClusterConfig) == "envoy.config.cluster.v3.Cluster.EdsClusterConfig"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "Cluster",
        "os.path.Thing",
        "antigravity.Thing",
        "envoy..config.Cluster",
        "envoy.config.cluster.v3.Nothing",
        "envoy.config.cluster.v3.Cluster.",
        "envoy.nothing.v3.Cluster",
        "../../antigravity.Thing",
        "message_pool.MessagePool",
        "envoy.config.cluster.v3.betterproto2.Message",
        "envoy.config.clüster.v3.Cluster",
    ],
)
def test_unknown_name_raises_key_error_without_import(name: str) -> None:
    with pytest.raises(KeyError):
        message_class(name)
    with pytest.raises(KeyError):
        pool.FindFileByName(name + ".proto")
    assert "antigravity" not in sys.modules


def test_only_looked_up_packages_are_imported() -> None:
    script = (
        "import sys; from xds.codec import message_class\\n"
        "message_class('envoy.service.discovery.v3.DiscoveryRequest')\\n"
        "filters = 'envoy_data_plane.envoy.extensions.filters'\\n"
        "print(*(name for name in sys.modules if name.startswith(filters)))"
    ).replace("\\n", "\n")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_malformed_bytes_are_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        message_class("envoy.service.discovery.v3.DiscoveryRequest").FromString(b"\xff\xff")


def test_a_scalar_marked_optional_has_presence(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("envoy_data_plane.made.up.v1")
    fields = [("size", "int | None", betterproto2.field(1, betterproto2.TYPE_UINT32, optional=True))]
    cls = dataclasses.make_dataclass("Box", fields, bases=(betterproto2.Message,), eq=False, repr=False)
    cls.__module__, module.Box = module.__name__, cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(default_message_pool.type_to_url, cls, "type.googleapis.com/made.up.v1.Box")
    file = describe.describe(module)
    assert file.message_type[0].field[0].proto3_optional
    assert [oneof.name for oneof in file.message_type[0].oneof_decl] == ["_size"]
