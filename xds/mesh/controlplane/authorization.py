"""What the controller grants to the caller of a stream, and when the grant ends."""

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
    "private keys are not served in plaintext, where callers are not authenticated: connect over TLS, with a "
    "service account token or a client certificate"
)
"""Why a stream does not get the secret `default`."""


UNKNOWN_BUDGETS = 64
"""Budgets that all unknown pods share on plaintext streams."""


def recheck_caller(
    subscriber: Subscriber, name: tuple[str, str], previous: Pod | None, pod: Pod | None
) -> None:
    """End a stream whose caller may no longer speak for a pod (namespace, name).

    Call it when the pod has changed, or was replaced or deleted.
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


def budget_key(caller: Caller | None, name: tuple[str, str], *, is_known: bool) -> Hashable:
    """Return the budget that a stream for a pod (namespace, name) is charged to.

    A known pod has one budget for authenticated streams and one for plaintext streams, so that
    unauthenticated callers cannot use up what the pod needs. Unknown pods share the budget of the caller's
    service account, because a caller could invent any number of them; in plaintext they share
    UNKNOWN_BUDGETS. A token that is bound to a pod is valid for that pod only.
    """
    if is_known or (caller and caller.pod):
        return (*name, caller is None)
    return str(caller) if caller else crc32("/".join(name).encode()) % UNKNOWN_BUDGETS


def without_private_key(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot for unauthenticated callers."""
    secrets = [secret for secret in snapshot.of(SECRET).values() if secret.name != CERTIFICATE]
    types = {**snapshot.types, SECRET: ResourceSet(secrets)}
    return replace(snapshot, types=types, denials={(SECRET, CERTIFICATE): NO_KEY})
