"""The source of each rule: a sentence of a public document, or this project's reason if no document has one.

Sentences are quoted without markup. `...` replaces words that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Document:
    """A version of a file in a public repository."""

    title: str
    """What the document is called in reports."""
    repository: str
    """Owner and name on GitHub."""
    path: str
    """Path of the file in the repository."""
    commit: str
    """Commit that the file was read at."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence of a document."""

    document: Document
    """Document that contains the sentence."""
    section: str
    """Heading, message or field that the sentence is in."""
    sentence: str
    """The sentence, shortened."""

    @property
    def url(self) -> str:
        """Address of the document at its commit."""
        document = self.document
        return f"https://github.com/{document.repository}/blob/{document.commit}/{document.path}"

    def __str__(self) -> str:
        document = self.document
        return f'{document.title} ({document.commit[:12]}), {self.section}: "{self.sentence}"'


Source: TypeAlias = Citation | str
"""A citation; or, as text, why a check exists although no document requires it."""

PROTOCOL = Document(
    "xDS protocol",
    "envoyproxy/envoy",
    "docs/root/api-docs/xds_protocol.rst",
    "ee2107ff308b8465fbea7daf12d1fbdd5e483885",
)
"""Envoy's specification of the protocol."""
DISCOVERY = Document(
    "discovery.proto",
    "envoyproxy/data-plane-api",
    "envoy/service/discovery/v3/discovery.proto",
    "84e84367f2560cdb47b9bb78fd3e615feb80c3e4",
)
"""Comments of the protocol's messages."""
VHDS = Document(
    "VHDS",
    "envoyproxy/envoy",
    "docs/root/configuration/http/http_conn_man/vhds.rst",
    "08a1102b2a90123bda4df4bce3e5c59159dd1245",
)
"""Envoy's page about virtual hosts, in an old version. Newer ones lack the cited sentence."""
TP1 = Document(
    "xDS transport proposal TP1",
    "cncf/xds",
    "proposals/TP1-xds-transport-next.md",
    "5cf4b19495289a9e992ce5e2c3ffb08f2cf387be",
)
"""Proposal that introduced collections."""
GRPC_GO = Document("grpc-go", "grpc/grpc-go", "rpc_util.go", "4793ad0474669eafbd5346c8a3d098fdfa542498")
"""gRPC's client for Go."""


def _protocol(section: str, sentence: str) -> Citation:
    return Citation(PROTOCOL, section, sentence)


def _discovery(section: str, sentence: str) -> Citation:
    return Citation(DISCOVERY, section, sentence)


