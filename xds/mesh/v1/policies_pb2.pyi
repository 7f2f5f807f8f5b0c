import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from xds.mesh.v1 import rollouts_pb2 as _rollouts_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("client", "service")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("client", "service", "groups", "client_proxy", "rule_transitions", "time")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_PROXY_FIELD_NUMBER: _ClassVar[int]
    RULE_TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    groups: _containers.RepeatedCompositeFieldContainer[EndpointGroup]
    client_proxy: ProxyState
    rule_transitions: _containers.RepeatedScalarFieldContainer[str]
    time: _timestamp_pb2.Timestamp
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[EndpointGroup, _Mapping]]] = ..., client_proxy: _Optional[_Union[ProxyState, _Mapping]] = ..., rule_transitions: _Optional[_Iterable[str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class EndpointGroup(_message.Message):
    __slots__ = ("port", "endpoints", "outcome", "reason", "summary", "client", "server", "desired", "served", "identities", "differences", "server_proxies")
    PORT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    SERVER_PROXIES_FIELD_NUMBER: _ClassVar[int]
    port: int
    endpoints: _containers.RepeatedCompositeFieldContainer[EndpointName]
    outcome: str
    reason: str
    summary: str
    client: Side
    server: Side
    desired: Configured
    served: Configured
    identities: _containers.RepeatedScalarFieldContainer[str]
    differences: _containers.RepeatedScalarFieldContainer[str]
    server_proxies: _containers.RepeatedCompositeFieldContainer[ProxyState]
    def __init__(self, port: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[EndpointName, _Mapping]]] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., summary: _Optional[str] = ..., client: _Optional[_Union[Side, _Mapping]] = ..., server: _Optional[_Union[Side, _Mapping]] = ..., desired: _Optional[_Union[Configured, _Mapping]] = ..., served: _Optional[_Union[Configured, _Mapping]] = ..., identities: _Optional[_Iterable[str]] = ..., differences: _Optional[_Iterable[str]] = ..., server_proxies: _Optional[_Iterable[_Union[ProxyState, _Mapping]]] = ...) -> None: ...

class EndpointName(_message.Message):
    __slots__ = ("pod", "address", "port")
    POD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    pod: str
    address: str
    port: int
    def __init__(self, pod: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Side(_message.Message):
    __slots__ = ("summary", "decided_by", "overridden")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    summary: str
    decided_by: PolicyObject
    overridden: _containers.RepeatedCompositeFieldContainer[PolicyObject]
    def __init__(self, summary: _Optional[str] = ..., decided_by: _Optional[_Union[PolicyObject, _Mapping]] = ..., overridden: _Optional[_Iterable[_Union[PolicyObject, _Mapping]]] = ...) -> None: ...

class PolicyObject(_message.Message):
    __slots__ = ("kind", "namespace", "name", "place", "scope")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    place: str
    scope: str
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., place: _Optional[str] = ..., scope: _Optional[str] = ...) -> None: ...

class Configured(_message.Message):
    __slots__ = ("send", "mode")
    class Send(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SEND_UNSPECIFIED: _ClassVar[Configured.Send]
        MTLS: _ClassVar[Configured.Send]
        PLAINTEXT: _ClassVar[Configured.Send]
        TLS: _ClassVar[Configured.Send]
    SEND_UNSPECIFIED: Configured.Send
    MTLS: Configured.Send
    PLAINTEXT: Configured.Send
    TLS: Configured.Send
    SEND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    send: Configured.Send
    mode: _rollouts_pb2.Mode
    def __init__(self, send: _Optional[_Union[Configured.Send, str]] = ..., mode: _Optional[_Union[_rollouts_pb2.Mode, str]] = ...) -> None: ...

class ProxyState(_message.Message):
    __slots__ = ("pod", "synced", "status", "acked_generation", "served_generation", "certificate_expires", "may_be_on_other_replica")
    POD_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ACKED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_ON_OTHER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    pod: str
    synced: bool
    status: str
    acked_generation: int
    served_generation: int
    certificate_expires: _timestamp_pb2.Timestamp
    may_be_on_other_replica: bool
    def __init__(self, pod: _Optional[str] = ..., synced: _Optional[bool] = ..., status: _Optional[str] = ..., acked_generation: _Optional[int] = ..., served_generation: _Optional[int] = ..., certificate_expires: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., may_be_on_other_replica: _Optional[bool] = ...) -> None: ...
