"""The implementation of `xds serve --kubernetes`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
from prometheus_client.registry import Collector

from xds.cli import cluster
from xds.cli.options import Address, fail
from xds.cli.runtime import BackgroundTask, CannotListenError, Components, ListenAddresses, PeerLinks, run
from xds.cli.tls_options import TlsListeners
from xds.cli.webhook_options import WebhookOptions
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.effects import EffectWatcher
from xds.mesh.controlplane.metrics.admission import AdmissionMetrics
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.server_tls import service_names
from xds.mesh.inject import InjectionSettings
from xds.mesh.inject.policy_webhook import PolicyReviewer
from xds.mesh.inject.webhook import WebhookServer
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ca_secret import AuthorityError
from xds.mesh.kube.conditions import ConditionPublisher
from xds.mesh.kube.replica import Replica
from xds.mesh.kube.tokens import TokenReviewer, own_account
from xds.mesh.kube.webhook import INJECTION, POLICIES, CaBundlePublisher
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.kubernetes import CONFIG_MAP, Kubernetes

log = structlog.get_logger("xds.cli.serve")

XDS_PORT = 15012
"""Port of the control plane's Service that injected sidecars connect to."""

TRUST_POLL_INTERVAL = 5.0
"""Seconds between checks for a new CA. The old CA stays trusted for hours after a rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Options of a control plane for a cluster."""

    kubeconfig: Path | None
    """Path to a kubeconfig file; None for the default of --kubeconfig."""
    context: str | None
    """Kubeconfig context; None for the current context."""
    namespace: str | None
    """Namespace of the control plane; None for the default of --namespace."""
    mesh_config_map: str | None
    """Name of the ConfigMap with the mesh's settings; None for the default."""
    assignments: list[str]
    """Settings that override the ConfigMap."""
    tls: TlsListeners
    """Configuration of the TLS listeners."""
    webhook: WebhookOptions
    """Options of the webhooks."""
    webhook_address: Address | None
    """Address of the webhooks; None if they are disabled."""
    rollout_timeout: float | None
    """Timeout of a gated rollout; None for immediate changes."""
    external: ExternalIssuer | None
    """Issuer of sidecars' certificates instead of the CA; None without one."""


async def run_in_cluster(
    options: ClusterOptions,
    addresses: ListenAddresses,
    *,
    exposed: list[str],
    max_connection_age: float | None,
) -> int:
    """Run until a signal arrives, as one of several replicas; return the exit status."""
    async with cluster.connect(options.kubeconfig, options.context) as api:
        source = Kubernetes(
            api,
            assignments=options.assignments,
            namespace=options.namespace or "",
            config_map=options.mesh_config_map or CONFIG_MAP,
        )
        log.info("kubernetes source configured", server=api.server, namespace=source.namespace)
        build = partial(_build_components, options, api, source, exposed)
        return await run(source, build, addresses, max_connection_age=max_connection_age)


async def _build_components(
    options: ClusterOptions, api: KubeApi, source: Kubernetes, exposed: list[str], config: MeshConfig
) -> Components:
    """Create the components of a control plane for a cluster."""
    namespace = source.namespace
    try:
        replica = await Replica.join(api, namespace, config.trust_domain)
    except AuthorityError as error:
        fail(str(error), 1)
    if exposed:
        log.warning("plaintext xDS is reachable from other machines", address=exposed)
    authorities = replica.authorities
    controller = Controller(
        authorities.authority,
        extra_roots=authorities.extra_roots,
        serve_keys=False,
        rollout_timeout=options.rollout_timeout,
        external=options.external,
    )
    replica.attach(controller)
    effects = EffectWatcher(lambda: controller.mesh, controller.ready)
    conditions = ConditionPublisher(
        api,
        lambda: source.problems,
        lambda: controller.mesh,
        lambda: effects.by_object,
        leads=replica.leads,
    )
    tasks: list[BackgroundTask] = [*replica.parts, conditions.run]
    metrics: list[Collector] = []
    if options.webhook_address:
        webhook = _Webhook(
            options.webhook,
            options.webhook_address,
            controller=controller,
            api=api,
            namespace=namespace,
            leads=replica.leads,
        )
        tasks += webhook.tasks
        metrics += webhook.metrics
    identity = await _own_identity(api)
    listeners = options.tls.open(
        controller,
        lambda: replica.authorities,
        token_verifier=TokenReviewer(api),
        service_names=service_names(namespace),
        own_identity=identity,
    )
    access = replica.peers(identity, lambda: controller.mesh.config.trust_domain)
    peers = None
    if access and listeners:
        host = options.tls.advertised_host
        peers = PeerLinks(
            access,
            lambda port: access.publish(str(Address(host, port)) if host else ""),
            listeners.admit_replicas,
        )
    return Components(controller, effects, tasks, listeners, metrics, peers)


async def _own_identity(api: KubeApi) -> IdentityPattern | None:
    """Return the control plane's own identity, if the API server reports a service account."""
    try:
        namespace, account = await own_account(api)
    except KubeError as error:
        log.warning(
            "own service account is unknown",
            problem=str(error),
            effect="replicas do not share observed traffic; admin services deny all clients over TLS unless "
            "--admin-identity is set",
        )
        return None
    return IdentityPattern(namespace, account) if account else None


class _Webhook:
    """The webhooks that inject sidecars and review policies."""

    def __init__(
        self,
        options: WebhookOptions,
        address: Address,
        *,
        controller: Controller,
        api: KubeApi,
        namespace: str,
        leads: Callable[[], bool],
    ) -> None:
        """Create the webhooks.

        Args:
            options: the options of the webhooks.
            address: the address to listen on.
            controller: the source of the mesh's settings and the CA.
            api: the API server.
            namespace: the namespace of the control plane.
            leads: returns whether this replica is the leader. Only the leader writes objects.
        """
        names = service_names(namespace)[:2]
        settings = InjectionSettings(
            image=options.sidecar_image,
            xds_address=options.sidecar_xds_address or f"{names[0]}:{XDS_PORT}",
        )
        results = Counter[str]()
        policies = PolicyReviewer(lambda: controller.mesh, enforce=options.enforce_plan)
        self._controller = controller
        self._server = WebhookServer(
            lambda: settings.with_mesh_config(controller.mesh.config),
            lambda: controller.certificates.trust[0].issue_server(names, datetime.now(UTC)),
            *address,
            policies=policies,
            answers=results,
        )
        self._bundles = [
            CaBundlePublisher(api, lambda: controller.certificates.trust[1], leads=leads, configuration=each)
            for each in (INJECTION, POLICIES)
        ]
        self.metrics: list[Collector] = [AdmissionMetrics(results, policies.results)]
        """Metrics of the webhooks."""
        bundle_tasks = [bundle.run for bundle in self._bundles]
        self.tasks: list[BackgroundTask] = [self._listen, *bundle_tasks, self._follow_trust]
        """Tasks that run the webhooks."""

    async def _listen(self) -> None:
        await self._controller.ready.wait()  # The mesh's settings are unknown until then.
        try:
            await self._server.run()
        except OSError as error:
            raise CannotListenError(f"{error.strerror} (choose another with --webhook-address)") from error

    async def _follow_trust(self) -> None:
        """Renew the server certificate and the CA bundles after a change of the CA."""
        trust = self._controller.certificates.trust
        while True:
            await asyncio.sleep(TRUST_POLL_INTERVAL)
            if self._controller.certificates.trust != trust:
                trust = self._controller.certificates.trust
                self._server.trigger_renewal()
                for bundle in self._bundles:
                    bundle.trigger()
