"""The real Envoy without served private keys: it learns the reason and rejects nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.controlplane.world import AUTHORITY
from tests.support.envoy import EnvoyProcess
from tests.support.waiting import eventually
from xds.codec import to_json_dict
from xds.mesh.controlplane.controller import Controller
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.model.objects import Change, Interception, Meta, Pod, Ref
from xds.server import XdsServer

pytestmark = pytest.mark.envoy


class Patient(EnvoyProcess):
    """An Envoy that counts as started before it is live: it would wait 15 s for its key."""

    async def _is_live(self) -> bool:
        return bool(await self.admin.json("/server_info"))


@pytest.mark.parametrize("sotw", [False, True], ids=["delta", "sotw"])
async def test_envoy_accepts_configuration_without_the_key(loopback, tmp_path, sotw):
    meta = Meta(ref=Ref("Pod", "ns", "web"), labels={"security.istio.io/tlsMode": "istio"})
    pod = Pod(meta=meta, address=loopback.address(), interception=Interception.NONE)
    controller = Controller(AUTHORITY, serve_keys=False)
    task = asyncio.create_task(controller.run())
    controller.change(Change(applied=(pod,)))
    await controller.ready.wait()
    try:
        async with XdsServer(controller.connections, "127.0.0.1:0", grace=0.5) as server:
            config = to_json_dict(bootstrap(pod, "127.0.0.1", server.port, sotw=sotw))
            async with (Patient if sotw else EnvoyProcess)("web", config, tmp_path) as envoy:

                async def is_synced() -> bool:
                    synced = {
                        status.type_url.rpartition(".")[2]
                        for stream in server.discovery.streams
                        for status in stream.session.status()
                        if status.synced
                    }
                    return synced >= {"Secret", "Cluster", "Listener"}

                await eventually(is_synced, timeout=60, what="all resources are accepted")
                await eventually(envoy.admin.ready, timeout=60, what="it is live")
                assert await envoy.admin.stat("control_plane.connected_state") == 1
                dumped = await envoy.admin.get("/config_dump")
                assert "PRIVATE" not in dumped
                assert "ROOTCA" in dumped
    finally:
        task.cancel()
