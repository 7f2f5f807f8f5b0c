import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from xds.mesh.v1 import rollouts_pb2 as _rollouts_pb2
from xds.mesh.v1 import traffic_pb2 as _traffic_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("client", "service", "http")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    http: HttpRequest
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ..., http: _Optional[_Union[HttpRequest, _Mapping]] = ...) -> None: ...

class HttpRequest(_message.Message):
    __slots__ = ("method", "path", "host", "headers")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    method: str
    path: str
    host: str
    headers: _containers.ScalarMap[str, str]
    def __init__(self, method: _Optional[str] = ..., path: _Optional[str] = ..., host: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("client", "service", "groups", "client_proxy", "rule_transitions", "time", "observed")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_PROXY_FIELD_NUMBER: _ClassVar[int]
    RULE_TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    groups: _containers.RepeatedCompositeFieldContainer[EndpointGroup]
    client_proxy: ProxyState
    rule_transitions: _containers.RepeatedScalarFieldContainer[str]
    time: _timestamp_pb2.Timestamp
    observed: _containers.RepeatedCompositeFieldContainer[_traffic_pb2.TrafficEdge]
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[EndpointGroup, _Mapping]]] = ..., client_proxy: _Optional[_Union[ProxyState, _Mapping]] = ..., rule_transitions: _Optional[_Iterable[str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., observed: _Optional[_Iterable[_Union[_traffic_pb2.TrafficEdge, _Mapping]]] = ...) -> None: ...

class EndpointGroup(_message.Message):
    __slots__ = ("port", "endpoints", "outcome", "reason", "summary", "client", "server", "desired", "served", "identities", "differences", "server_proxies", "tls", "refused", "access")
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
    TLS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
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
    tls: str
    refused: _containers.RepeatedCompositeFieldContainer[RefusedTraffic]
    access: AccessExplanation
    def __init__(self, port: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[EndpointName, _Mapping]]] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., summary: _Optional[str] = ..., client: _Optional[_Union[Side, _Mapping]] = ..., server: _Optional[_Union[Side, _Mapping]] = ..., desired: _Optional[_Union[Configured, _Mapping]] = ..., served: _Optional[_Union[Configured, _Mapping]] = ..., identities: _Optional[_Iterable[str]] = ..., differences: _Optional[_Iterable[str]] = ..., server_proxies: _Optional[_Iterable[_Union[ProxyState, _Mapping]]] = ..., tls: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[RefusedTraffic, _Mapping]]] = ..., access: _Optional[_Union[AccessExplanation, _Mapping]] = ...) -> None: ...

class AccessExplanation(_message.Message):
    __slots__ = ("access", "policies", "nearest")
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    access: str
    policies: _containers.RepeatedCompositeFieldContainer[PolicyMatch]
    nearest: NearestRule
    def __init__(self, access: _Optional[str] = ..., policies: _Optional[_Iterable[_Union[PolicyMatch, _Mapping]]] = ..., nearest: _Optional[_Union[NearestRule, _Mapping]] = ...) -> None: ...

class PolicyMatch(_message.Message):
    __slots__ = ("policy", "action", "result", "enforced")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ENFORCED_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyObject
    action: str
    result: str
    enforced: bool
    def __init__(self, policy: _Optional[_Union[PolicyObject, _Mapping]] = ..., action: _Optional[str] = ..., result: _Optional[str] = ..., enforced: _Optional[bool] = ...) -> None: ...

class NearestRule(_message.Message):
    __slots__ = ("policy", "rule", "fields")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    rule: int
    fields: _containers.RepeatedCompositeFieldContainer[FieldMatch]
    def __init__(self, policy: _Optional[str] = ..., rule: _Optional[int] = ..., fields: _Optional[_Iterable[_Union[FieldMatch, _Mapping]]] = ...) -> None: ...

class FieldMatch(_message.Message):
    __slots__ = ("field", "expected", "result", "actual")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    field: str
    expected: str
    result: str
    actual: str
    def __init__(self, field: _Optional[str] = ..., expected: _Optional[str] = ..., result: _Optional[str] = ..., actual: _Optional[str] = ...) -> None: ...

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

class ReachRequest(_message.Message):
    __slots__ = ("client", "service", "namespace", "outcome", "expand", "endpoint_names", "watch")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXPAND_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_NAMES_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    namespace: str
    outcome: str
    expand: bool
    endpoint_names: bool
    watch: bool
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ..., namespace: _Optional[str] = ..., outcome: _Optional[str] = ..., expand: _Optional[bool] = ..., endpoint_names: _Optional[bool] = ..., watch: _Optional[bool] = ...) -> None: ...

