"""The steps of the Istio task and of `--authorization`, and the comparison with actual responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

REQUESTS = 10
"""Minimum requests per pair, to reach both pods of a service and to detect an unstable mode."""

MAX_REQUESTS = 100
"""Maximum requests per pair if two kinds of answers are expected: Envoy chooses endpoints at random."""


class Pair(NamedTuple):
    """A client pod and a server's service, each as `NAME.NAMESPACE`."""

    client: str
    server: str

    def __str__(self) -> str:
        return f"{self.client} to {self.server}"

    @property
    def identity(self) -> str:
        """The SPIFFE ID in the client's certificate."""
        name, namespace = self.client.split(".")
        return f"spiffe://cluster.local/ns/{namespace}/sa/{name}"


class Answer(NamedTuple):
    """The result of one request, as the Istio task prints it."""

    code: str
    """curl's `%{http_code}`: `000` if there was no response."""
    identity: str = ""
    """The SPIFFE ID that the server received; empty for plaintext."""

    def __str__(self) -> str:
        return f"{self.code} with {self.identity}" if self.identity else f"{self.code} without an identity"


Answers: TypeAlias = Counter[Answer]


class IdentityShare(Enum):
    """How many requests of a pair carry the client's identity, which means mutual TLS."""

    ALL = "with"
    SOME = "with and without"
    NONE = "without"


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected answers to the requests of a pair."""

    code: str
    identity_share: IdentityShare

    def answers(self, pair: Pair) -> set[Answer]:
        """Return the kinds of answers that must occur. No other kind may occur."""
        with_identity, without_identity = Answer(self.code, pair.identity), Answer(self.code)
        match self.identity_share:
            case IdentityShare.ALL:
                return {with_identity}
            case IdentityShare.NONE:
                return {without_identity}
            case IdentityShare.SOME:
                return {with_identity, without_identity}

    def is_settled(self, pair: Pair, answers: Answers) -> bool:
        """Whether the answers suffice, so that no more requests are needed."""
        expected = self.answers(pair)
        is_decided = expected <= answers.keys() or not answers.keys() <= expected
        return answers.total() >= (REQUESTS if is_decided else MAX_REQUESTS)


MTLS = Expected("200", IdentityShare.ALL)
MIXED = Expected("200", IdentityShare.SOME)
PLAINTEXT = Expected("200", IdentityShare.NONE)
NO_ANSWER = Expected("000", IdentityShare.NONE)
UNAVAILABLE = Expected("503", IdentityShare.NONE)
DENIED = Expected("403", IdentityShare.NONE)

FULL_FULL = Pair("sleep.full", "httpbin.full")
FULL_PARTIAL = Pair("sleep.full", "httpbin.partial")
FULL_LEGACY = Pair("sleep.full", "httpbin.legacy")
LEGACY_FULL = Pair("sleep.legacy", "httpbin.full")
LEGACY_PARTIAL = Pair("sleep.legacy", "httpbin.partial")
LEGACY_LEGACY = Pair("sleep.legacy", "httpbin.legacy")

Table: TypeAlias = Mapping[Pair, Expected]

ALL_PLAINTEXT: Table = {
    FULL_FULL: PLAINTEXT,
    FULL_PARTIAL: PLAINTEXT,
    FULL_LEGACY: PLAINTEXT,
    LEGACY_FULL: PLAINTEXT,
    LEGACY_PARTIAL: PLAINTEXT,
    LEGACY_LEGACY: PLAINTEXT,
}
AUTOMATIC: Table = {**ALL_PLAINTEXT, FULL_FULL: MTLS, FULL_PARTIAL: MIXED}
"""Mutual TLS between pods that have a sidecar, plaintext between all others."""

POLICY = "policy.yaml"
"""The file of Policy `httpbin`. A later step replaces its content."""
DESTINATION_RULE = "destination-rule.yaml"
AUTHORIZATION = "authorization.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A section of the Istio task: the changes, and the expected responses afterwards."""

    name: str
    """The name of the section."""
    what: str
    """A description of the mesh after the changes."""
    expected: Table
    """The expected answers of each pair."""
    apply: Mapping[str, str] = field(default_factory=dict)
    """Files in the manifests folder to write, each with the name of the example to copy."""
    delete: tuple[str, ...] = ()
    """Files in the manifests folder to delete."""
    auto: bool = True
    """The setting values.global.mtls.auto."""
    drained: bool = False
    """Whether to wait until connections from before the change are closed. Clients can still use them."""