ONLY_CHANGES = _protocol(
    "When to send an update",
    "The management server should only send updates to the Envoy client when the resources in the "
    "DiscoveryResponse have changed.",
)
SUPPLIED = _protocol(
    "How the client specifies what resources to return",
    "The management server must supply the requested resources if they exist.",
)
SOTW_NONCE = _protocol(
    "Basic Protocol Overview",
    "All server responses will contain a nonce ... This allows servers to determine which response a given "
    "request is associated with",
)
SAME_NODE = _protocol(
    "Basic Protocol Overview",
    "The node identifier should always be identical ... It is sufficient to only check the first message for "
    "the node identifier as a result.",
)
ANY_REQUEST = _discovery(
    "DeltaDiscoveryRequest.resource_names_subscribe",
    "These two fields can be set in any DeltaDiscoveryRequest, including ACKs and initial_resource_versions.",
)
DELTA_WILDCARD = _protocol(
    "How the client specifies what resources to return",
    "Client sends a request with resource_names_subscribe unset. Server interprets this as a subscription "
    "to *.",
)
ALL_UPDATES = _discovery(
    "DeltaDiscoveryRequest.resource_names_subscribe",
    "Like state-of-the-world xDS, the server must send updates for all tracked resources",
)
NEWLY_REQUESTED = _protocol(
    "How the client specifies what resources to return",
    "the server must resend any newly requested resources, even if ... the resources have not changed since "
    "that time",
)
REPEATED_NAMES = _discovery(
    "DeltaDiscoveryRequest.resource_names_subscribe",
    "The server must respond with all resources listed in resource_names_subscribe, even if it believes the "
    "client has the most recent version of them.",
)
LEFT_WILDCARD = _protocol(
    "How the client specifies what resources to return",
    "Client sends a request with resource_names set to A. Server interprets this as unsubscribing to * and "
    "continuing the existing subscription to A.",
)
EXPLICIT_WILDCARD = _protocol(
    "How the client specifies what resources to return",
    'there is also a "wildcard" subscription, which is triggered when subscribing to the special name *',
)
KEPT_WILDCARD = _protocol(
    "How the client specifies what resources to return",
    "resource_names_subscribe set to A. Server interprets this as continuing the existing subscription to * "
    "and adding a new subscription to A.",
)
EMPTY_LIST = _protocol(
    "How the client specifies what resources to return",
    "If the list of resource names becomes empty, that means that the client is no longer interested in any "
    "resources of the specified type.",
)
SILENT_UNSUBSCRIPTION = _protocol(
    "Unsubscribing from Resources",
    "In most cases ... a server does not need to send any response if a request does nothing except "
    "unsubscribe from a resource",
)
MAY_WAIT = _protocol(
    "ACK/NACK and resource type instance version",
    "The management server may reply either immediately or when the requested resources are available",
)
MISSING = _protocol(
    "Knowing When a Requested Resource Does Not Exist",
    "When a resource ... does not exist, the server will send a DeltaDiscoveryResponse ... that contains "
    "that resource's name in the removed_resources field.",
)
REMOVAL = _protocol(
    "Deleting Resources",
    "In the incremental protocol variants, the server signals the client that a resource should be deleted "
    "via the removed_resources field of the response.",
)
OMISSION = _protocol(
    "Deleting Resources",
    "if a previously seen resource is not present in a new response, that indicates that the resource has "
    "been removed",
)
EMPTY_RESPONSE = _protocol(
    "Deleting Resources",
    "a response containing no resources means to delete all resources of that type",
)
NO_OP = _protocol(
    "Deleting Resources",
    "For those resource types, an empty DiscoveryResponse is effectively a no-op from the client's "
    "perspective.",
)
IGNORED = _protocol(
    "How the client specifies what resources to return",
    "The client will silently ignore any supplied resources that were not explicitly requested.",
)
KNOWN_VERSIONS = _protocol(
    "Incremental xDS",
    "the Incremental xDS client may tell the server of its known resources to avoid resending them",
)
UNKNOWN_ALIAS = Citation(
    VHDS,
    "Subscribing to Resources",
    "the resources entry for that virtual host has the name and aliases set to the requested host entry and "
    "the resource unpopulated",
)
ROUTE_WAITS = "The specification orders the updates, and does not say that one waits for an ACK."
WRAPPER = _protocol(
    "SotW TTL", "This feature is gated by the xds.config.supports-resource-in-sotw client feature."
)
REMOVED_TTL = _protocol(
    "TTL", "To remove the TTL, the management server resends the resource with the TTL field unset."
)
OWN_STREAMS = _protocol(
    "Requesting Multiple Resources on a Single Stream",
    "For EDS/RDS, Envoy may either generate a distinct stream for each resource of a given type ... or may "
    "combine together multiple resource requests",
)

