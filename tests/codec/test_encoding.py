"""`encode` against betterproto2's own encoder, with random messages."""

import dataclasses
import importlib
import pkgutil
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args, get_type_hints

import betterproto2
import envoy_data_plane
import pytest
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as tcp_proxy
from envoy_data_plane.envoy.service.status import v3 as status
from envoy_data_plane.google.protobuf import NullValue, Struct, Value
from envoy_data_plane.message_pool import default_message_pool

from tests.codec.served_types import SERVED_TYPES
from xds.codec import encode, full_name, message_class, pack, to_json_dict

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


INTEGERS = {
    "int32": (-(2**31), 2**31 - 1),
    "sint32": (-(2**31), 2**31 - 1),
    "sfixed32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "sint64": (-(2**63), 2**63 - 1),
    "sfixed64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "fixed32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "fixed64": (0, 2**64 - 1),
}
TEXTS = ["", "a", "outbound|80||x", "schlüssel", "中文", "\0", "🔑"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Maker:
    """Makes random messages. Fields are set with a probability of one half, and less at greater depths."""

    def __init__(self, seed: str, depth: int = 4) -> None:
        self.random = random.Random(seed)
        self.depth = depth

    def message(self, cls: type[Any], depth: int | None = None) -> Any:
        depth = self.depth if depth is None else depth
        hints = get_type_hints(cls, vars(sys.modules[cls.__module__]), {})
        values: dict[str, Any] = {}
        taken: set[str] = set()
        fields = [(field.name, betterproto2.FieldMetadata.get(field)) for field in dataclasses.fields(cls)]
        self.random.shuffle(fields)
        for name, meta in fields:
            nested = meta.proto_type in (betterproto2.TYPE_MESSAGE, betterproto2.TYPE_MAP)
            if meta.group in taken or self.random.random() < (0.5 if not nested else 1 - depth / 8):
                continue
            if meta.group:
                taken.add(meta.group)
            values[name] = self.field(meta, hints[name], depth - 1)
        return cls(**values)

    def field(self, meta: betterproto2.FieldMetadata, hint: Any, depth: int) -> Any:
        args = get_args(hint)
        if meta.map_meta:
            key, value = meta.map_meta
            return {
                self.value(key, args[0], depth): self.value(value, args[1], depth)
                for _ in range(self.random.randrange(4))
            }
        if meta.repeated:
            return [self.value(meta, args[0], depth) for _ in range(self.random.randrange(3))]
        return self.value(meta, args[0] if args else hint, depth)

    def value(self, meta: betterproto2.FieldMetadata, cls: Any, depth: int) -> Any:
        kind = meta.proto_type
        if kind in INTEGERS:
            return self.random.choice([0, 1, *INTEGERS[kind]])
        if kind == "message" and meta.unwrap:
            inner = betterproto2.FieldMetadata.get(dataclasses.fields(meta.unwrap())[0])
            if cls is timedelta:
                return timedelta(microseconds=self.random.choice([0, 1, 1500000, 10**13 + 7]))
            if cls is datetime:
                return EPOCH + timedelta(microseconds=self.random.choice([-7, 0, 1, 1500000, 10**15 + 7]))
            return self.value(inner, cls, depth)
        if kind == "message":
            return self.message(cls, max(depth, 0))
        if kind == "enum":
            return self.random.choice([*cls, cls(0), cls(7777)])
        if kind == "bool":
            return self.random.random() < 0.5
        if kind == "bytes":
            return self.random.choice([b"", b"\0\xff", b"bytes"])
        if kind == "string":
            return self.random.choice(TEXTS)
        assert kind in ("float", "double")
        return self.random.choice([0.0, 1.5, -2.25, 1e9])


def assert_same(message: betterproto2.Message) -> None:
    """Both encoders give equal messages with both decoders."""
    cls = type(message)
    fast, slow = encode(message), bytes(message)
    assert cls.parse(fast) == cls.parse(slow) == message
    protobuf = message_class(full_name(cls))
    assert protobuf.FromString(fast) == protobuf.FromString(slow)
    assert encode(cls.parse(slow)) == fast


@pytest.mark.parametrize("cls", SERVED_TYPES, ids=full_name)
def test_random_served_messages_equal_those_of_betterproto2(cls: type[Any]) -> None:
    for number in range(25):
        assert_same(Maker(f"{cls.__name__} {number}").message(cls))


def test_random_messages_of_all_types_equal_betterproto2s() -> None:
    for module in pkgutil.walk_packages(envoy_data_plane.__path__, "envoy_data_plane."):
        importlib.import_module(module.name)
    for cls in tuple(default_message_pool.type_to_url):
        protobuf = message_class(full_name(cls))
        if protobuf.DESCRIPTOR.file.name != "google/protobuf/descriptor.proto":  # Enums of proto2 are closed.
            assert_same(Maker(cls.__name__, depth=2).message(cls))


def parsed(message: betterproto2.Message) -> Any:
    return message_class(full_name(type(message))).FromString(encode(message))


def test_a_set_value_is_sent_even_when_it_is_the_default() -> None:
    socket = core.SocketAddress(address="", port_value=0)
    assert parsed(socket).WhichOneof("port_specifier") == "port_value"
    assert parsed(endpoint.LbEndpoint(load_balancing_weight=0)).HasField("load_balancing_weight")
    assert parsed(cluster.Cluster(connect_timeout=timedelta(0))).HasField("connect_timeout")
    assert parsed(core.ConfigSource(ads=core.AggregatedConfigSource())).HasField("ads")
    assert parsed(Value(null_value=NullValue.NULL_VALUE)).WhichOneof("kind") == "null_value"
    assert parsed(Value(struct_value=Struct())).WhichOneof("kind") == "struct_value"


def test_an_unset_value_is_not_sent() -> None:
    assert encode(cluster.Cluster()) == b""
    assert encode(endpoint.LbEndpoint(health_status=core.HealthStatus.UNKNOWN)) == b""
    assert encode(core.SocketAddress(address="")) == b""


def test_an_empty_message_in_a_list_is_sent() -> None:
    assignment = endpoint.ClusterLoadAssignment(endpoints=[endpoint.LocalityLbEndpoints()] * 2)
    assert len(parsed(assignment).endpoints) == 2


def test_an_unknown_enum_value_survives() -> None:
    assert parsed(endpoint.LbEndpoint(health_status=core.HealthStatus(99))).health_status == 99


def test_unknown_fields_survive() -> None:
    future = encode(core.Locality(region="eu")) + b"\xfa\x3f\x03new"
    assert encode(core.Locality.parse(future)) == future


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=10), "10s"),
        (timedelta(milliseconds=250), "0.250s"),
        (timedelta(days=365), "31536000s"),
        (timedelta(microseconds=1), "0.000001s"),
        (timedelta(seconds=-1.5), "-1.500s"),
    ],
)
def test_durations_are_exact(span: timedelta, text: str) -> None:
    assert to_json_dict(cluster.Cluster(connect_timeout=span)) == {"connect_timeout": text}