STEPS = (
    Step(name="initial check", what="installed, no policies", expected=AUTOMATIC),
    Step(
        name="PERMISSIVE",
        what="clients use mutual TLS for pods with a sidecar",
        expected=AUTOMATIC,
    ),
    Step(
        name="migration",
        what="httpbin.partial has a pod with a sidecar and one without",
        expected={FULL_PARTIAL: MIXED},
    ),
    Step(
        name="STRICT",
        what="Policy full/httpbin: mutual TLS only",
        apply={POLICY: "strict.yaml"},
        expected={**AUTOMATIC, LEGACY_FULL: NO_ANSWER},
    ),
    # In this section, the Istio task sends only one request from sleep.full to httpbin.partial, and prints no
    # URI for it. The policy is in another namespace, so that service does not change.
    Step(
        name="plaintext policy",
        what="Policy full/httpbin: no mutual TLS",
        apply={POLICY: "plaintext.yaml"},
        expected={**AUTOMATIC, FULL_FULL: PLAINTEXT},
    ),
    Step(
        name="DestinationRule override",
        what="DestinationRule requires mutual TLS to httpbin.full",
        apply={DESTINATION_RULE: "destination-rule.yaml"},
        expected={**AUTOMATIC, FULL_FULL: UNAVAILABLE},
    ),
    Step(
        name="clean-up",
        what="Policy and DestinationRule deleted",
        delete=(POLICY, DESTINATION_RULE),
        expected=AUTOMATIC,
    ),
    Step(
        name="auto=false",
        what="installed without automatic mutual TLS, traffic is plaintext",
        auto=False,
        expected=ALL_PLAINTEXT,
    ),
    Step(
        name="auto=false, STRICT",
        what="httpbin.full requires mutual TLS, clients send plaintext",
        apply={POLICY: "strict.yaml"},
        auto=False,
        # Other changes make clients close old connections. This one changes only the server: it serves one
        # more request on each old plaintext connection while the listener drains.
        drained=True,
        expected={**ALL_PLAINTEXT, FULL_FULL: UNAVAILABLE, LEGACY_FULL: NO_ANSWER},
    ),
)

AUTHORIZATION_STEPS = (
    Step(
        name="AuthorizationPolicy",
        what="httpbin.full allows only GET from sleep.full",
        delete=(POLICY,),
        apply={AUTHORIZATION: "authorization.yaml"},
        expected={**AUTOMATIC, LEGACY_FULL: DENIED},
    ),
    Step(
        name="AuthorizationPolicy deleted",
        what="httpbin.full allows all requests",
        delete=(AUTHORIZATION,),
        expected=AUTOMATIC,
    ),
)
"""Steps that `--authorization` adds to those of the Istio task."""


INITIAL_STATE = Step(
    name="initial state", what="no policies", delete=(POLICY, DESTINATION_RULE), expected=AUTOMATIC
)
"""The state that `--keep` restores at the end."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The answers to the requests of one step."""

    step: Step
    answers: Mapping[Pair, Answers]

    @property
    def requests(self) -> int:
        """The number of requests."""
        return sum(answers.total() for answers in self.answers.values())

    def differences(self) -> Iterator[str]:
        """Yield a message for each pair with unexpected answers."""
        for pair, expected in self.step.expected.items():
            kinds, answers = expected.answers(pair), self.answers.get(pair, Counter())
            if kinds != answers.keys():
                yield (
                    f"{self.step.name}: {pair}: expected {_join(kinds)}, got "
                    f"{', '.join(f'{n}x {answer}' for answer, n in sorted(answers.items())) or 'nothing'}"
                )


def _join(answers: set[Answer]) -> str:
    return " and ".join(str(answer) for answer in sorted(answers, reverse=True))
