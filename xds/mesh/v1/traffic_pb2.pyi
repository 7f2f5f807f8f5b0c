import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListTrafficRequest(_message.Message):
    __slots__ = ("namespace", "plaintext_only", "denied_only", "period")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_ONLY_FIELD_NUMBER: _ClassVar[int]
    DENIED_ONLY_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    plaintext_only: bool
    denied_only: bool
    period: _duration_pb2.Duration
    def __init__(self, namespace: _Optional[str] = ..., plaintext_only: _Optional[bool] = ..., denied_only: _Optional[bool] = ..., period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListTrafficResponse(_message.Message):
    __slots__ = ("edges", "enabled", "may_be_on_other_replica", "since", "time", "dropped", "missing_replicas", "last_dropped", "request", "incomplete", "period")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_ON_OTHER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    MISSING_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LAST_DROPPED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[TrafficEdge]
    enabled: bool
    may_be_on_other_replica: bool
    since: _timestamp_pb2.Timestamp
    time: _timestamp_pb2.Timestamp
    dropped: int
    missing_replicas: _containers.RepeatedCompositeFieldContainer[MissingReplica]
    last_dropped: _timestamp_pb2.Timestamp
    request: ListTrafficRequest
    incomplete: _containers.RepeatedCompositeFieldContainer[IncompleteReports]
    period: _duration_pb2.Duration
    def __init__(self, edges: _Optional[_Iterable[_Union[TrafficEdge, _Mapping]]] = ..., enabled: _Optional[bool] = ..., may_be_on_other_replica: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dropped: _Optional[int] = ..., missing_replicas: _Optional[_Iterable[_Union[MissingReplica, _Mapping]]] = ..., last_dropped: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request: _Optional[_Union[ListTrafficRequest, _Mapping]] = ..., incomplete: _Optional[_Iterable[_Union[IncompleteReports, _Mapping]]] = ..., period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class IncompleteReports(_message.Message):
    __slots__ = ("namespace", "pod", "reason", "last")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    reason: str
    last: _timestamp_pb2.Timestamp
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ..., reason: _Optional[str] = ..., last: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class MissingReplica(_message.Message):
    __slots__ = ("replica", "reason")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    replica: str
    reason: str
    def __init__(self, replica: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class TrafficEdge(_message.Message):
    __slots__ = ("client_namespace", "client", "namespace", "service", "port", "mode", "requests_per_minute", "minutes", "requests_per_day", "failed_per_hour", "first_seen", "last_seen", "denial", "by_server")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[TrafficEdge.Mode]
        MTLS: _ClassVar[TrafficEdge.Mode]
        TLS: _ClassVar[TrafficEdge.Mode]
        PLAINTEXT: _ClassVar[TrafficEdge.Mode]
        REFUSED: _ClassVar[TrafficEdge.Mode]
    MODE_UNSPECIFIED: TrafficEdge.Mode
    MTLS: TrafficEdge.Mode
    TLS: TrafficEdge.Mode
    PLAINTEXT: TrafficEdge.Mode
    REFUSED: TrafficEdge.Mode
    CLIENT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    MINUTES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    FAILED_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    DENIAL_FIELD_NUMBER: _ClassVar[int]
    BY_SERVER_FIELD_NUMBER: _ClassVar[int]
    client_namespace: str
    client: str
    namespace: str
    service: str
    port: int
    mode: TrafficEdge.Mode
    requests_per_minute: float
    minutes: _containers.RepeatedScalarFieldContainer[int]
    requests_per_day: int
    failed_per_hour: int
    first_seen: _timestamp_pb2.Timestamp
    last_seen: _timestamp_pb2.Timestamp
    denial: Denial
    by_server: bool
    def __init__(self, client_namespace: _Optional[str] = ..., client: _Optional[str] = ..., namespace: _Optional[str] = ..., service: _Optional[str] = ..., port: _Optional[int] = ..., mode: _Optional[_Union[TrafficEdge.Mode, str]] = ..., requests_per_minute: _Optional[float] = ..., minutes: _Optional[_Iterable[int]] = ..., requests_per_day: _Optional[int] = ..., failed_per_hour: _Optional[int] = ..., first_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., denial: _Optional[_Union[Denial, _Mapping]] = ..., by_server: _Optional[bool] = ...) -> None: ...

class Denial(_message.Message):
    __slots__ = ("rule", "method", "path", "dry_run")
    RULE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    rule: str
    method: str
    path: str
    dry_run: bool
    def __init__(self, rule: _Optional[str] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...