SOURCES: dict[str, Source] = {
    "R1": _protocol(
        "Basic Protocol Overview",
        "Only the first request on a stream is guaranteed to carry the node identifier.",
    ),
    "R2": _discovery(
        "DiscoveryRequest.type_url",
        "This is implicit in requests made via singleton xDS APIs such as CDS, LDS, etc. but is required for "
        "ADS.",
    ),
    "R3": "A server that ends an ADS stream because of one type takes all other types from the client.",
    "R4": _discovery(
        "DeltaDiscoveryResponse.nonce",
        "The nonce provides a way for DeltaDiscoveryRequests to uniquely reference a DeltaDiscoveryResponse "
        "when (N)ACKing.",
    ),
    "R5": _protocol(
        "ACK/NACK and resource type instance version",
        "the version for a resource type is not a property of an individual xDS stream but rather a property "
        "of the resources themselves",
    ),
    "R6": _protocol(
        "Resource updates",
        "The management server should not send a DiscoveryResponse for any DiscoveryRequest that has a stale "
        "nonce.",
    ),
    "R7": _protocol(
        "Basic Protocol Overview",
        "the nonce is valid only in the context of an individual xDS stream; it does not survive stream "
        "restarts",
    ),
    "R8": _protocol(
        "Incremental xDS",
        "the server must honor changes to the subscription state even if the nonce is stale",
    ),
    "R9": _protocol(
        "When to send an update",
        "the management server only needs to respond to the latest DiscoveryRequest on each stream for any "
        "given resource type",
    ),
    "R10": _protocol(
        "NACK",
        "The preferred mechanism for a server to detect a NACK is to look for the presence of the "
        "error_detail field",
    ),
    "R11": _protocol(
        "Resource updates",
        "Envoy may update the list of resource_names ... in each DiscoveryRequest that ACK/NACKs a specific "
        "DiscoveryResponse.",
    ),
    "R12": ONLY_CHANGES,
    "R13": _discovery(
        "DeltaDiscoveryRequest",
        "In Delta xDS the nonce field is required and used to pair DeltaDiscoveryResponse to a "
        "DeltaDiscoveryRequest ACK or NACK.",
    ),
    "R14": ONLY_CHANGES,
    "R15": ONLY_CHANGES,
    "R16": NEWLY_REQUESTED,
    "R17": ONLY_CHANGES,
    "R18": NEWLY_REQUESTED,
    "R19": REPEATED_NAMES,
    "R20": _protocol(
        "Unsubscribing from Resources",
        "The server must cleanly process such a request; it can simply ignore these phantom unsubscriptions.",
    ),
    "R21": _protocol(
        "Unsubscribing from Resources",
        "the server must send a response that includes the specific resource in either the removed_resources "
        "field ... or in the resources field",
    ),
    "R22": _discovery(
        "DiscoveryRequest.resource_names",
        "LDS/CDS may have empty resource_names, which will cause all resources for the Envoy instance to be "
        "returned.",
    ),
    "R23": _protocol(
        "How the client specifies what resources to return",
        'For Listener and Cluster resource types, there is also a "wildcard" subscription',
    ),
    "R24": NEWLY_REQUESTED,
    "R25": _protocol(
        "Knowing When a Requested Resource Does Not Exist",
        "if one of those resources springs into existence later, the server must send an update to the "
        "client",
    ),
    "R26": MISSING,
    "R27": REMOVAL,
    "R28": REPEATED_NAMES,
    "R29": "The documents call the names a list, and say nothing about repetitions.",
    "R30": _protocol(
        "Duplicate Resource Names",
        "It is an error for a server to send a single response that contains the same resource name twice.",
    ),
    "R31": _protocol(
        "Subscribing to Resources",
        "Both the names and aliases of resources should be checked in order to determine whether the entity "
        "in question has been subscribed to.",
    ),
    "R32": "As R23. VHDS exists to load virtual hosts on demand, and all of them can be too many.",
    "R33": MISSING,
    "R34": Citation(
        TP1,
        "Glob",
        "Client requests xdstp://some-authority/envoy.config.listener.v3.Listener/foo/*. Server responds "
        "with resources [.../foo/bar, .../foo/baz].",
    ),
    "R35": _protocol(
        "ACK/NACK and resource type instance version",
        "Servers may decide to optimize by not resending ... but only if they know that the client is not "
        "subscribing to a new resource",
    ),
    "R36": _discovery(
        "DeltaDiscoveryRequest.initial_resource_versions",
        "to enable the client to continue the same logical xDS session even in the face of gRPC stream "
        "reconnection",
    ),
    "R37": "The documents say only that the keys are names of resources known to the client.",
    "R38": _protocol(
        "Resource warming",
        "Warming of Cluster is completed only when a new ClusterLoadAssignment response is supplied ... even "
        "if there is no change in endpoints.",
    ),
    "R39": _protocol(
        "Resource warming",
        "Management Server has to send the RouteConfiguration response only if it has changed or it was "
        "never sent in the past.",
    ),
    "R40": _protocol(
        "Eventual consistency considerations",
        "In general, to avoid traffic drop, sequencing of updates should follow a make before break model",
    ),
    "R41": _protocol(
        "Eventual consistency considerations",
        "Stale CDS clusters and related EDS endpoints (ones no longer being referenced) can then be removed.",
    ),
    "R42": _protocol(
        "Eventual consistency considerations",
        "LDS updates must arrive after corresponding CDS/EDS updates.",
    ),
    "R43": _protocol(
        "Eventual consistency considerations",
        "the management plane must ensure that clusters referenced by a route are in place, before pushing "
        "the updates for a route",
    ),
    "R44": _protocol(
        "TTL",
        "For clients that support the xds.config.supports-resource-ttl client feature, A TTL field may be "
        "specified on each Resource.",
    ),
    "R45": WRAPPER,
    "R46": "They help people who debug: which version a client has, and from which server.",
    "R47": "A client of a newer version of the protocol sends fields that an older server does not know.",
    "R48": "Withdrawn: no document forbids the field, and no client reads it.",
    "R49": "Envoy's gRPC clients use streams, and no document requires the unary methods.",
    "R50": "Clients choose the services that they use, and a server is free to serve only some.",
    "R51": "Envoy opens a second stream of its node during a hot restart.",
    "R52": "One client that stops reading must not stop the others.",
    "R53": "A client that ACKs late, while it warms clusters, must not miss the last change.",
    "R54": "A dead client otherwise keeps its memory on the server.",
    "R55": "Clients otherwise stay on one replica.",
    "R56": "Without ADS, Envoy opens a stream for each type. Sixteen is our own number.",
    "R57": "Clients report every resource that they have when they reconnect. 5 MiB is our own number.",
    "R58": Citation(
        GRPC_GO,
        "MaxCallRecvMsgSize",
        "MaxCallRecvMsgSize returns a CallOption which sets the maximum message size ... If this is not set, "
        "gRPC uses the default 4MB.",
    ),
    "R59": MAY_WAIT,
    "R60": "One faulty client must not break the streams of others.",
    "R61": "The server otherwise runs out of memory.",
    "R62": "A server that compresses needs clients that decompress.",
}
"""Source of each rule. A check can have its own."""
