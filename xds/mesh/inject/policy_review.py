"""Admission reviews of policies and DestinationRules: what an object would break, or why it is invalid.

`xds.mesh.inject.policy_webhook` computes the effects of an object. This module reads the request before that,
and makes the response after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

from xds.mesh.model.objects import DRY_RUN, ENFORCE_PLAN, TRAFFIC_KINDS, Change, Problem, Ref, printable
from xds.mesh.parse import Parsed, parse
from xds.mesh.policy.prediction import Prediction
from xds.mesh.policy.prediction_text import breaking_sentences, summary

Json: TypeAlias = dict[str, Any]

RESULTS = ("allowed", "warned", "refused", "unchecked", "malformed")
"""Results of requests.

`unchecked` means that the object was allowed without a check of its effects, and `malformed` that the request
is not a valid AdmissionReview.
"""
MAX_SENTENCES = 5
"""Maximum number of breaking connections that a response names."""
MAX_PROBLEMS = 3
"""Maximum number of warnings about the object itself, of each kind."""
MAX_WARNING_LENGTH = 256
"""Maximum length of a warning. The API server truncates longer ones, and all warnings to 4,096 characters."""
MAX_MESSAGE_LENGTH = 4096
"""Maximum length of the message for a refused object."""
NAMESPACE_CONTROLLER = "system:serviceaccount:kube-system:namespace-controller"
"""User that deletes the objects of a deleted namespace. Its workloads are deleted as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposed change of one object."""

    uid: str
    """UID of the request."""
    title: str = ""
    """KIND NAMESPACE/NAME of the object; empty if the request concerns no policy."""
    change: Change | None = None
    """The change, whose effects must be checked; None if it has none."""
    key: bytes = b""
    """Digest of the change: proposals with equal keys have the same effects."""
    errors: tuple[Problem, ...] = ()
    """Why the object is invalid, which is why it must be refused."""
    notices: tuple[Problem, ...] = ()
    """Other problems of the object."""
    may_break: bool = False
    """Whether the object's annotation ENFORCE_PLAN disables the enforcement."""
    dry_run: bool = False
    """Whether the request is a dry run."""

    @property
    def command(self) -> str:
        """Command that prints all effects."""
        ref = self.change.removed[0] if self.change and self.change.removed else None
        what = f"--delete {'/'.join(filter(None, ref))}" if ref else "-f FILE"
        return f"xds plan --kubernetes {what}"


class Effects(NamedTuple):
    """The effects of a change, as text."""

    sentences: tuple[str, ...] = ()
    """The first connections that break, each with its remedy: at most MAX_SENTENCES."""
    breaks: int = 0
    """Number of connections that break."""
    summary: str = ""
    """Number of connections with each effect; empty if `sentences` contains all that get worse."""
    ineffective: tuple[str, ...] = ()
    """Why the object has no effect."""


def read_proposal(request: Mapping[str, Any]) -> Proposal:
    """Return the change that an admission request proposes. Raise ValueError if the request is malformed."""
    nothing = Proposal(uid=request["uid"], dry_run=bool(request.get("dryRun")))
    operation = request.get("operation")
    if operation not in {"CREATE", "UPDATE", "DELETE"}:
        return nothing
    new, old = request.get("object"), request.get("oldObject")
    document = old if operation == "DELETE" else new
    if not isinstance(document, dict):
        raise ValueError(f"the request for {operation} has no object")  # noqa: TRY004 - a malformed request
    if document.get("kind") not in TRAFFIC_KINDS or request.get("subResource"):
        return nothing
    [parsed] = parse(document, lambda _: "")
    if operation == "DELETE":
        return _deletion(request, parsed, document, nothing)
    return _application(parsed, document, old if isinstance(old, dict) else None, nothing)


def _deletion(request: Mapping[str, Any], parsed: Parsed, document: Json, nothing: Proposal) -> Proposal:
    """Return the proposal for a deletion, which is valid even if the object is not."""
    user = request.get("userInfo")
    by_namespace = isinstance(user, dict) and user.get("username") == NAMESPACE_CONTROLLER
    if parsed.ref is None or by_namespace:
        return nothing
    return Proposal(
        uid=nothing.uid,
        title=str(parsed.ref),
        change=Change(removed=(parsed.ref,)),
        key=_digest("DELETE", parsed.ref, None),
        may_break=_may_break(document),
        dry_run=nothing.dry_run,
    )


