"""Who proved who they are speaks for their own pod, for as long as it is theirs; who did not gets no key."""

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

from tests.controlplane.test_hub import NOW, STREAM, node, published, running, service
from tests.controlplane.test_hub import pod as make_pod
from xds.mesh.controlplane.authorization import NO_KEY, UNKNOWN_BUDGETS, client_of
from xds.mesh.identity.claims import Caller, Credential
from xds.mesh.model.objects import Change, Pod, Ref
from xds.protocol.events import Subscribed
from xds.protocol.limits import Budgets, LimitError, Limits
from xds.protocol.wire import parse_request
from xds.server import Refused, StreamInfo, Subscriber
from xds.server.fetch import fetch
from xds.server.proxies import connected
from xds.snapshot import CLUSTER, SECRET

CERTIFICATE = Caller(namespace="shop", service_account="web", credential=Credential.CERTIFICATE)
TOKEN = Caller(namespace="shop", service_account="web", pod="a", pod_uid="1", credential=Credential.TOKEN)
SECRETS = replace(STREAM, type_url=SECRET)


def pod(name: str = "a", *, uid: str = "1", **how: Any) -> Pod:
    made = make_pod(name, **how)
    return replace(made, meta=replace(made.meta, uid=uid))


def of(caller: Caller | None, type_url: str = "") -> StreamInfo:
    return replace(STREAM, caller=caller, type_url=type_url)


@pytest.mark.parametrize("caller", [CERTIFICATE, TOKEN])
async def test_who_proved_it_gets_the_key_also_where_plaintext_gets_none(caller):
    async with running(pod(), serve_keys=False) as hub:
        proven = hub.connect(node("a"), of(caller))
        anybody = hub.connect(node("a"), STREAM)
        assert sorted((await published(proven)).of(SECRET)) == ["ROOTCA", "default"]
        given = await published(anybody)
        assert list(given.of(SECRET)) == ["ROOTCA"]
        assert given.refused(SECRET) == {"default": NO_KEY}
        assert given.of(CLUSTER)


async def test_without_anybody_who_may_have_it_no_key_is_made():
    async with running(pod(), serve_keys=False) as hub:
        anybody = hub.connect(node("a"), STREAM)
        await published(anybody)
        assert hub.certificates().issued == 0
        proven = hub.connect(node("a"), of(TOKEN))
        assert "default" in (await published(proven)).of(SECRET)
        assert hub.certificates().issued == 1
        assert not anybody.changed.is_set()


@pytest.mark.parametrize(
    ("caller", "why"),
    [
        (replace(CERTIFICATE, namespace="other"), "another namespace"),
        (replace(CERTIFICATE, service_account="other"), "another service account"),
        (replace(TOKEN, pod="b"), "bound to pod b"),
        (replace(TOKEN, pod_uid="2"), "an earlier pod"),
    ],
)
async def test_who_may_not_speak_for_a_pod_is_not_let_in(caller, why):
    async with running(pod()) as hub:
        with pytest.raises(Refused, match=why) as refused:
            hub.connect(node("a"), of(caller))
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_who_waits_for_a_pod_is_looked_at_when_it_comes():
    async with running() as hub:
        waiting = hub.connect(node("a"), of(TOKEN))
        other = hub.connect(node("a"), of(CERTIFICATE))
        with pytest.raises(Refused, match="another namespace"):
            hub.connect(node("a"), of(replace(TOKEN, namespace="other")))
        with pytest.raises(Refused, match="bound to pod b"):
            hub.connect(node("a"), of(replace(TOKEN, pod="b")))
        hub.change(Change(applied=(pod(account="other"),)))
        for subscriber in (waiting, other):
            await changed(subscriber)
            assert subscriber.refused
            assert "another service account" in subscriber.refused.message
            hub.disconnect(subscriber)
        again = hub.connect(node("b"), of(replace(TOKEN, pod="b")))
        hub.change(Change(applied=(pod("b"),)))
        assert "default" in (await published(again)).of(SECRET)


async def test_who_is_refused_a_pod_when_it_comes_is_not_given_its_key_first():
    other = replace(CERTIFICATE, service_account="other")
    wanted = DiscoveryRequest(node=EnvoyNode(id=node("a").id), resource_names=["default"])
    async with running() as hub:
        asking = asyncio.create_task(
            fetch(hub, parse_request(bytes(wanted)), of(other, SECRET), Budgets(), patience=30.0)
        )
        waiting = hub.connect(node("a"), of(other))
        owner = hub.connect(node("a"), of(TOKEN))
        hub.change(Change(applied=(pod(),)))
        assert "default" in (await published(owner)).of(SECRET)
        assert waiting.refused
        assert waiting.snapshot is None
        with pytest.raises(Refused, match="another service account"):
            await asking


