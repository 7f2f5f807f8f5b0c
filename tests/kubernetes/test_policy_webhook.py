"""`kubectl apply` of policies, which a real API server has `xds serve` review."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.kubernetes.bad_objects import EVIL, SHOP, SYSTEM
from tests.kubernetes.environment.cluster import Cluster, KubectlError, own_address
from tests.kubernetes.schemaless import pod, set_up
from tests.kubernetes.serving import Serving
from tests.support.loopback import free_port
from tests.support.waiting import eventually
from xds.mesh.kube.api import Json
from xds.mesh.kube.install import control_plane
from xds.mesh.kube.webhook import POLICIES

POLICY = """
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop, annotations: {annotations}}}
spec: {{mtls: {{mode: {mode}}}}}
"""
RULE = """
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: web, namespace: shop, finalizers: [example.com/cleanup]}
spec: {host: web, trafficPolicy: {tls: {mode: MUTUL}}}
"""
BREAKS = (
    "client (evil/default) -> web.shop:80 would fail: server-requires-mtls (PeerAuthentication "
    "shop/default); add a sidecar to client (evil/default), or use PERMISSIVE in PeerAuthentication "
    "shop/default until then"
)


def policy(mode: str = "STRICT", annotations: str = "{}") -> str:
    return POLICY.format(mode=mode, annotations=annotations)


def configuration(*, enforce: bool) -> Json:
    """Return the configuration that `xds install` creates."""
    objects = control_plane(enforce_plan=enforce)
    return next(item for item in objects if item["kind"] == POLICIES.kind)


class Shop:
    """A shop with a client without a sidecar, in a cluster whose kinds have no schemas."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self._port = free_port()

    async def set_up(self, *, enforce: bool) -> None:
        await set_up(self.cluster)
        await pod(self.cluster, EVIL, "client", "10.1.0.9", tls_mode="none")
        await self.cluster.service_here(SYSTEM, "xds", port=443, target=self._port)
        await self.cluster.api.create(POLICIES.collection, configuration(enforce=enforce))

    @asynccontextmanager
    async def serving(self, *options: str) -> AsyncIterator[Serving]:
        """Run the control plane. It reviews policies when the block starts."""
        address = f"--webhook-address={own_address()}:{self._port}"
        config = await self.cluster.kubeconfig()
        async with Serving(config, self._folder, address, *options) as serving:
            await serving.until_ready()

            async def reviewed() -> bool:
                try:
                    await self.apply(policy("STRICKT"), "--dry-run=server")
                except KubectlError as caught:
                    return "did you mean STRICT?" in caught.error
                return False

            await eventually(reviewed, timeout=90, every=0.2, what="the webhook is called")
            yield serving

    async def apply(self, text: str, *options: str) -> tuple[str, str]:
        """Return the output and the warnings."""
        return await self.cluster.kubectl_with_warnings("apply", "-f", "-", *options, stdin=text)

    async def refusal(self, text: str) -> str:
        with pytest.raises(KubectlError) as caught:
            await self.apply(text)
        return caught.value.error


@pytest.fixture
def shop(own_cluster: Cluster, tmp_path: Path) -> Shop:
    if not own_address():
        pytest.skip("needs an address that is not on loopback: a Service's endpoints cannot be there")
    return Shop(own_cluster, tmp_path)


async def test_apply_warns_about_what_breaks_and_refuses_what_is_invalid(shop: Shop) -> None:
    await shop.set_up(enforce=False)
    # The control plane is down: policies can be changed, even to invalid ones.
    assert "created" in (await shop.apply(policy("PERMISSIVE")))[0]
    assert "created" in (await shop.apply(RULE))[0]
    async with shop.serving() as serving:
        for options in (("--dry-run=server",), ()):
            output, warnings = await shop.apply(policy(), *options)
            assert "configured" in output
            assert f"Warning: {BREAKS}" in warnings
        assert (await shop.apply(policy("PERMISSIVE")))[1] == ""

        _, warnings = await shop.apply(
            policy().replace("spec: {", "spec: {selector: {matchLabels: {a: b}}, ")
        )
        assert "Warning: selector a=b matches no pod in namespace shop, so it has no effect" in warnings

        error = await shop.refusal(policy("STRICKT"))
        message = (
            'shop/default: spec.mtls.mode must be one of UNSET, DISABLE, PERMISSIVE, STRICT, not "STRICKT"'
        )
        assert 'admission webhook "policies.xds.io" denied the request: PeerAuthentication' in error
        assert "did you mean STRICT?" in error, message
        assert "DestinationRule shop/other: spec.trafficPolicy.tls.mode" in await shop.refusal(
            RULE.replace("name: web", "name: other")
        )

        # The invalid rule from before can be deleted, although its finalizer is removed by an update.
        await shop.cluster.kubectl("label", "destinationrule", "web", "-n", SHOP, "a=b")
        await shop.cluster.kubectl("delete", "destinationrule", "web", "-n", SHOP, "--wait=false")
        nothing = '{"metadata": {"finalizers": null}}'
        patch = ("patch", "destinationrule", "web", "-n", SHOP, "--type=merge", "-p", nothing)
        await shop.cluster.kubectl(*patch)
        assert await shop.cluster.kubectl("get", "destinationrules", "-n", SHOP, "-o", "name") == ""

        metrics = await serving.metrics()
        for result in ("allowed", "warned", "refused"):
            assert f'xds_policy_webhook_requests_total{{result="{result}"}} 0.0' not in metrics


async def test_enforcement_refuses_what_breaks(shop: Shop) -> None:
    await shop.set_up(enforce=True)
    # The control plane is down: what a policy breaks is unknown.
    assert 'failed calling webhook "policies.xds.io"' in await shop.refusal(policy("PERMISSIVE"))
    async with shop.serving("--enforce-plan"):
        assert "created" in (await shop.apply(policy("PERMISSIVE")))[0]
        error = await shop.refusal(policy())
        assert "(Forbidden)" in error
        assert BREAKS in error
        assert 'set the annotation sidecar.xds/enforce-plan: "false" to apply it anyway' in error
        output, warnings = await shop.apply(policy(annotations='{sidecar.xds/enforce-plan: "false"}'))
        assert "configured" in output
        assert f"Warning: {BREAKS}" in warnings
        assert "deleted" in await shop.cluster.kubectl("delete", "peerauthentication", "default", "-n", SHOP)
        assert "deleted" in await shop.cluster.kubectl("delete", "namespace", SHOP, "--wait=false")
