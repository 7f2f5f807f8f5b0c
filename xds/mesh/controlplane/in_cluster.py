"""The parts of a control plane in a Kubernetes cluster, as one of several replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from prometheus_client.registry import Collector

from xds.mesh.controlplane.app import listening
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.ineffective_objects import IneffectiveObjects
from xds.mesh.controlplane.listeners import secure_listeners
from xds.mesh.controlplane.metrics.admission import AdmissionMetrics
from xds.mesh.controlplane.parts import BackgroundTask, Components, PeerLinks, Settings, WebhookSettings
from xds.mesh.controlplane.pod_certificates import PodCertificates
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.server_tls import service_names
from xds.mesh.inject import InjectionSettings
from xds.mesh.inject.policy_webhook import PolicyReviewer
from xds.mesh.inject.webhook import WebhookServer
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.conditions import ConditionPublisher
from xds.mesh.kube.replica import Replica
from xds.mesh.kube.tokens import TokenReviewer, own_account
from xds.mesh.kube.webhook import INJECTION, POLICIES, CaBundlePublisher
from xds.mesh.model.names import host_port
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.kubernetes import Kubernetes

log = structlog.get_logger(__name__)

XDS_PORT = 15012
"""Port of the control plane's Service that injected sidecars connect to."""

TRUST_POLL_INTERVAL = 5.0
"""Seconds between checks for a new CA. The old CA stays trusted for hours after a rotation."""


async def build_components(
    settings: Settings,
    api: KubeApi,
    source: Kubernetes,
    config: MeshConfig,
) -> Components:
    """Create the components. With the first three arguments bound, this is a `BuildComponents`.

    Args:
        settings: the listeners and options.
        api: the API server.
        source: the source of objects, whose namespace is that of the control plane.
        config: the settings of the mesh.

    Raises:
        AuthorityError: the CA in the cluster is unusable.
        IdentityError: the CA has expired since it was read.
    """
    namespace = source.namespace
    replica = await Replica.join(api, namespace, config.trust_domain)
    authorities = replica.authorities
    controller = Controller(
        authorities.authority,
        extra_roots=authorities.extra_roots,
        serve_keys=False,
        rollout_timeout=settings.rollout_timeout,
        external=settings.external,
    )
    replica.attach(controller)
    ineffective = IneffectiveObjects(lambda: controller.mesh, controller.ready)
    conditions = ConditionPublisher(
        api,
        lambda: source.problems,
        lambda: controller.mesh,
        lambda: ineffective.by_object,
        leads=replica.leads,
    )
    pod_certificates = PodCertificates(api, controller, replica.leads)
    tasks: list[BackgroundTask] = [*replica.parts, conditions.run, pod_certificates.run]
    metrics: list[Collector] = []
    if settings.webhook:
        webhooks = _Webhooks(
            settings.webhook, controller, api, namespace, replica.leads, pod_certificates=pod_certificates
        )
        tasks += webhooks.tasks
        metrics += webhooks.metrics
    identity = await _own_identity(api)
    listeners = secure_listeners(
        settings,
        controller,
        lambda: replica.authorities,
        token_verifier=TokenReviewer(api),
        service_names=service_names(namespace),
        own_identity=identity,
    )
    access = replica.peers(identity, lambda: controller.mesh.config.trust_domain)
    peers = None
    if access and listeners:
        host = settings.advertised_host
        peers = PeerLinks(
            access,
            lambda port: access.publish(host_port(host, port) if host else ""),
            listeners.admit_replicas,
        )
    return Components(controller, ineffective, tasks, listeners, metrics, peers)


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


class _Webhooks:
    """The webhooks that inject sidecars and review policies. Only the leader writes their CA bundles."""

    def __init__(
        self,
        settings: WebhookSettings,
        controller: Controller,
        api: KubeApi,
        namespace: str,
        leads: Callable[[], bool],
        *,
        pod_certificates: PodCertificates,
    ) -> None:
        names = service_names(namespace)[:2]
        injection = InjectionSettings(
            image=settings.image,
            pull_policy=settings.pull_policy,
            xds_address=settings.xds_address or host_port(names[0], XDS_PORT),
        )
        results = Counter[str]()
        policies = PolicyReviewer(lambda: controller.mesh, enforce=settings.enforce_plan)
        self._controller = controller
        self._server = WebhookServer(
            lambda: replace(
                injection.with_mesh_config(controller.mesh.config),
                pod_certificates=not pod_certificates.problem,
            ),
            lambda: controller.certificates.trust[0].issue_server(names, datetime.now(UTC)),
            *settings.address,
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
        with listening("webhook"):
            await self._server.run()

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
