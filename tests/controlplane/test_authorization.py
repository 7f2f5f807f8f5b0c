"""Authenticated callers speak for their own pod only; unauthenticated callers get no key."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as EnvoyNode
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest
from structlog.testing import capture_logs

from tests.controlplane.world import NOW, STREAM, WITHIN, node, published, running, service
from tests.controlplane.world import pod as make_pod
from xds.mesh.controlplane.authorization import NO_KEY, UNKNOWN_BUDGETS, budget_key
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.model.objects import Change, Pod, Ref
from xds.protocol.events import Subscribed
from xds.protocol.limits import Budgets, LimitError, Limits
from xds.protocol.wire import parse_request
from xds.server import Refused, StreamInfo, Subscriber
from xds.server.fetch import fetch
from xds.server.proxies import open_subscriber
from xds.snapshot import CLUSTER, SECRET

CERTIFICATE = Caller(namespace="shop", service_account="web", credential=CredentialKind.CERTIFICATE)
TOKEN = Caller(namespace="shop", service_account="web", pod="a", pod_uid="1", credential=CredentialKind.TOKEN)
SECRETS = replace(STREAM, type_url=SECRET)


def pod(name: str = "a", *, uid: str = "1", **fields: Any) -> Pod:
    new = make_pod(name, **fields)
    return replace(new, meta=replace(new.meta, uid=uid))


def of(caller: Caller | None, type_url: str = "") -> StreamInfo:
    return replace(STREAM, caller=caller, type_url=type_url)


@pytest.mark.parametrize("other", [CERTIFICATE, None])
async def test_only_caller_with_a_token_gets_the_key(other):
    """A stolen certificate must end with its lifetime."""
    async with running(pod(), serve_keys=False) as controller:
        authenticated = controller.connections.connect(node("a"), of(TOKEN))
        unauthenticated = controller.connections.connect(node("a"), of(other))
        assert sorted((await published(authenticated)).of(SECRET)) == ["ROOTCA", "default"]
        snapshot = await published(unauthenticated)
        assert list(snapshot.of(SECRET)) == ["ROOTCA"]
        assert snapshot.denied(SECRET) == {"default": NO_KEY}
        assert snapshot.of(CLUSTER)


async def test_no_certificate_is_issued_without_a_permitted_caller():
    async with running(pod(), serve_keys=False) as controller:
        unauthenticated = controller.connections.connect(node("a"), STREAM)
        await published(unauthenticated)
        assert controller.certificates.stats().issued == 0
        authenticated = controller.connections.connect(node("a"), of(TOKEN))
        assert "default" in (await published(authenticated)).of(SECRET)
        assert controller.certificates.stats().issued == 1
        assert not unauthenticated.changed.is_set()


async def test_change_keeps_the_secrets_of_a_stream_without_the_key():
    """A push compares and serves only the sets that are other objects than before."""
    async with running(pod(), serve_keys=False) as controller:
        unauthenticated = controller.connections.connect(node("a"), STREAM)
        before = await published(unauthenticated)
        controller.change(Change(applied=(service("new"),)))
        after = await published(unauthenticated)
        assert after.of(CLUSTER) is not before.of(CLUSTER)
        assert after.of(SECRET) is before.of(SECRET)
        assert after.denials is before.denials


@pytest.mark.parametrize(
    ("caller", "message"),
    [
        (replace(CERTIFICATE, namespace="other"), "another namespace"),
        (replace(CERTIFICATE, service_account="other"), "another service account"),
        (replace(TOKEN, pod="b"), "bound to pod b"),
        (replace(TOKEN, pod_uid="2"), "an earlier pod"),
    ],
)
async def test_caller_of_another_pod_is_refused(caller, message):
    async with running(pod()) as controller:
        with pytest.raises(Refused, match=message) as refused:
            controller.connections.connect(node("a"), of(caller))
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_waiting_caller_is_checked_when_its_pod_appears():
    async with running() as controller:
        waiting = controller.connections.connect(node("a"), of(TOKEN))
        other = controller.connections.connect(node("a"), of(CERTIFICATE))
        with pytest.raises(Refused, match="another namespace"):
            controller.connections.connect(node("a"), of(replace(TOKEN, namespace="other")))
        with pytest.raises(Refused, match="bound to pod b"):
            controller.connections.connect(node("a"), of(replace(TOKEN, pod="b")))
        controller.change(Change(applied=(pod(account="other"),)))
        for subscriber in (waiting, other):
            await until_refused(subscriber)
            assert subscriber.refused
            assert "another service account" in subscriber.refused.message
            controller.connections.disconnect(subscriber)
        again = controller.connections.connect(node("b"), of(replace(TOKEN, pod="b")))
        controller.change(Change(applied=(pod("b"),)))
        assert "default" in (await published(again)).of(SECRET)


async def test_refused_waiting_caller_never_gets_the_key():
    other = replace(TOKEN, pod="", service_account="other")
    request = DiscoveryRequest(node=EnvoyNode(id=node("a").id), resource_names=["default"])
    async with running() as controller:
        asking = asyncio.create_task(
            fetch(
                controller.connections,
                parse_request(bytes(request)),
                of(other, SECRET),
                Budgets(),
                first_snapshot_timeout=30.0,
            )
        )
        waiting = controller.connections.connect(node("a"), of(other))
        owner = controller.connections.connect(node("a"), of(TOKEN))
        controller.change(Change(applied=(pod(),)))
        assert "default" in (await published(owner)).of(SECRET)
        assert waiting.refused
        assert waiting.snapshot is None
        with pytest.raises(Refused, match="another service account"):
            await asking


@pytest.mark.parametrize("caller", [CERTIFICATE, TOKEN])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(removed=(Ref("Pod", "shop", "a"),)), "pod shop/a is gone"),
        (Change(applied=(pod(account="other"),)), "another service account"),
        (Change(applied=(pod(uid="2", created=NOW + timedelta(minutes=1)),)), "earlier pod|was replaced"),
    ],
)
async def test_stream_ends_when_caller_loses_its_pod(caller, change, message):
    async with running(pod()) as controller:
        authenticated = controller.connections.connect(node("a"), of(caller))
        unauthenticated = controller.connections.connect(node("a"), STREAM)
        await published(authenticated)
        await published(unauthenticated)
        controller.change(change)
        await until_refused(authenticated)
        assert authenticated.refused
        assert authenticated.refused.code is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(Refused, match=message):
            raise authenticated.refused
        assert unauthenticated.refused is None


async def test_changed_pod_keeps_its_stream():
    async with running(pod()) as controller:
        authenticated = controller.connections.connect(node("a"), of(TOKEN))
        await published(authenticated)
        controller.change(Change(applied=(pod(ready=False), service("web"))))
        await published(authenticated)
        assert authenticated.refused is None


async def test_plaintext_sds_stream_is_refused_with_a_reason():
    subscription = Subscribed(type_url=SECRET, names=frozenset({"default", "ROOTCA"}), wildcard=False)
    roots = Subscribed(type_url=SECRET, names=frozenset({"ROOTCA"}), wildcard=False)
    async with running(pod(), serve_keys=False) as controller:
        with capture_logs() as logs:
            alone, aggregated = (
                controller.connections.connect(node("a"), SECRETS),
                controller.connections.connect(node("a"), STREAM),
            )
            controller.connections.observe(alone, roots)
            controller.connections.observe(aggregated, subscription)
            controller.connections.observe(
                controller.connections.connect(node("a"), replace(SECRETS, caller=TOKEN)), subscription
            )
            with pytest.raises(Refused, match="are served only over TLS") as refused:
                controller.connections.observe(alone, subscription)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert [line["event"] for line in logs] == ["proxy gets no certificate"]


async def test_plaintext_sds_stream_gets_the_key_if_keys_are_served():
    subscription = Subscribed(type_url=SECRET, names=frozenset({"default"}), wildcard=False)
    async with running(pod()) as controller:
        alone = controller.connections.connect(node("a"), SECRETS)
        controller.connections.observe(alone, subscription)
        snapshot = await published(alone)
        assert "default" in snapshot.of(SECRET)
        assert not snapshot.denials


async def until_refused(subscriber: Any) -> None:
    """Wait until the controller ends a stream."""
    async with asyncio.timeout(WITHIN):
        while subscriber.refused is None:
            await subscriber.changed.wait()
            subscriber.changed.clear()


def test_unknown_pods_share_their_accounts_budget():
    """Otherwise a caller could invent a pod for each stream. A token that is bound to a pod cannot."""

    def waiting(caller: Caller | None, name: str) -> object:
        return budget_key(caller, ("shop", name), is_known=False)

    shared = waiting(CERTIFICATE, "a")
    assert waiting(CERTIFICATE, "b") == shared
    assert waiting(replace(TOKEN, pod=""), "c") == shared
    assert waiting(replace(CERTIFICATE, service_account="other"), "a") != shared
    assert waiting(TOKEN, "a") != shared
    in_plaintext = {waiting(None, f"pod-{number}") for number in range(1000)}
    assert len(in_plaintext) == UNKNOWN_BUDGETS
    assert shared not in in_plaintext


def test_plaintext_streams_have_a_separate_budget():
    callers = (CERTIFICATE, TOKEN, replace(TOKEN, pod=""))
    [own] = {budget_key(caller, ("shop", "a"), is_known=True) for caller in callers}
    assert budget_key(TOKEN, ("shop", "a"), is_known=False) == own
    assert budget_key(None, ("shop", "a"), is_known=True) != own
    assert budget_key(None, ("shop", "a"), is_known=True) != budget_key(None, ("shop", "b"), is_known=True)


async def test_stream_gets_its_pods_budget_once_the_pod_is_known():
    budgets = Budgets(Limits(streams=1))
    async with running(pod("known")) as controller:
        with ExitStack() as streams:

            def connect(name: str) -> Subscriber:
                return streams.enter_context(
                    open_subscriber(controller.connections, budgets, node(name), of(CERTIFICATE))
                )

            connect("known")
            waiting = connect("a")
            with pytest.raises(LimitError, match="the limit is 1 streams per client"):
                connect("b")
            controller.change(Change(applied=(pod(),)))
            await published(waiting)
            assert waiting.client == budget_key(CERTIFICATE, ("shop", "a"), is_known=True)
            connect("b")
            with pytest.raises(LimitError):
                connect("a")
        assert not controller.connections.streams
        assert len(budgets) == 0
