"""What the hub grants a stream's caller, and when that ends."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from zlib import crc32

import grpc
import structlog

from xds.mesh.identity import CERTIFICATE
from xds.mesh.identity.claims import Caller, denial_reason
from xds.mesh.model.objects import Pod
from xds.server import Subscriber
from xds.snapshot import SECRET, ResourceSet, Snapshot

log = structlog.get_logger(__name__)

NO_KEY = (
    "private keys are not served in plaintext, where nobody proves who they are: connect over TLS, with a service account's "
    "token or a certificate"
)
"""Why a stream does not get the secret `default`."""


UNKNOWN_BUDGETS = 64
"""Budgets of all pods together that are not known and speak in plaintext."""


def look_again(subscriber: Subscriber, name: tuple[str, str], was: Pod | None, pod: Pod | None) -> None:
    """End a stream whose caller does not speak for the pod (namespace, name) any longer, now that it is another one or gone."""
    caller: Caller | None = subscriber.stream.caller
    if caller is None:
        return
    title = "/".join(name)
    if pod is None:
        reason = f"pod {title} is gone" if was else ""
    else:
        reason = denial_reason(caller, *name, pod)
        if not reason and was and was.meta.uid != pod.meta.uid:
            reason = f"pod {title} is another one now"
    if reason:
        log.info("stream ends", proxy=subscriber.node.id, reason=reason)
        subscriber.refuse(grpc.StatusCode.PERMISSION_DENIED, reason)


def client_of(caller: Caller | None, name: tuple[str, str], *, is_known: bool) -> Hashable:
    """Return whose budget a stream is charged to that speaks for a pod (namespace, name).

    A known pod has a budget of its own, and another one for streams in plaintext: who proves nothing must not use up what
    the pod needs. Pods that are not known share the budget of the caller's account, as it could invent any number of them;
    in plaintext they share UNKNOWN_BUDGETS. A token that is bound to a pod is good for that pod only.
    """
    if is_known or (caller and caller.pod):
        return (*name, caller is None)
    return str(caller) if caller else crc32("/".join(name).encode()) % UNKNOWN_BUDGETS


def without_key(snapshot: Snapshot) -> Snapshot:
    """Return what somebody gets who has proved nothing."""
    secrets = [each for each in snapshot.of(SECRET).values() if each.name != CERTIFICATE]
    types = {**snapshot.types, SECRET: ResourceSet(secrets)}
    return replace(snapshot, types=types, refusals={(SECRET, CERTIFICATE): NO_KEY})
