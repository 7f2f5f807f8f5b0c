import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from xds.mesh.v1 import traffic_pb2 as _traffic_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchReplicaTrafficRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaTraffic(_message.Message):
    __slots__ = ("replica", "time", "since", "dropped", "edges", "complete", "sidecars", "last_dropped", "incomplete", "denials", "returned")
    class IncompleteEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _timestamp_pb2.Timestamp
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
    class ReturnedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _timestamp_pb2.Timestamp
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    LAST_DROPPED_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    DENIALS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    replica: str
    time: _timestamp_pb2.Timestamp
    since: _timestamp_pb2.Timestamp
    dropped: int
    edges: _containers.RepeatedCompositeFieldContainer[ReplicaEdge]
    complete: bool
    sidecars: ConnectedSidecars
    last_dropped: _timestamp_pb2.Timestamp
    incomplete: _containers.MessageMap[str, _timestamp_pb2.Timestamp]
    denials: _containers.RepeatedCompositeFieldContainer[ReplicaEdge]
    returned: _containers.MessageMap[str, _timestamp_pb2.Timestamp]
    def __init__(self, replica: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dropped: _Optional[int] = ..., edges: _Optional[_Iterable[_Union[ReplicaEdge, _Mapping]]] = ..., complete: _Optional[bool] = ..., sidecars: _Optional[_Union[ConnectedSidecars, _Mapping]] = ..., last_dropped: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., incomplete: _Optional[_Mapping[str, _timestamp_pb2.Timestamp]] = ..., denials: _Optional[_Iterable[_Union[ReplicaEdge, _Mapping]]] = ..., returned: _Optional[_Mapping[str, _timestamp_pb2.Timestamp]] = ...) -> None: ...

class ConnectedSidecars(_message.Message):
    __slots__ = ("pods",)
    PODS_FIELD_NUMBER: _ClassVar[int]
    pods: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pods: _Optional[_Iterable[str]] = ...) -> None: ...

class ReplicaEdge(_message.Message):
    __slots__ = ("replica", "edge", "client", "server", "failed", "by_server")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BY_SERVER_FIELD_NUMBER: _ClassVar[int]
    replica: str
    edge: _traffic_pb2.TrafficEdge
    client: TrafficCounts
    server: TrafficCounts
    failed: TrafficCounts
    by_server: bool
    def __init__(self, replica: _Optional[str] = ..., edge: _Optional[_Union[_traffic_pb2.TrafficEdge, _Mapping]] = ..., client: _Optional[_Union[TrafficCounts, _Mapping]] = ..., server: _Optional[_Union[TrafficCounts, _Mapping]] = ..., failed: _Optional[_Union[TrafficCounts, _Mapping]] = ..., by_server: _Optional[bool] = ...) -> None: ...

class TrafficCounts(_message.Message):
    __slots__ = ("minutes", "tens")
    MINUTES_FIELD_NUMBER: _ClassVar[int]
    TENS_FIELD_NUMBER: _ClassVar[int]
    minutes: _containers.RepeatedScalarFieldContainer[int]
    tens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, minutes: _Optional[_Iterable[int]] = ..., tens: _Optional[_Iterable[int]] = ...) -> None: ...
