import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListProblemsRequest(_message.Message):
    __slots__ = ("namespace", "notices")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    notices: bool
    def __init__(self, namespace: _Optional[str] = ..., notices: _Optional[bool] = ...) -> None: ...

class ListProblemsResponse(_message.Message):
    __slots__ = ("problems", "more_problems", "time")
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    MORE_PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    problems: _containers.RepeatedCompositeFieldContainer[ObjectProblem]
    more_problems: int
    time: _timestamp_pb2.Timestamp
    def __init__(self, problems: _Optional[_Iterable[_Union[ObjectProblem, _Mapping]]] = ..., more_problems: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ObjectProblem(_message.Message):
    __slots__ = ("place", "object", "what", "hint", "notice", "since", "served_version", "resource_version")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SERVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    place: str
    object: str
    what: str
    hint: str
    notice: bool
    since: _timestamp_pb2.Timestamp
    served_version: str
    resource_version: str
    def __init__(self, place: _Optional[str] = ..., object: _Optional[str] = ..., what: _Optional[str] = ..., hint: _Optional[str] = ..., notice: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., served_version: _Optional[str] = ..., resource_version: _Optional[str] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("kind", "namespace", "name", "resource_version", "condition")
    class Condition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        IN_FORCE: _ClassVar[WaitRequest.Condition]
        ACKED: _ClassVar[WaitRequest.Condition]
    IN_FORCE: WaitRequest.Condition
    ACKED: WaitRequest.Condition
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    resource_version: str
    condition: WaitRequest.Condition
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., resource_version: _Optional[str] = ..., condition: _Optional[_Union[WaitRequest.Condition, str]] = ...) -> None: ...

class WaitResponse(_message.Message):
    __slots__ = ("state", "detail", "affected", "acked", "lagging", "transitions", "not_connected", "resource_version", "has_versions", "may_be_on_other_replica")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[WaitResponse.State]
        READING: _ClassVar[WaitResponse.State]
        ACKS: _ClassVar[WaitResponse.State]
        TRANSITION: _ClassVar[WaitResponse.State]
        READY: _ClassVar[WaitResponse.State]
        REJECTED: _ClassVar[WaitResponse.State]
        INVALID: _ClassVar[WaitResponse.State]
        NOT_FOUND: _ClassVar[WaitResponse.State]
        NO_VERSIONS: _ClassVar[WaitResponse.State]
    STATE_UNSPECIFIED: WaitResponse.State
    READING: WaitResponse.State
    ACKS: WaitResponse.State
    TRANSITION: WaitResponse.State
    READY: WaitResponse.State
    REJECTED: WaitResponse.State
    INVALID: WaitResponse.State
    NOT_FOUND: WaitResponse.State
    NO_VERSIONS: WaitResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    LAGGING_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    NOT_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_ON_OTHER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    state: WaitResponse.State
    detail: str
    affected: int
    acked: int
    lagging: _containers.RepeatedCompositeFieldContainer[LaggingProxy]
    transitions: _containers.RepeatedScalarFieldContainer[str]
    not_connected: int
    resource_version: str
    has_versions: bool
    may_be_on_other_replica: bool
    def __init__(self, state: _Optional[_Union[WaitResponse.State, str]] = ..., detail: _Optional[str] = ..., affected: _Optional[int] = ..., acked: _Optional[int] = ..., lagging: _Optional[_Iterable[_Union[LaggingProxy, _Mapping]]] = ..., transitions: _Optional[_Iterable[str]] = ..., not_connected: _Optional[int] = ..., resource_version: _Optional[str] = ..., has_versions: _Optional[bool] = ..., may_be_on_other_replica: _Optional[bool] = ...) -> None: ...

class LaggingProxy(_message.Message):
    __slots__ = ("node_id", "reason", "rejected")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    reason: str
    rejected: bool
    def __init__(self, node_id: _Optional[str] = ..., reason: _Optional[str] = ..., rejected: _Optional[bool] = ...) -> None: ...
