"""The effects of a change in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from xds.mesh.model.objects import OutsideTraffic, Ref
from xds.mesh.policy.direct import Refusal
from xds.mesh.policy.hop_text import format_clients, format_target
from xds.mesh.policy.prediction import Effect, HopChange, Prediction
from xds.mesh.policy.remedy import change_remedy, refusal_remedy


def summary(prediction: Prediction, *, is_complete: bool = True) -> str:
    """Return the number of hops and of direct traffic with each effect, such as `breaks: 2, repaired: 1`.

    `is_complete` is whether all objects were considered that could change the prediction.
    """
    effects = prediction.effects
    parts = [f"{effect}: {effects[effect]}" for effect in Effect if effects[effect]]
    nothing = "no connection changes" + ("" if is_complete else " among the objects that were considered")
    return ", ".join(parts) or nothing


def breaking_sentences(prediction: Prediction) -> Iterator[str]:
    """Yield a sentence for each hop that breaks, then for direct traffic, each with its remedy."""
    yield from (_hop_sentence(change) for change in prediction.hops if change.effect is Effect.BREAKS)
    yield from (_refusal_sentence(refusal) for refusal in prediction.refusals if refusal.breaks)


def format_pod_port(refusal: Refusal) -> str:
    """Return the port of pods that refuses traffic as `port PORT of PODS`."""
    return f"port {refusal.port} of {format_clients(refusal.clients)}"


def format_outside_client(traffic: OutsideTraffic, source: Ref | None) -> str:
    """Return a client outside the mesh as `TRAFFIC (KIND NAMESPACE/NAME)`, with the object that proves it."""
    return f"{traffic} ({source})" if source else str(traffic)


def _hop_sentence(change: HopChange) -> str:
    affected = len(change.endpoints)
    at = f" at {affected} of {change.ready} endpoints" if affected < change.ready else ""
    decided_by = ", ".join(map(str, change.after.decided_by))
    why = f"{change.after.reason} ({decided_by})" if decided_by else str(change.after.reason)
    target = format_target(change.service, change.port)
    return f"{format_clients(change.clients)} -> {target} would fail{at}: {why}; {change_remedy(change)}"


def _refusal_sentence(refusal: Refusal) -> str:
    why = f"{refusal.failure} ({refusal.decided_by})"
    target = format_pod_port(refusal)
    client = format_outside_client(refusal.traffic, refusal.source)
    return f"{client} -> {target} would fail: {why}; {refusal_remedy(refusal)}"
