import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    SYNCED: _ClassVar[State]
    WAITING: _ClassVar[State]
    REJECTED: _ClassVar[State]
STATE_UNSPECIFIED: State
SYNCED: State
WAITING: State
REJECTED: State

class ListProxiesRequest(_message.Message):
    __slots__ = ("proxy", "namespace", "unsynced")
    PROXY_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    UNSYNCED_FIELD_NUMBER: _ClassVar[int]
    proxy: str
    namespace: str
    unsynced: bool
    def __init__(self, proxy: _Optional[str] = ..., namespace: _Optional[str] = ..., unsynced: _Optional[bool] = ...) -> None: ...

class ListProxiesResponse(_message.Message):
    __slots__ = ("proxies", "time", "not_connected", "warnings", "more_warnings")
    PROXIES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    NOT_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MORE_WARNINGS_FIELD_NUMBER: _ClassVar[int]
    proxies: _containers.RepeatedCompositeFieldContainer[Proxy]
    time: _timestamp_pb2.Timestamp
    not_connected: NotConnected
    warnings: _containers.RepeatedCompositeFieldContainer[ObjectWarning]
    more_warnings: int
    def __init__(self, proxies: _Optional[_Iterable[_Union[Proxy, _Mapping]]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_connected: _Optional[_Union[NotConnected, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[ObjectWarning, _Mapping]]] = ..., more_warnings: _Optional[int] = ...) -> None: ...

class NotConnected(_message.Message):
    __slots__ = ("pods", "total", "may_be_on_other_replica")
    PODS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_ON_OTHER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    pods: _containers.RepeatedCompositeFieldContainer[AbsentSidecar]
    total: int
    may_be_on_other_replica: bool
    def __init__(self, pods: _Optional[_Iterable[_Union[AbsentSidecar, _Mapping]]] = ..., total: _Optional[int] = ..., may_be_on_other_replica: _Optional[bool] = ...) -> None: ...

class AbsentSidecar(_message.Message):
    __slots__ = ("namespace", "pod", "since")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ObjectWarning(_message.Message):
    __slots__ = ("place", "what", "hint", "level", "served_version")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[ObjectWarning.Level]
        WARNING: _ClassVar[ObjectWarning.Level]
        NOTICE: _ClassVar[ObjectWarning.Level]
    LEVEL_UNSPECIFIED: ObjectWarning.Level
    WARNING: ObjectWarning.Level
    NOTICE: ObjectWarning.Level
    PLACE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SERVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    place: str
    what: str
    hint: str
    level: ObjectWarning.Level
    served_version: str
    def __init__(self, place: _Optional[str] = ..., what: _Optional[str] = ..., hint: _Optional[str] = ..., level: _Optional[_Union[ObjectWarning.Level, str]] = ..., served_version: _Optional[str] = ...) -> None: ...

class WatchProxiesRequest(_message.Message):
    __slots__ = ("proxy", "namespace", "unsynced")
    PROXY_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    UNSYNCED_FIELD_NUMBER: _ClassVar[int]
    proxy: str
    namespace: str
    unsynced: bool
    def __init__(self, proxy: _Optional[str] = ..., namespace: _Optional[str] = ..., unsynced: _Optional[bool] = ...) -> None: ...

class WatchProxiesResponse(_message.Message):
    __slots__ = ("proxies", "gone", "time", "not_connected")
    PROXIES_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    NOT_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    proxies: _containers.RepeatedCompositeFieldContainer[Proxy]
    gone: _containers.RepeatedScalarFieldContainer[str]
    time: _timestamp_pb2.Timestamp
    not_connected: NotConnected
    def __init__(self, proxies: _Optional[_Iterable[_Union[Proxy, _Mapping]]] = ..., gone: _Optional[_Iterable[str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_connected: _Optional[_Union[NotConnected, _Mapping]] = ...) -> None: ...

class ResourcesRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class ServedResource(_message.Message):
    __slots__ = ("type_url", "name", "version", "state", "sources")
    TYPE_URL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    type_url: str
    name: str
    version: str
    state: Resource.State
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type_url: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[Resource.State, str]] = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class Proxy(_message.Message):
    __slots__ = ("node_id", "namespace", "pod", "agent", "agent_version", "problem", "streams", "certificate_expires_at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    namespace: str
    pod: str
    agent: str
    agent_version: str
    problem: str
    streams: _containers.RepeatedCompositeFieldContainer[Stream]
    certificate_expires_at: _timestamp_pb2.Timestamp
    def __init__(self, node_id: _Optional[str] = ..., namespace: _Optional[str] = ..., pod: _Optional[str] = ..., agent: _Optional[str] = ..., agent_version: _Optional[str] = ..., problem: _Optional[str] = ..., streams: _Optional[_Iterable[_Union[Stream, _Mapping]]] = ..., certificate_expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Stream(_message.Message):
    __slots__ = ("peer", "variant", "type_url", "connected_at", "types")
    class Variant(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VARIANT_UNSPECIFIED: _ClassVar[Stream.Variant]
        SOTW: _ClassVar[Stream.Variant]
        DELTA: _ClassVar[Stream.Variant]
    VARIANT_UNSPECIFIED: Stream.Variant
    SOTW: Stream.Variant
    DELTA: Stream.Variant
    PEER_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    TYPE_URL_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_AT_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    variant: Stream.Variant
    type_url: str
    connected_at: _timestamp_pb2.Timestamp
    types: _containers.RepeatedCompositeFieldContainer[Type]
    def __init__(self, peer: _Optional[str] = ..., variant: _Optional[_Union[Stream.Variant, str]] = ..., type_url: _Optional[str] = ..., connected_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., types: _Optional[_Iterable[_Union[Type, _Mapping]]] = ...) -> None: ...

class Type(_message.Message):
    __slots__ = ("type_url", "state", "waiting", "rejection", "resources", "wildcard", "names", "version", "sent_at", "acked_at", "unanswered", "unsynced")
    TYPE_URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    WILDCARD_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    ACKED_AT_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    UNSYNCED_FIELD_NUMBER: _ClassVar[int]
    type_url: str
    state: State
    waiting: Waiting
    rejection: Rejection
    resources: Counts
    wildcard: bool
    names: int
    version: str
    sent_at: _timestamp_pb2.Timestamp
    acked_at: _timestamp_pb2.Timestamp
    unanswered: int
    unsynced: _containers.RepeatedCompositeFieldContainer[Resource]
    def __init__(self, type_url: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., rejection: _Optional[_Union[Rejection, _Mapping]] = ..., resources: _Optional[_Union[Counts, _Mapping]] = ..., wildcard: _Optional[bool] = ..., names: _Optional[int] = ..., version: _Optional[str] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., acked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unanswered: _Optional[int] = ..., unsynced: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("reason", "type_url", "since")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Waiting.Reason]
        ACK: _ClassVar[Waiting.Reason]
        READ: _ClassVar[Waiting.Reason]
        CONFIGURATION: _ClassVar[Waiting.Reason]
        TYPE: _ClassVar[Waiting.Reason]
    REASON_UNSPECIFIED: Waiting.Reason
    ACK: Waiting.Reason
    READ: Waiting.Reason
    CONFIGURATION: Waiting.Reason
    TYPE: Waiting.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    TYPE_URL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    reason: Waiting.Reason
    type_url: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[_Union[Waiting.Reason, str]] = ..., type_url: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("version", "code", "message", "time", "resources", "sources", "causes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    version: str
    code: int
    message: str
    time: _timestamp_pb2.Timestamp
    resources: _containers.RepeatedScalarFieldContainer[str]
    sources: _containers.RepeatedScalarFieldContainer[str]
    causes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., resources: _Optional[_Iterable[str]] = ..., sources: _Optional[_Iterable[str]] = ..., causes: _Optional[_Iterable[str]] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("synced", "stale", "not_sent", "error")
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    NOT_SENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    synced: int
    stale: int
    not_sent: int
    error: int
    def __init__(self, synced: _Optional[int] = ..., stale: _Optional[int] = ..., not_sent: _Optional[int] = ..., error: _Optional[int] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("name", "state", "sent_version", "version", "updated_at", "rejection")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Resource.State]
        STALE: _ClassVar[Resource.State]
        NOT_SENT: _ClassVar[Resource.State]
        ERROR: _ClassVar[Resource.State]
        SYNCED: _ClassVar[Resource.State]
    STATE_UNSPECIFIED: Resource.State
    STALE: Resource.State
    NOT_SENT: Resource.State
    ERROR: Resource.State
    SYNCED: Resource.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Resource.State
    sent_version: str
    version: str
    updated_at: _timestamp_pb2.Timestamp
    rejection: Rejection
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Resource.State, str]] = ..., sent_version: _Optional[str] = ..., version: _Optional[str] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rejection: _Optional[_Union[Rejection, _Mapping]] = ...) -> None: ...
