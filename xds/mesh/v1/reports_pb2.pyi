import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from xds.mesh.v1 import policies_pb2 as _policies_pb2
from xds.mesh.v1 import rollouts_pb2 as _rollouts_pb2
from xds.mesh.v1 import traffic_pb2 as _traffic_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateReportRequest(_message.Message):
    __slots__ = ("period", "namespaces")
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    period: _duration_pb2.Duration
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., namespaces: _Optional[_Iterable[str]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("scope", "workloads", "tls", "certificates", "exceptions", "gaps", "versions", "not_shown")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    EXCEPTIONS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NOT_SHOWN_FIELD_NUMBER: _ClassVar[int]
    scope: ReportScope
    workloads: _containers.RepeatedCompositeFieldContainer[ReportedWorkload]
    tls: _containers.RepeatedCompositeFieldContainer[ConfiguredTls]
    certificates: CertificateInventory
    exceptions: _containers.RepeatedCompositeFieldContainer[ReportException]
    gaps: _containers.RepeatedScalarFieldContainer[str]
    versions: _containers.RepeatedCompositeFieldContainer[PartVersion]
    not_shown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, scope: _Optional[_Union[ReportScope, _Mapping]] = ..., workloads: _Optional[_Iterable[_Union[ReportedWorkload, _Mapping]]] = ..., tls: _Optional[_Iterable[_Union[ConfiguredTls, _Mapping]]] = ..., certificates: _Optional[_Union[CertificateInventory, _Mapping]] = ..., exceptions: _Optional[_Iterable[_Union[ReportException, _Mapping]]] = ..., gaps: _Optional[_Iterable[str]] = ..., versions: _Optional[_Iterable[_Union[PartVersion, _Mapping]]] = ..., not_shown: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportScope(_message.Message):
    __slots__ = ("trust_domain", "root_namespace", "namespaces", "created", "since", "counted_since", "period", "replica", "observation_enabled")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ROOT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_SINCE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_ENABLED_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    root_namespace: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    created: _timestamp_pb2.Timestamp
    since: _timestamp_pb2.Timestamp
    counted_since: _timestamp_pb2.Timestamp
    period: _duration_pb2.Duration
    replica: str
    observation_enabled: bool
    def __init__(self, trust_domain: _Optional[str] = ..., root_namespace: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., counted_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., replica: _Optional[str] = ..., observation_enabled: _Optional[bool] = ...) -> None: ...

class ReportedWorkload(_message.Message):
    __slots__ = ("namespace", "name", "pods", "sidecars", "connected", "services", "ports", "observed", "certificates")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    pods: int
    sidecars: int
    connected: int
    services: _containers.RepeatedScalarFieldContainer[str]
    ports: _containers.RepeatedCompositeFieldContainer[ReportedPort]
    observed: _containers.RepeatedCompositeFieldContainer[ReportedTraffic]
    certificates: WorkloadCertificates
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., pods: _Optional[int] = ..., sidecars: _Optional[int] = ..., connected: _Optional[int] = ..., services: _Optional[_Iterable[str]] = ..., ports: _Optional[_Iterable[_Union[ReportedPort, _Mapping]]] = ..., observed: _Optional[_Iterable[_Union[ReportedTraffic, _Mapping]]] = ..., certificates: _Optional[_Union[WorkloadCertificates, _Mapping]] = ...) -> None: ...

class ReportedPort(_message.Message):
    __slots__ = ("port", "pods", "mode", "desired_mode", "decided_by", "acked", "since", "since_change", "unknown_since", "allowed")
    PORT_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DESIRED_MODE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SINCE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_SINCE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    port: int
    pods: int
    mode: _rollouts_pb2.Mode
    desired_mode: _rollouts_pb2.Mode
    decided_by: _policies_pb2.PolicyObject
    acked: int
    since: _timestamp_pb2.Timestamp
    since_change: bool
    unknown_since: str
    allowed: _containers.RepeatedCompositeFieldContainer[AllowedClients]
    def __init__(self, port: _Optional[int] = ..., pods: _Optional[int] = ..., mode: _Optional[_Union[_rollouts_pb2.Mode, str]] = ..., desired_mode: _Optional[_Union[_rollouts_pb2.Mode, str]] = ..., decided_by: _Optional[_Union[_policies_pb2.PolicyObject, _Mapping]] = ..., acked: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., since_change: _Optional[bool] = ..., unknown_since: _Optional[str] = ..., allowed: _Optional[_Iterable[_Union[AllowedClients, _Mapping]]] = ...) -> None: ...

