"""The play: what is applied in which order, and what every request must then show. A table, and its comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

REQUESTS = 10
"""Requests per pair, so that both pods of a service are met, and a mode that only sometimes holds shows."""

MAX_REQUESTS = 100
"""Requests at most where two kinds of answers are awaited: a balancer that chooses at random may take a while."""


class Pair(NamedTuple):
    """Who asks whom, as `NAME.NAMESPACE`: a pod, and a service."""

    client: str
    server: str

    def __str__(self) -> str:
        return f"{self.client} to {self.server}"

    @property
    def identity(self) -> str:
        """The SPIFFE id that the client's certificate shows to a server."""
        name, namespace = self.client.split(".")
        return f"spiffe://cluster.local/ns/{namespace}/sa/{name}"


class Answer(NamedTuple):
    """What one request brought, in the page's terms."""

    code: str
    """curl's `%{http_code}`: `000` when there was no answer."""
    identity: str = ""
    """The SPIFFE id that the server was shown; empty for plaintext."""

    def __str__(self) -> str:
        return f"{self.code} with {self.identity}" if self.identity else f"{self.code} without an identity"


Answers: TypeAlias = Counter[Answer]


class Shown(Enum):
    """How many of a pair's requests show the client's identity, that is, use mutual TLS."""

    ALL = "with"
    SOME = "with and without"
    NONE = "without"


@dataclass(frozen=True, slots=True)
class Expected:
    """What all requests of a pair must bring."""

    code: str
    shown: Shown

    def answers(self, pair: Pair) -> set[Answer]:
        """Return the kinds of answers that must all be seen, and nothing else."""
        with_identity, without = Answer(self.code, pair.identity), Answer(self.code)
        match self.shown:
            case Shown.ALL:
                return {with_identity}
            case Shown.NONE:
                return {without}
            case Shown.SOME:
                return {with_identity, without}

    def is_settled(self, pair: Pair, seen: Answers) -> bool:
        """Whether asking on would tell nothing new: all that is expected was seen, or something that is not."""
        wanted = self.answers(pair)
        settled = wanted <= seen.keys() or not seen.keys() <= wanted
        return seen.total() >= (REQUESTS if settled else MAX_REQUESTS)


MTLS = Expected("200", Shown.ALL)
MIXED = Expected("200", Shown.SOME)
PLAINTEXT = Expected("200", Shown.NONE)
NO_ANSWER = Expected("000", Shown.NONE)
UNAVAILABLE = Expected("503", Shown.NONE)

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
"""Mutual TLS wherever both ends have a sidecar."""

POLICY = "policy.yaml"
"""The file that holds the one Policy `httpbin`: applying another of that name replaces it."""
DESTINATION_RULE = "destination-rule.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One section of the page: what changes, and what requests then show."""

    name: str
    what: str
    expected: Table
    apply: Mapping[str, str] = field(default_factory=dict)
    """File in the manifests folder: the example that it is to hold."""
    delete: tuple[str, ...] = ()
    auto: bool = True
    """values.global.mtls.auto."""
    drained: bool = False
    """Whether to wait until connections from before the change are gone too, which clients may still use."""


STEPS = (
    Step(name="initial check", what="installed and deployed, no policies", expected=AUTOMATIC),
    Step(
        name="PERMISSIVE",
        what="clients send mutual TLS to the pods that can take it",
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
    # The page prints no URI for sleep.full to httpbin.partial in this section, where it asked once; the policy is of
    # another namespace, so that service stays as it was.
    Step(
        name="plaintext policy",
        what="Policy full/httpbin: no mutual TLS",
        apply={POLICY: "plaintext.yaml"},
        expected={**AUTOMATIC, FULL_FULL: PLAINTEXT},
    ),
    Step(
        name="DestinationRule override",
        what="clients are to send mutual TLS all the same",
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
        what="installed without it, traffic falls back to plaintext",
        auto=False,
        expected=ALL_PLAINTEXT,
    ),
    Step(
        name="auto=false, STRICT",
        what="httpbin.full wants what nobody sends any more",
        apply={POLICY: "strict.yaml"},
        auto=False,
        # Elsewhere a change makes clients leave their old connections at once. Here it concerns only the server, which
        # lets a plaintext connection of before have one more answer while it drains.
        drained=True,
        expected={**ALL_PLAINTEXT, FULL_FULL: UNAVAILABLE, LEGACY_FULL: NO_ANSWER},
    ),
)


INITIAL_STATE = Step(
    name="the beginning", what="no policies", delete=(POLICY, DESTINATION_RULE), expected=AUTOMATIC
)
"""Where `--keep` leaves the user, who may then go on alone."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the requests of one step brought."""

    step: Step
    answers: Mapping[Pair, Answers]

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(answers.total() for answers in self.answers.values())

    def differences(self) -> Iterator[str]:
        """Yield a sentence for every pair that did not bring what it should."""
        for pair, expected in self.step.expected.items():
            wanted, seen = expected.answers(pair), self.answers.get(pair, Counter())
            if wanted != seen.keys():
                yield (
                    f"{self.step.name}: {pair}: expected {_list(wanted)}, saw "
                    f"{', '.join(f'{n}x {answer}' for answer, n in sorted(seen.items())) or 'nothing'}"
                )


def _list(answers: set[Answer]) -> str:
    return " and ".join(str(answer) for answer in sorted(answers, reverse=True))
