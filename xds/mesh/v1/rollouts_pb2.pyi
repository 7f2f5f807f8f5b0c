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

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    DISABLE: _ClassVar[Mode]
    PERMISSIVE: _ClassVar[Mode]
    STRICT: _ClassVar[Mode]
MODE_UNSPECIFIED: Mode
DISABLE: Mode
PERMISSIVE: Mode
STRICT: Mode

class ListRolloutsRequest(_message.Message):
    __slots__ = ("namespace", "finished")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    finished: bool
    def __init__(self, namespace: _Optional[str] = ..., finished: _Optional[bool] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("services", "rules", "plaintext_disabled", "skipped", "time", "finished")
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_DISABLED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    services: _containers.RepeatedCompositeFieldContainer[ServiceRollout]
    rules: _containers.RepeatedCompositeFieldContainer[RuleRollout]
    plaintext_disabled: int
    skipped: int
    time: _timestamp_pb2.Timestamp
    finished: _containers.RepeatedCompositeFieldContainer[FinishedTransition]
    def __init__(self, services: _Optional[_Iterable[_Union[ServiceRollout, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[RuleRollout, _Mapping]]] = ..., plaintext_disabled: _Optional[int] = ..., skipped: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished: _Optional[_Iterable[_Union[FinishedTransition, _Mapping]]] = ...) -> None: ...

class ServiceRollout(_message.Message):
    __slots__ = ("namespace", "service", "status", "endpoints", "mtls", "plaintext", "waiting")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    MTLS_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    service: str
    status: str
    endpoints: int
    mtls: int
    plaintext: int
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingEndpoint]
    def __init__(self, namespace: _Optional[str] = ..., service: _Optional[str] = ..., status: _Optional[str] = ..., endpoints: _Optional[int] = ..., mtls: _Optional[int] = ..., plaintext: _Optional[int] = ..., waiting: _Optional[_Iterable[_Union[WaitingEndpoint, _Mapping]]] = ...) -> None: ...

class WaitingEndpoint(_message.Message):
    __slots__ = ("pod", "port", "desired_mode", "waiting_for", "since", "clients", "more_clients", "rejection", "accepts_plaintext", "skipped", "replicas", "phase")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[WaitingEndpoint.Phase]
        EXPAND: _ClassVar[WaitingEndpoint.Phase]
        MIGRATE: _ClassVar[WaitingEndpoint.Phase]
        CONTRACT: _ClassVar[WaitingEndpoint.Phase]
    PHASE_UNSPECIFIED: WaitingEndpoint.Phase
    EXPAND: WaitingEndpoint.Phase
    MIGRATE: WaitingEndpoint.Phase
    CONTRACT: WaitingEndpoint.Phase
    class WaitingFor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAITING_FOR_UNSPECIFIED: _ClassVar[WaitingEndpoint.WaitingFor]
        LISTENER: _ClassVar[WaitingEndpoint.WaitingFor]
        CLIENTS: _ClassVar[WaitingEndpoint.WaitingFor]
        REPLICAS: _ClassVar[WaitingEndpoint.WaitingFor]
    WAITING_FOR_UNSPECIFIED: WaitingEndpoint.WaitingFor
    LISTENER: WaitingEndpoint.WaitingFor
    CLIENTS: WaitingEndpoint.WaitingFor
    REPLICAS: WaitingEndpoint.WaitingFor
    POD_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    DESIRED_MODE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_PLAINTEXT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    pod: str
    port: int
    desired_mode: Mode
    waiting_for: WaitingEndpoint.WaitingFor
    since: _timestamp_pb2.Timestamp
    clients: _containers.RepeatedScalarFieldContainer[str]
    more_clients: int
    rejection: str
    accepts_plaintext: bool
    skipped: bool
    replicas: _containers.RepeatedScalarFieldContainer[str]
    phase: WaitingEndpoint.Phase
    def __init__(self, pod: _Optional[str] = ..., port: _Optional[int] = ..., desired_mode: _Optional[_Union[Mode, str]] = ..., waiting_for: _Optional[_Union[WaitingEndpoint.WaitingFor, str]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., clients: _Optional[_Iterable[str]] = ..., more_clients: _Optional[int] = ..., rejection: _Optional[str] = ..., accepts_plaintext: _Optional[bool] = ..., skipped: _Optional[bool] = ..., replicas: _Optional[_Iterable[str]] = ..., phase: _Optional[_Union[WaitingEndpoint.Phase, str]] = ...) -> None: ...

class RuleRollout(_message.Message):
    __slots__ = ("namespace", "name", "status", "host", "deleted", "held", "since", "clients", "more_clients", "rejection", "skipped")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    status: str
    host: str
    deleted: bool
    held: bool
    since: _timestamp_pb2.Timestamp
    clients: _containers.RepeatedScalarFieldContainer[str]
    more_clients: int
    rejection: str
    skipped: bool
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., host: _Optional[str] = ..., deleted: _Optional[bool] = ..., held: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., clients: _Optional[_Iterable[str]] = ..., more_clients: _Optional[int] = ..., rejection: _Optional[str] = ..., skipped: _Optional[bool] = ...) -> None: ...

class FinishedTransition(_message.Message):
    __slots__ = ("namespace", "pod", "port", "services", "from_mode", "to_mode", "started_at", "finished_at", "expand", "migrate", "contract", "skipped")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    FROM_MODE_FIELD_NUMBER: _ClassVar[int]
    TO_MODE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPAND_FIELD_NUMBER: _ClassVar[int]
    MIGRATE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    port: int
    services: _containers.RepeatedScalarFieldContainer[str]
    from_mode: Mode
    to_mode: Mode
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    expand: _duration_pb2.Duration
    migrate: _duration_pb2.Duration
    contract: _duration_pb2.Duration
    skipped: bool
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ..., port: _Optional[int] = ..., services: _Optional[_Iterable[str]] = ..., from_mode: _Optional[_Union[Mode, str]] = ..., to_mode: _Optional[_Union[Mode, str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expand: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., migrate: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., contract: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., skipped: _Optional[bool] = ...) -> None: ...