def test_timestamps_are_independent_of_the_time_zone() -> None:
    noon = datetime(2030, 1, 1, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=8)))
    message = status.ClientConfigGenericXdsConfig(last_updated=noon)
    assert to_json_dict(message) == {"last_updated": "2030-01-01T04:00:00.000005Z"}


def test_a_timestamp_without_a_zone_is_refused() -> None:
    message = status.ClientConfigGenericXdsConfig(last_updated=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="time zone"):
        encode(message)


def test_two_members_of_a_oneof_are_refused() -> None:
    source = core.ConfigSource(ads=core.AggregatedConfigSource())
    source.path = "/etc/envoy/cds.yaml"
    with pytest.raises(ValueError, match=r"ConfigSource: .*'config_source_specifier'"):
        encode(source)


@pytest.mark.parametrize("port", [-1, 2**32])
def test_a_number_out_of_range_is_refused(port: int) -> None:
    address = core.SocketAddress(port_value=1)
    address.port_value = port
    with pytest.raises(ValueError, match=r"(?i)out of range"):
        encode(address)


def test_a_value_of_the_wrong_type_is_refused() -> None:
    address = core.SocketAddress()
    address.address = 7  # type: ignore[assignment]
    with pytest.raises(TypeError):
        encode(address)


def metadata(*names: str) -> core.Metadata:
    return core.Metadata(
        filter_metadata={name: Struct(fields={key: Value(number_value=1) for key in names}) for name in names}
    )


def test_maps_are_encoded_in_one_order() -> None:
    names = ["namespace", "name", "a", "", "envoy.transport_socket_match", "é"]
    bodies = set()
    for seed in range(10):
        random.Random(seed).shuffle(names)
        bodies.add(encode(metadata(*names)))
    assert len(bodies) == 1


def test_another_process_gives_the_same_bytes() -> None:
    script = (
        "from envoy_data_plane.envoy.config.core import v3 as core\n"
        "from envoy_data_plane.google.protobuf import Struct, Value\n"
        "from xds.codec import encode\n"
        "names = {'namespace', 'name', 'a', 'b', 'c'}\n"
        "fields = {name: Value(number_value=1) for name in names}\n"
        "metadata = core.Metadata(filter_metadata={name: Struct(fields=fields) for name in names})\n"
        "print(encode(metadata).hex())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {encode(metadata("a", "b", "c", "name", "namespace")).hex().encode() + b"\n"}


def test_pack_names_the_type_and_encodes_the_value() -> None:
    packed = pack(tcp_proxy.TcpProxy(stat_prefix="x", cluster="y"))
    assert packed.type_url == "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    assert packed.unpack() == tcp_proxy.TcpProxy(stat_prefix="x", cluster="y")