@pytest.mark.parametrize("caller", [CERTIFICATE, TOKEN])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change(removed=(Ref("Pod", "shop", "a"),)), "pod shop/a is gone"),
        (Change(applied=(pod(account="other"),)), "another service account"),
        (Change(applied=(pod(uid="2", created=NOW + timedelta(minutes=1)),)), "earlier pod|another one now"),
    ],
)
async def test_a_stream_ends_when_its_pod_is_no_longer_the_callers(caller, change, why):
    async with running(pod()) as hub:
        proven = hub.connect(node("a"), of(caller))
        anybody = hub.connect(node("a"), STREAM)
        await published(proven)
        await published(anybody)
        hub.change(change)
        await changed(proven)
        assert proven.refused
        assert proven.refused.code is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(Refused, match=why):
            raise proven.refused
        assert anybody.refused is None


async def test_a_pod_that_changes_but_stays_keeps_its_stream():
    async with running(pod()) as hub:
        proven = hub.connect(node("a"), of(TOKEN))
        await published(proven)
        hub.change(Change(applied=(pod(ready=False), service("web"))))
        await published(proven)
        assert proven.refused is None


async def test_who_asks_for_a_key_alone_without_proof_is_told_why_there_is_none():
    wanted = Subscribed(type_url=SECRET, names=frozenset({"default", "ROOTCA"}), wildcard=False)
    roots = Subscribed(type_url=SECRET, names=frozenset({"ROOTCA"}), wildcard=False)
    async with running(pod(), serve_keys=False) as hub:
        with capture_logs() as logs:
            alone, aggregated = hub.connect(node("a"), SECRETS), hub.connect(node("a"), STREAM)
            hub.observe(alone, roots)
            hub.observe(aggregated, wanted)
            hub.observe(hub.connect(node("a"), replace(SECRETS, caller=TOKEN)), wanted)
            with pytest.raises(Refused, match="private keys are not served in plaintext") as refused:
                hub.observe(alone, wanted)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert [line["event"] for line in logs] == ["proxy gets no certificate"]


async def test_where_keys_are_served_to_all_who_asks_for_one_alone_gets_it():
    wanted = Subscribed(type_url=SECRET, names=frozenset({"default"}), wildcard=False)
    async with running(pod()) as hub:
        alone = hub.connect(node("a"), SECRETS)
        hub.observe(alone, wanted)
        given = await published(alone)
        assert "default" in given.of(SECRET)
        assert not given.refusals


async def changed(subscriber: Any) -> None:
    """Wait until something is said to a stream that may have nothing."""
    async with asyncio.timeout(5):
        while subscriber.refused is None:
            await subscriber.changed.wait()
            subscriber.changed.clear()


def test_streams_of_pods_that_are_not_known_share_the_budget_of_their_account():
    """A caller could otherwise invent a pod for each stream. A token that is bound to a pod cannot be used for another."""

    def waiting(caller: Caller | None, name: str) -> object:
        return client_of(caller, ("shop", name), is_known=False)

    shared = waiting(CERTIFICATE, "a")
    assert waiting(CERTIFICATE, "b") == shared
    assert waiting(replace(TOKEN, pod=""), "c") == shared
    assert waiting(replace(CERTIFICATE, service_account="other"), "a") != shared
    assert waiting(TOKEN, "a") != shared
    in_plaintext = {waiting(None, f"pod-{number}") for number in range(1000)}
    assert len(in_plaintext) == UNKNOWN_BUDGETS
    assert shared not in in_plaintext


def test_plaintext_does_not_use_up_the_budget_of_a_pod():
    callers = (CERTIFICATE, TOKEN, replace(TOKEN, pod=""))
    [own] = {client_of(caller, ("shop", "a"), is_known=True) for caller in callers}
    assert client_of(TOKEN, ("shop", "a"), is_known=False) == own
    assert client_of(None, ("shop", "a"), is_known=True) != own
    assert client_of(None, ("shop", "a"), is_known=True) != client_of(None, ("shop", "b"), is_known=True)


async def test_stream_has_the_budget_of_its_pod_once_that_is_known():
    budgets = Budgets(Limits(streams=1))
    async with running(pod("known")) as hub:
        with ExitStack() as streams:

            def connect(name: str) -> Subscriber:
                return streams.enter_context(connected(hub, budgets, node(name), of(CERTIFICATE)))

            connect("known")
            waiting = connect("a")
            with pytest.raises(LimitError, match="the limit is 1 streams per client"):
                connect("b")
            hub.change(Change(applied=(pod(),)))
            await published(waiting)
            assert waiting.client == client_of(CERTIFICATE, ("shop", "a"), is_known=True)
            connect("b")
            with pytest.raises(LimitError):
                connect("a")
        assert not hub._streams
        assert len(budgets) == 0
