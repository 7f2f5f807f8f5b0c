"""Authorization of streams: private keys, and the pods that a caller may act for. Budgets of callers."""

from __future__ import annotations

from collections.abc import Hashable
from zlib import crc32

import grpc
import structlog

from xds.mesh.identity import CERTIFICATE
from xds.mesh.identity.claims import Caller, denial_reason
from xds.mesh.model.objects import Pod, PodKey
from xds.server import Subscriber
from xds.snapshot import SECRET, ResourceSet, Snapshot

log = structlog.get_logger(__name__)

NO_KEY = (
    "private keys and certificates are served only over TLS, and only to callers with a service account "
    "token: plaintext callers are not authenticated, and a certificate cannot be used to renew itself"
)
"""Why a stream does not receive the secret `default`."""
_DENIALS = {(SECRET, CERTIFICATE): NO_KEY}

UNKNOWN_BUDGETS = 64
"""Number of budgets that plaintext streams of unknown pods share."""


def recheck_caller(subscriber: Subscriber, name: PodKey, previous: Pod | None, pod: Pod | None) -> None:
    """End a stream if its caller may no longer act for its pod (namespace, name).

    Call it when the pod was changed, replaced or deleted.
    """
    caller: Caller | None = subscriber.stream.caller
    if caller is None:
        return
    title = "/".join(name)
    if pod is None:
        reason = f"pod {title} is gone" if previous else ""
    else:
        reason = denial_reason(caller, *name, pod)
        if not reason and previous and previous.meta.uid != pod.meta.uid:
            reason = f"pod {title} was replaced"
    if reason:
        log.info("stream ended", proxy=subscriber.node.id, reason=reason)
        subscriber.refuse(grpc.StatusCode.PERMISSION_DENIED, reason)


def budget_key(caller: Caller | None, name: PodKey, *, is_known: bool) -> Hashable:
    """Return the budget that a stream for a pod (namespace, name) is charged to.

    A known pod has one budget for authenticated streams and one for plaintext streams, so that
    unauthenticated callers cannot exhaust the pod's budget. A caller can invent any number of unknown pods,
    so these share the budget of the caller's service account. In plaintext, they share UNKNOWN_BUDGETS. A
    token bound to a pod is valid only for that pod, so it has a budget of its own.
    """
    if is_known or (caller and caller.pod):
        return (*name, caller is None)
    return str(caller) if caller else crc32("/".join(name).encode()) % UNKNOWN_BUDGETS


def without_private_key(snapshot: Snapshot) -> Snapshot:
    """Return a copy of a snapshot without the private key, for unauthenticated callers."""
    types, secrets = snapshot.types, snapshot.of(SECRET)
    if CERTIFICATE in secrets:
        keyless = ResourceSet(secret for secret in secrets.values() if secret.name != CERTIFICATE)
        types = {**types, SECRET: keyless}
    return Snapshot(types, denials=_DENIALS, generation=snapshot.generation)
