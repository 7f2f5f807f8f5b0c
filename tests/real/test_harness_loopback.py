"""Tests of the harness on loopback: the Envoy process, applications, clients and load."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.real import static_envoy
from tests.support.apps import EchoApp, Httpbin
from tests.support.clients import Client
from tests.support.envoy import EnvoyProcess
from tests.support.load import Load
from tests.support.waiting import eventually


@pytest.mark.envoy
class TestEnvoyProcess:
    async def test_crashed_envoy_fails_the_test_with_its_log(self, tmp_path, loopback):
        idle = static_envoy.idle(loopback.address(), 15000)
        broken = idle | {"no_such_field": 1}

        with pytest.raises(RuntimeError, match="no_such_field"):
            async with EnvoyProcess("broken", broken, tmp_path):
                pass

        async def die() -> None:
            async with EnvoyProcess("dying", idle, tmp_path) as envoy:
                os.kill(envoy.pid, 9)
                await envoy.ended()

        with pytest.raises(AssertionError, match="ended with status -9"):
            await die()

    async def test_refused_configuration_fails_the_test(self, tmp_path, loopback):
        listeners = tmp_path / "lds.yaml"
        listeners.write_text("resources: [{'@type': type.googleapis.com/envoy.config.listener.v3.Listener}]")
        bootstrap = static_envoy.idle(loopback.address(), 15000) | {
            "node": {"id": "it", "cluster": "test"},
            "dynamic_resources": {"lds_config": {"path_config_source": {"path": str(listeners)}}},
        }

        with pytest.raises(AssertionError, match=r"rejected configuration: .*lds.update_rejected"):
            async with EnvoyProcess("refusing", bootstrap, tmp_path):
                pass


class TestApplicationsAndClients:
    async def test_echo_answers_like_httpbin(self):
        headers = {"x-forwarded-client-cert": "By=a;URI=spiffe://cluster.local/ns/full/sa/sleep"}
        async with EchoApp("web", 0, address="127.0.0.1") as app, Httpbin(0) as httpbin:
            echo, real = [
                await Client().get(f"http://127.0.0.1:{port}/headers", headers=headers)
                for port in (app.port, httpbin.port)
            ]

        assert echo.identity == "spiffe://cluster.local/ns/full/sa/sleep"
        assert real.identity == echo.identity
        assert {**real.echo["headers"], "Host": ""} == {**echo.echo["headers"], "Host": ""}

    @pytest.mark.parametrize("way", ["get", "get_http2"])
    async def test_refused_cut_and_late_responses_are_000(self, way):
        get = getattr(Client(), way)
        async with EchoApp("web", 0, address="127.0.0.1") as app:
            slow = asyncio.create_task(get(f"http://127.0.0.1:{app.port}/slow?seconds=20"))
            late = await get(f"http://127.0.0.1:{app.port}/slow?seconds=20", timeout=0.3)
        refused = await get(f"http://127.0.0.1:{app.port}/headers")
        unknown = await get("http://nowhere.test/headers")

        assert {(await slow).code, late.code, refused.code, unknown.code} == {"000"}
        assert all(answer.error for answer in (await slow, late, refused, unknown))

    async def test_load_counts_requests_and_failures(self):
        async with EchoApp("web", 0, address="127.0.0.1") as app:
            load = Load(client=Client(), url=f"http://127.0.0.1:{app.port}/headers", at_most=100_000)
            async with load:
                assert all(sent.answer.pod == "web" for sent in await load.more(50))
        load.check()
        assert len(load.sent) >= 50

        async with load:
            await eventually(lambda: load.failures)
        with pytest.raises(AssertionError, match="requests failed"):
            load.check()