def _application(parsed: Parsed, document: Json, old: Json | None, nothing: Proposal) -> Proposal:
    """Return the proposal for a new or changed object.

    Changes of metadata are always valid: otherwise, the finalizers of an invalid object could not be removed.
    """
    errors = tuple(problem for problem in parsed.problems if not problem.notice)
    notices = tuple(problem for problem in parsed.problems if problem.notice)
    is_deleted = _metadata(document).get("deletionTimestamp") is not None
    is_unchanged = is_deleted or (old is not None and _content(old) == _content(document))
    if not parsed.refused or is_unchanged:
        errors, notices = (), parsed.problems
    has_effect = parsed.fact is not None and not is_unchanged
    return Proposal(
        uid=nothing.uid,
        title=str(parsed.ref) if parsed.ref else str(document["kind"]),
        change=Change(applied=(parsed.fact,)) if parsed.fact and has_effect else None,
        key=_digest("APPLY", parsed.ref, document),
        errors=errors,
        notices=notices,
        may_break=_may_break(document),
        dry_run=nothing.dry_run,
    )


def _metadata(document: Json) -> Json:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _may_break(document: Json) -> bool:
    annotations = _metadata(document).get("annotations")
    return isinstance(annotations, dict) and annotations.get(ENFORCE_PLAN) == "false"


def _content(document: Json) -> tuple[object, object]:
    """Return what the effects of an object depend on: its spec, and whether it is a dry run."""
    annotations = _metadata(document).get("annotations")
    return document.get("spec"), annotations.get(DRY_RUN) if isinstance(annotations, dict) else None


def _digest(operation: str, ref: Ref | None, document: Json | None) -> bytes:
    created = _metadata(document or {}).get("creationTimestamp")
    content = [operation, ref, created, _content(document or {})]
    return sha256(json.dumps(content, sort_keys=True).encode()).digest()


def summarize(prediction: Prediction, ineffective: Iterable[Problem]) -> Effects:
    """Return the effects of a change as text, with a bounded number of sentences."""
    sentences = [*breaking_sentences(prediction)]
    bad = sum(count for effect, count in prediction.effects.items() if effect.worsens)
    return Effects(
        sentences=tuple(sentences[:MAX_SENTENCES]),
        breaks=len(sentences),
        summary=summary(prediction) if bad > min(len(sentences), MAX_SENTENCES) else "",
        ineffective=tuple(map(_describe, [*ineffective][:MAX_PROBLEMS])),
    )


def respond(
    proposal: Proposal, effects: Effects | None, problem: str = "", *, enforce: bool
) -> tuple[str, Json]:
    """Return the result of a review and the response to it.

    Args:
        proposal: the proposed change.
        effects: effects of the change; None if they were not checked.
        problem: why the effects were not checked; empty if the change has none.
        enforce: whether to refuse changes that break connections or were not checked.
    """
    if proposal.errors:
        message = "\n".join(map(_describe, proposal.errors))
        return "refused", _refusal(proposal, 422, "Invalid", message)
    found = effects or Effects()
    lines = [*found.sentences]
    if found.summary:
        lines.append(f"{found.summary}; run {proposal.command}")
    if problem:
        lines.append(f"the effect was not checked: {problem}")
    if enforce and not proposal.may_break and (problem or found.breaks):
        return "refused", _refusal(
            proposal, 403, "Forbidden", "\n".join([*lines, _advice(proposal, problem)])
        )
    lines += (*found.ineffective, *map(_describe, proposal.notices[:MAX_PROBLEMS]))
    response: Json = {"uid": proposal.uid, "allowed": True}
    if lines:
        response["warnings"] = [_shorten(line, MAX_WARNING_LENGTH) for line in lines]
    result = "unchecked" if problem else "warned" if lines else "allowed"
    return result, response


def _advice(proposal: Proposal, problem: str) -> str:
    """Return what to do about a refusal."""
    first = "try again" if problem else "follow the advice above"
    if proposal.change and proposal.change.removed:
        what = f"annotate the object with {ENFORCE_PLAN}=false to delete it anyway"
    else:
        what = f'set the annotation {ENFORCE_PLAN}: "false" to apply it anyway'
    return f"{first}, or {what}"


def _refusal(proposal: Proposal, code: int, reason: str, message: str) -> Json:
    text = "\n".join(_shorten(line, MAX_MESSAGE_LENGTH) for line in message.split("\n"))
    status = {"code": code, "reason": reason, "message": text[:MAX_MESSAGE_LENGTH]}
    return {"uid": proposal.uid, "allowed": False, "status": status}


def _describe(problem: Problem) -> str:
    """Return the message of a problem, as `xds validate` prints it."""
    return printable(f"{problem.what} ({problem.hint})" if problem.hint else problem.what)


def _shorten(text: str, length: int) -> str:
    text = printable(text[: length + 1])
    return text if len(text) <= length else text[: length - 3] + "..."