class AllowedClients(_message.Message):
    __slots__ = ("send", "clients", "accounts", "more_accounts", "why")
    SEND_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    MORE_ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    send: str
    clients: str
    accounts: _containers.RepeatedScalarFieldContainer[str]
    more_accounts: int
    why: str
    def __init__(self, send: _Optional[str] = ..., clients: _Optional[str] = ..., accounts: _Optional[_Iterable[str]] = ..., more_accounts: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class ReportedTraffic(_message.Message):
    __slots__ = ("client_namespace", "client", "service", "mode", "requests", "first_seen", "last_seen")
    CLIENT_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    client_namespace: str
    client: str
    service: str
    mode: _traffic_pb2.TrafficEdge.Mode
    requests: int
    first_seen: _timestamp_pb2.Timestamp
    last_seen: _timestamp_pb2.Timestamp
    def __init__(self, client_namespace: _Optional[str] = ..., client: _Optional[str] = ..., service: _Optional[str] = ..., mode: _Optional[_Union[_traffic_pb2.TrafficEdge.Mode, str]] = ..., requests: _Optional[int] = ..., first_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WorkloadCertificates(_message.Message):
    __slots__ = ("identities", "known", "first_expiry", "last_expiry", "first_renewal")
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    FIRST_EXPIRY_FIELD_NUMBER: _ClassVar[int]
    LAST_EXPIRY_FIELD_NUMBER: _ClassVar[int]
    FIRST_RENEWAL_FIELD_NUMBER: _ClassVar[int]
    identities: _containers.RepeatedScalarFieldContainer[str]
    known: int
    first_expiry: _timestamp_pb2.Timestamp
    last_expiry: _timestamp_pb2.Timestamp
    first_renewal: _timestamp_pb2.Timestamp
    def __init__(self, identities: _Optional[_Iterable[str]] = ..., known: _Optional[int] = ..., first_expiry: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_expiry: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., first_renewal: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ConfiguredTls(_message.Message):
    __slots__ = ("sidecars", "envoy_versions", "min_version", "max_version", "cipher_suites", "curves", "post_quantum", "fips")
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    ENVOY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSION_FIELD_NUMBER: _ClassVar[int]
    CIPHER_SUITES_FIELD_NUMBER: _ClassVar[int]
    CURVES_FIELD_NUMBER: _ClassVar[int]
    POST_QUANTUM_FIELD_NUMBER: _ClassVar[int]
    FIPS_FIELD_NUMBER: _ClassVar[int]
    sidecars: int
    envoy_versions: _containers.RepeatedScalarFieldContainer[str]
    min_version: str
    max_version: str
    cipher_suites: _containers.RepeatedScalarFieldContainer[str]
    curves: _containers.RepeatedScalarFieldContainer[str]
    post_quantum: bool
    fips: bool
    def __init__(self, sidecars: _Optional[int] = ..., envoy_versions: _Optional[_Iterable[str]] = ..., min_version: _Optional[str] = ..., max_version: _Optional[str] = ..., cipher_suites: _Optional[_Iterable[str]] = ..., curves: _Optional[_Iterable[str]] = ..., post_quantum: _Optional[bool] = ..., fips: _Optional[bool] = ...) -> None: ...

class CertificateInventory(_message.Message):
    __slots__ = ("issuer", "authorities", "lifetime", "renewal", "key", "issued", "known")
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    issuer: str
    authorities: _containers.RepeatedCompositeFieldContainer[CaCertificate]
    lifetime: _duration_pb2.Duration
    renewal: str
    key: str
    issued: int
    known: int
    def __init__(self, issuer: _Optional[str] = ..., authorities: _Optional[_Iterable[_Union[CaCertificate, _Mapping]]] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., renewal: _Optional[str] = ..., key: _Optional[str] = ..., issued: _Optional[int] = ..., known: _Optional[int] = ...) -> None: ...

class CaCertificate(_message.Message):
    __slots__ = ("role", "subject", "issuer", "serial", "key", "signature", "not_before", "not_after", "fingerprint")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    role: str
    subject: str
    issuer: str
    serial: str
    key: str
    signature: str
    not_before: _timestamp_pb2.Timestamp
    not_after: _timestamp_pb2.Timestamp
    fingerprint: str
    def __init__(self, role: _Optional[str] = ..., subject: _Optional[str] = ..., issuer: _Optional[str] = ..., serial: _Optional[str] = ..., key: _Optional[str] = ..., signature: _Optional[str] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class ReportException(_message.Message):
    __slots__ = ("kind", "subject", "what", "owner", "managed_by")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MANAGED_BY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    what: str
    owner: _policies_pb2.PolicyObject
    managed_by: str
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., what: _Optional[str] = ..., owner: _Optional[_Union[_policies_pb2.PolicyObject, _Mapping]] = ..., managed_by: _Optional[str] = ...) -> None: ...

class PartVersion(_message.Message):
    __slots__ = ("part", "version", "count")
    PART_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    part: str
    version: str
    count: int
    def __init__(self, part: _Optional[str] = ..., version: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...