class ReachResponse(_message.Message):
    __slots__ = ("hops", "results", "fails", "checked", "total", "last", "client_pods", "not_considered")
    HOPS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILS_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CLIENT_PODS_FIELD_NUMBER: _ClassVar[int]
    NOT_CONSIDERED_FIELD_NUMBER: _ClassVar[int]
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    results: _containers.RepeatedCompositeFieldContainer[ConnectionResult]
    fails: bool
    checked: int
    total: int
    last: bool
    client_pods: int
    not_considered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., results: _Optional[_Iterable[_Union[ConnectionResult, _Mapping]]] = ..., fails: _Optional[bool] = ..., checked: _Optional[int] = ..., total: _Optional[int] = ..., last: _Optional[bool] = ..., client_pods: _Optional[int] = ..., not_considered: _Optional[_Iterable[str]] = ...) -> None: ...

class Clients(_message.Message):
    __slots__ = ("namespace", "accounts")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    def __init__(self, namespace: _Optional[str] = ..., accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("name", "pods", "workloads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    pods: int
    workloads: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., pods: _Optional[int] = ..., workloads: _Optional[_Iterable[str]] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("clients", "service", "port", "endpoints", "ready", "outcome", "reason", "decided_by", "endpoint_names", "observed", "outside", "pods", "conditions")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_NAMES_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[Clients]
    service: str
    port: int
    endpoints: int
    ready: int
    outcome: str
    reason: str
    decided_by: _containers.RepeatedScalarFieldContainer[str]
    endpoint_names: _containers.RepeatedCompositeFieldContainer[EndpointName]
    observed: ObservedTraffic
    outside: str
    pods: _containers.RepeatedCompositeFieldContainer[Clients]
    conditions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, clients: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., service: _Optional[str] = ..., port: _Optional[int] = ..., endpoints: _Optional[int] = ..., ready: _Optional[int] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., decided_by: _Optional[_Iterable[str]] = ..., endpoint_names: _Optional[_Iterable[_Union[EndpointName, _Mapping]]] = ..., observed: _Optional[_Union[ObservedTraffic, _Mapping]] = ..., outside: _Optional[str] = ..., pods: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., conditions: _Optional[_Iterable[str]] = ...) -> None: ...

class ObservedTraffic(_message.Message):
    __slots__ = ("modes",)
    MODES_FIELD_NUMBER: _ClassVar[int]
    modes: _containers.RepeatedCompositeFieldContainer[ModeTraffic]
    def __init__(self, modes: _Optional[_Iterable[_Union[ModeTraffic, _Mapping]]] = ...) -> None: ...

class ModeTraffic(_message.Message):
    __slots__ = ("mode", "requests_per_minute", "last_seen")
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    mode: _traffic_pb2.TrafficEdge.Mode
    requests_per_minute: float
    last_seen: _timestamp_pb2.Timestamp
    def __init__(self, mode: _Optional[_Union[_traffic_pb2.TrafficEdge.Mode, str]] = ..., requests_per_minute: _Optional[float] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ConnectionResult(_message.Message):
    __slots__ = ("client", "service", "port", "endpoint", "address", "outcome", "reason", "decided_by", "observed", "conditions")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    client: str
    service: str
    port: int
    endpoint: str
    address: str
    outcome: str
    reason: str
    decided_by: _containers.RepeatedScalarFieldContainer[str]
    observed: ObservedTraffic
    conditions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client: _Optional[str] = ..., service: _Optional[str] = ..., port: _Optional[int] = ..., endpoint: _Optional[str] = ..., address: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., decided_by: _Optional[_Iterable[str]] = ..., observed: _Optional[_Union[ObservedTraffic, _Mapping]] = ..., conditions: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("manifests", "deletions", "observed", "default_namespace", "ignored_kinds", "replay")
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    DELETIONS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    IGNORED_KINDS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedCompositeFieldContainer[Manifest]
    deletions: _containers.RepeatedScalarFieldContainer[str]
    observed: _duration_pb2.Duration
    default_namespace: str
    ignored_kinds: _containers.RepeatedScalarFieldContainer[str]
    replay: _duration_pb2.Duration
    def __init__(self, manifests: _Optional[_Iterable[_Union[Manifest, _Mapping]]] = ..., deletions: _Optional[_Iterable[str]] = ..., observed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., default_namespace: _Optional[str] = ..., ignored_kinds: _Optional[_Iterable[str]] = ..., replay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("name", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("breaks", "hops", "refused", "without_effect", "problems", "invalid", "nothing_to_compare", "summary", "observation", "plaintext_ports", "unproven_clients", "not_considered", "replay")
    BREAKS_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_EFFECT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    INVALID_FIELD_NUMBER: _ClassVar[int]
    NOTHING_TO_COMPARE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_PORTS_FIELD_NUMBER: _ClassVar[int]
    UNPROVEN_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    NOT_CONSIDERED_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    breaks: bool
    hops: _containers.RepeatedCompositeFieldContainer[HopChange]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedTraffic]
    without_effect: _containers.RepeatedCompositeFieldContainer[ManifestProblem]
    problems: _containers.RepeatedCompositeFieldContainer[ManifestProblem]
    invalid: bool
    nothing_to_compare: bool
    summary: str
    observation: Observation
    plaintext_ports: _containers.RepeatedCompositeFieldContainer[PlaintextPort]
    unproven_clients: bool
    not_considered: _containers.RepeatedScalarFieldContainer[str]
    replay: Replay
    def __init__(self, breaks: _Optional[bool] = ..., hops: _Optional[_Iterable[_Union[HopChange, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[RefusedTraffic, _Mapping]]] = ..., without_effect: _Optional[_Iterable[_Union[ManifestProblem, _Mapping]]] = ..., problems: _Optional[_Iterable[_Union[ManifestProblem, _Mapping]]] = ..., invalid: _Optional[bool] = ..., nothing_to_compare: _Optional[bool] = ..., summary: _Optional[str] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., plaintext_ports: _Optional[_Iterable[_Union[PlaintextPort, _Mapping]]] = ..., unproven_clients: _Optional[bool] = ..., not_considered: _Optional[_Iterable[str]] = ..., replay: _Optional[_Union[Replay, _Mapping]] = ...) -> None: ...

class Replay(_message.Message):
    __slots__ = ("since", "until", "flows", "changes", "unknown", "failing", "possible", "gaps", "safe", "summary")
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    FAILING_FIELD_NUMBER: _ClassVar[int]
    POSSIBLE_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    SAFE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    flows: int
    changes: _containers.RepeatedCompositeFieldContainer[FlowChange]
    unknown: _containers.RepeatedCompositeFieldContainer[UnknownFlows]
    failing: int
    possible: _containers.RepeatedCompositeFieldContainer[HopChange]
    gaps: _containers.RepeatedScalarFieldContainer[str]
    safe: bool
    summary: str
    def __init__(self, since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., flows: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[FlowChange, _Mapping]]] = ..., unknown: _Optional[_Iterable[_Union[UnknownFlows, _Mapping]]] = ..., failing: _Optional[int] = ..., possible: _Optional[_Iterable[_Union[HopChange, _Mapping]]] = ..., gaps: _Optional[_Iterable[str]] = ..., safe: _Optional[bool] = ..., summary: _Optional[str] = ...) -> None: ...

class FlowChange(_message.Message):
    __slots__ = ("effect", "flows", "before", "after")
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    effect: str
    flows: _containers.RepeatedCompositeFieldContainer[_traffic_pb2.TrafficEdge]
    before: Answer
    after: Answer
    def __init__(self, effect: _Optional[str] = ..., flows: _Optional[_Iterable[_Union[_traffic_pb2.TrafficEdge, _Mapping]]] = ..., before: _Optional[_Union[Answer, _Mapping]] = ..., after: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class UnknownFlows(_message.Message):
    __slots__ = ("flows", "reason")
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    flows: _containers.RepeatedCompositeFieldContainer[_traffic_pb2.TrafficEdge]
    reason: str
    def __init__(self, flows: _Optional[_Iterable[_Union[_traffic_pb2.TrafficEdge, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("enabled", "requested", "since", "time", "plaintext", "admitted", "locked_ports", "opened_ports", "gaps", "safe", "summary", "strict_ports", "root_namespace")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    LOCKED_PORTS_FIELD_NUMBER: _ClassVar[int]
    OPENED_PORTS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    SAFE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    STRICT_PORTS_FIELD_NUMBER: _ClassVar[int]
    ROOT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    requested: _duration_pb2.Duration
    since: _timestamp_pb2.Timestamp
    time: _timestamp_pb2.Timestamp
    plaintext: _containers.RepeatedCompositeFieldContainer[_traffic_pb2.TrafficEdge]
    admitted: _containers.RepeatedCompositeFieldContainer[_traffic_pb2.TrafficEdge]
    locked_ports: int
    opened_ports: int
    gaps: _containers.RepeatedScalarFieldContainer[str]
    safe: bool
    summary: str
    strict_ports: int
    root_namespace: str
    def __init__(self, enabled: _Optional[bool] = ..., requested: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., plaintext: _Optional[_Iterable[_Union[_traffic_pb2.TrafficEdge, _Mapping]]] = ..., admitted: _Optional[_Iterable[_Union[_traffic_pb2.TrafficEdge, _Mapping]]] = ..., locked_ports: _Optional[int] = ..., opened_ports: _Optional[int] = ..., gaps: _Optional[_Iterable[str]] = ..., safe: _Optional[bool] = ..., summary: _Optional[str] = ..., strict_ports: _Optional[int] = ..., root_namespace: _Optional[str] = ...) -> None: ...

class PlaintextPort(_message.Message):
    __slots__ = ("port", "pods", "mode", "decided_by", "was_strict")
    PORT_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    WAS_STRICT_FIELD_NUMBER: _ClassVar[int]
    port: int
    pods: _containers.RepeatedCompositeFieldContainer[Clients]
    mode: _rollouts_pb2.Mode
    decided_by: str
    was_strict: bool
    def __init__(self, port: _Optional[int] = ..., pods: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., mode: _Optional[_Union[_rollouts_pb2.Mode, str]] = ..., decided_by: _Optional[str] = ..., was_strict: _Optional[bool] = ...) -> None: ...

class HopChange(_message.Message):
    __slots__ = ("effect", "clients", "service", "port", "endpoints", "ready", "before", "after", "remedy", "last_seen")
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    effect: str
    clients: _containers.RepeatedCompositeFieldContainer[Clients]
    service: str
    port: int
    endpoints: int
    ready: int
    before: Answer
    after: Answer
    remedy: str
    last_seen: _timestamp_pb2.Timestamp
    def __init__(self, effect: _Optional[str] = ..., clients: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., service: _Optional[str] = ..., port: _Optional[int] = ..., endpoints: _Optional[int] = ..., ready: _Optional[int] = ..., before: _Optional[_Union[Answer, _Mapping]] = ..., after: _Optional[_Union[Answer, _Mapping]] = ..., remedy: _Optional[str] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("outcome", "reason", "decided_by", "conditions")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    reason: str
    decided_by: _containers.RepeatedScalarFieldContainer[str]
    conditions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outcome: _Optional[str] = ..., reason: _Optional[str] = ..., decided_by: _Optional[_Iterable[str]] = ..., conditions: _Optional[_Iterable[str]] = ...) -> None: ...

class RefusedTraffic(_message.Message):
    __slots__ = ("traffic", "breaks", "pods", "port", "decided_by", "remedy", "source")
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    BREAKS_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    traffic: str
    breaks: bool
    pods: _containers.RepeatedCompositeFieldContainer[Clients]
    port: int
    decided_by: _containers.RepeatedScalarFieldContainer[str]
    remedy: str
    source: str
    def __init__(self, traffic: _Optional[str] = ..., breaks: _Optional[bool] = ..., pods: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., port: _Optional[int] = ..., decided_by: _Optional[_Iterable[str]] = ..., remedy: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class ManifestProblem(_message.Message):
    __slots__ = ("where", "what", "hint", "notice")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    where: str
    what: str
    hint: str
    notice: bool
    def __init__(self, where: _Optional[str] = ..., what: _Optional[str] = ..., hint: _Optional[str] = ..., notice: _Optional[bool] = ...) -> None: ...

class DescribePodRequest(_message.Message):
    __slots__ = ("pod",)
    POD_FIELD_NUMBER: _ClassVar[int]
    pod: str
    def __init__(self, pod: _Optional[str] = ...) -> None: ...

class PodDescription(_message.Message):
    __slots__ = ("pod", "sidecar", "identity", "ports", "proxy", "time", "refused")
    POD_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    pod: str
    sidecar: bool
    identity: str
    ports: _containers.RepeatedCompositeFieldContainer[PodPort]
    proxy: ProxyState
    time: _timestamp_pb2.Timestamp
    refused: _containers.RepeatedCompositeFieldContainer[RefusedTraffic]
    def __init__(self, pod: _Optional[str] = ..., sidecar: _Optional[bool] = ..., identity: _Optional[str] = ..., ports: _Optional[_Iterable[_Union[PodPort, _Mapping]]] = ..., proxy: _Optional[_Union[ProxyState, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., refused: _Optional[_Iterable[_Union[RefusedTraffic, _Mapping]]] = ...) -> None: ...

class PodPort(_message.Message):
    __slots__ = ("port", "service_ports", "accepts", "refused_clients")
    PORT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_PORTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    port: int
    service_ports: _containers.RepeatedScalarFieldContainer[str]
    accepts: Side
    refused_clients: _containers.RepeatedCompositeFieldContainer[RefusedClients]
    def __init__(self, port: _Optional[int] = ..., service_ports: _Optional[_Iterable[str]] = ..., accepts: _Optional[_Union[Side, _Mapping]] = ..., refused_clients: _Optional[_Iterable[_Union[RefusedClients, _Mapping]]] = ...) -> None: ...

class RefusedClients(_message.Message):
    __slots__ = ("clients", "why")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[Clients]
    why: str
    def __init__(self, clients: _Optional[_Iterable[_Union[Clients, _Mapping]]] = ..., why: _Optional[str] = ...) -> None: ...
