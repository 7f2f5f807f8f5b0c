"""What the hub grants a stream's caller, and when that ends."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import grpc
import structlog

from xds.identity import CERTIFICATE
from xds.identity.claims import Caller, objection
from xds.model import Pod
from xds.server import Subscriber
from xds.snapshot import SECRET, ResourceSet, Snapshot

log = structlog.get_logger(__name__)

NO_KEY = (
    "private keys are not served in plaintext, where nobody proves who they are: connect over TLS, with a service account's "
    "token or a certificate"
)
"""Why a stream does not get the secret `default`."""


def look_again(subscriber: Subscriber, name: tuple[str, str], was: Pod | None, pod: Pod | None) -> None:
    """End a stream whose caller does not speak for the pod (namespace, name) any longer, now that it is another one or gone."""
    caller: Caller | None = subscriber.stream.caller
    if caller is None:
        return
    title = "/".join(name)
    if pod is None:
        reason = f"pod {title} is gone" if was else ""
    else:
        reason = objection(caller, *name, pod)
        if not reason and was and was.meta.uid != pod.meta.uid:
            reason = f"pod {title} is another one now"
    if reason:
        log.info("stream ends", proxy=subscriber.node.id, reason=reason)
        subscriber.refuse(grpc.StatusCode.PERMISSION_DENIED, reason)


def waiting_client(caller: Caller | None, name: tuple[str, str]) -> Hashable:
    """Return whose budget a stream is charged to while its pod (namespace, name) is not known.

    A caller whose credential is good for any pod of its account could invent pods, so all that it speaks for share one
    budget; so do all in plaintext, where nothing is proved.
    """
    if caller is None:
        return "plaintext"
    return name if caller.pod else str(caller)


def without_key(snapshot: Snapshot) -> Snapshot:
    """Return what somebody gets who has proved nothing."""
    secrets = [each for each in snapshot.of(SECRET).values() if each.name != CERTIFICATE]
    types = {**snapshot.types, SECRET: ResourceSet(secrets)}
    return replace(snapshot, types=types, refusals={(SECRET, CERTIFICATE): NO_KEY})
