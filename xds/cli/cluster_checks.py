"""The checks of `xds check` that ask the API server."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from binascii import Error as DecodeError
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

from xds.cli.findings import Check, CheckFailedError, CheckSkippedError
from xds.mesh.identity.ca import CLOCK_SKEW
from xds.mesh.identity.rotation import Authorities
from xds.mesh.inject.choice import PROXY
from xds.mesh.inject.containers import PROXY_IMAGE, has_pod_certificate
from xds.mesh.kube import crds, pod_certificates, root_publisher, webhook
from xds.mesh.kube.access import (
    SERVICE_ACCOUNT,
    Right,
    control_plane_rights,
    installation_rights,
    missing_rights,
)
from xds.mesh.kube.api import Json, KubeApi
from xds.mesh.kube.ca_secret import SECRET, AuthorityError, CaSecrets
from xds.mesh.kube.crds import CrdStatus
from xds.mesh.kube.lease import LEASE_NAME
from xds.mesh.kube.replica_leases import ANNOTATION, LABEL, PLAN, PREFIX
from xds.mesh.kube.rollout_codec import CodecError, decode_plan, decode_report
from xds.mesh.kube.webhook import Configuration
from xds.mesh.model.names import join_names, natural_key
from xds.mesh.rollout.observation import Report

MIN_VERSION = (1, 30)
"""Oldest supported version of Kubernetes."""
AGREEMENT_TIMEOUT = 3.0
"""Seconds to wait until all replicas serve the same generation: a rollout may be in progress."""
POLL_INTERVAL = 0.5
MAX_NAMES = 3
"""Maximum number of names that a line lists."""

_LOGS = "read the logs of the control plane: kubectl -n {} logs deployment/xds"

_NO_SIDECARS = "no running pod has an injected sidecar"
_WITHOUT = {
    webhook.INJECTION: "only xds inject adds sidecars",
    webhook.POLICIES: "kubectl apply does not print what a policy breaks",
}
"""What does not work without a configuration of webhooks."""
_UNAVAILABLE = {
    webhook.INJECTION: "no pod with a sidecar can be created",
    webhook.POLICIES: "policies are not checked, and with --enforce-plan they cannot be changed",
}
"""What does not work while no webhook of a configuration responds."""


class ClusterChecks:
    """Checks of a cluster, and of the control plane in a namespace."""

    def __init__(self, api: KubeApi, namespace: str, now: datetime | None = None) -> None:
        """Create the checks; `now` is the local time, by default that of the clock."""
        self._api = api
        self._namespace = namespace
        self._now = now
        self._server_time = now or datetime.now(UTC)
        """Time of the API server's clock, once the check of the clock has read it."""
        self._pods: list[Json] | None = None
        self._authorities: Authorities | None = None
        """CA of the mesh, once the check of the CA has read it."""

    def before_installation(self) -> Iterator[Check]:
        """Yield the checks of a cluster that has no control plane yet."""
        yield from self._of_the_api_server()
        yield Check("permissions to install", self._caller_permissions)
        for definition in crds.definitions():
            name = definition["metadata"]["name"]
            yield Check(f"kind {name}", partial(self._kind, definition, may_be_missing=True))

    def of_installation(self) -> Iterator[Check]:
        """Yield the checks of an installed control plane."""
        yield from self._of_the_api_server()
        for definition in crds.definitions():
            name = definition["metadata"]["name"]
            yield Check(f"kind {name}", partial(self._kind, definition))
        yield Check("control plane permissions", self._control_plane_permissions)
        yield Check("control plane pods", self._deployment)
        yield Check("CA certificate", self._authority)
        yield Check("root certificates in namespaces", self._published_roots)
        for prefix, configuration in (("", webhook.INJECTION), ("policy ", webhook.POLICIES)):
            yield Check(f"{prefix}webhook configuration", partial(self._webhook, configuration))
            yield Check(f"{prefix}webhook CA bundle", partial(self._ca_bundle, configuration))
        yield Check("replicas agree", self._replicas)
        yield Check("sidecar versions", self._sidecar_images)
        yield Check("sidecar certificates", self._pod_certificates)

    def _of_the_api_server(self) -> Iterator[Check]:
        yield Check("API server", self._reachable)
        yield Check("Kubernetes version", self._version)
        yield Check("clock", self._clock)

    # --- the API server ---

    async def _reachable(self) -> str:
        await self._api.get("/version")
        return f"{self._api.server} answers"

    async def _version(self) -> str:
        version = await self._api.get("/version")
        # Some providers add a suffix, as in `30+`.
        numbers = [re.match(r"\d+", str(version.get(part, ""))) for part in ("major", "minor")]
        text = str(version.get("gitVersion", "unknown"))
        minimum = ".".join(map(str, MIN_VERSION))
        if not all(numbers):
            raise CheckSkippedError(f"the API server sent no version: {text}", "")
        if tuple(int(number[0]) for number in numbers if number) < MIN_VERSION:
            raise CheckFailedError(
                f"{text} is older than {minimum}", f"upgrade Kubernetes to {minimum} or newer"
            )
        return text

    async def _clock(self) -> str:
        started = self._now or datetime.now(UTC)
        self._server_time = await self._api.server_time()
        ended = self._now or datetime.now(UTC)
        # The header is in whole seconds.
        is_ahead = started - self._server_time - timedelta(seconds=1)
        is_behind = self._server_time - ended
        skew = max(is_ahead, is_behind, timedelta(0))
        if skew > CLOCK_SKEW:
            direction = "ahead of" if is_ahead > is_behind else "behind"
            raise CheckFailedError(
                f"the clock of this machine is {skew.total_seconds():.0f} s {direction} the API server's",
                "synchronize the clocks with NTP: certificates are rejected by peers whose clock is more "
                f"than {CLOCK_SKEW.total_seconds() / 60:.0f} minutes behind",
            )
        return f"differs by {skew.total_seconds():.0f} s from the API server's"

    # --- kinds and permissions ---

    async def _kind(self, definition: Json, *, may_be_missing: bool = False) -> str:
        status = await crds.examine(self._api, definition)
        if status.problem == crds.MISSING and may_be_missing:
            return "does not exist; xds install creates it"
        if status.problem:
            raise CheckFailedError(status.problem, _kind_hint(status))
        return f"serves {', '.join(status.versions)}; installed by {status.owner or 'an unknown tool'}"

    async def _caller_permissions(self) -> str:
        rights = installation_rights()
        _require(await missing_rights(self._api, rights), "you lack", "install as a cluster administrator")
        return f"you have all {len(rights)}"

    async def _control_plane_permissions(self) -> str:
        account = f"{self._namespace}/{SERVICE_ACCOUNT}"
        rights = control_plane_rights(self._namespace)
        missing = await missing_rights(self._api, rights, account)
        _require(missing, f"ServiceAccount {account} lacks", "run xds install to restore its roles")
        return f"ServiceAccount {account} has all {len(rights)}"

    # --- the control plane ---

    async def _read_deployment(self) -> Json:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/xds"
        deployment = await self._api.find(path)
        if deployment is None:
            raise CheckFailedError(
                f"Deployment {self._namespace}/xds does not exist",
                "run xds install, or set the control plane's namespace with --namespace",
            )
        return deployment

    async def _deployment(self) -> str:
        deployment = await self._read_deployment()
        desired = int(deployment["spec"].get("replicas", 1))
        status = deployment.get("status") or {}
        ready = min(int(status.get("readyReplicas") or 0), int(status.get("updatedReplicas") or 0))
        is_stale = int(status.get("observedGeneration") or 0) < deployment["metadata"]["generation"]
        if ready < desired or not desired or is_stale:
            raise CheckFailedError(
                f"{ready} of {desired} replicas of Deployment {self._namespace}/xds are ready and up to date",
                _LOGS.format(self._namespace),
            )
        return f"{ready} of {desired} are ready"

    async def _authority(self) -> str:
        now = self._server_time
        restart = "xds serve creates the CA when it starts: " + _LOGS.format(self._namespace)
        try:
            stored = await CaSecrets(self._api, self._namespace).read(now)
        except AuthorityError as error:
            hint = f"inspect its keys: kubectl -n {self._namespace} describe secret {SECRET}"
            raise CheckFailedError(str(error), hint) from error
        if stored is None:
            raise CheckFailedError(f"Secret {self._namespace}/{SECRET} does not exist", restart)
        self._authorities = stored.authorities
        expires = stored.authorities.authority.expires
        if stored.authorities.authority.expires_soon(now):
            raise CheckFailedError(
                f"expires on {expires:%Y-%m-%d %H:%M} UTC",
                "run xds rotate-root, or replace your own CA in the Secret cacerts",
            )
        return f"valid until {expires:%Y-%m-%d}; rotation: {stored.authorities.stage}"

    def _trusted(self) -> bytes:
        if self._authorities is None:
            raise CheckSkippedError("the CA could not be read, so there is nothing to compare with", "")
        return self._authorities.trusted_pem.strip()

    async def _published_roots(self) -> str:
        roots = self._trusted().decode()
        namespaces = await self._api.list_all("/api/v1/namespaces")
        maps = await self._api.list_all(
            "/api/v1/configmaps", fieldSelector=f"metadata.name={root_publisher.NAME}"
        )
        published = {
            item["metadata"]["namespace"]: (item.get("data") or {}).get(root_publisher.KEY, "").strip()
            for item in maps
        }
        active = [
            item["metadata"]["name"] for item in namespaces if not item["metadata"].get("deletionTimestamp")
        ]
        outdated = [name for name in active if published.get(name) != roots]
        if outdated:
            raise CheckFailedError(
                f"ConfigMap {root_publisher.NAME} is missing or outdated in {list_names(outdated)}",
                "sidecars there cannot verify the control plane; the leader writes it: "
                + _LOGS.format(self._namespace),
            )
        return f"ConfigMap {root_publisher.NAME} is up to date in {len(active)} namespaces"

    # --- the webhook ---

    async def _read_webhooks(self, configuration: Configuration) -> list[Json]:
        installed = await self._api.find(configuration.path)
        if installed is None:
            raise CheckSkippedError(
                f"{configuration} does not exist: {_WITHOUT[configuration]}", "run xds install to create it"
            )
        return list(installed.get("webhooks") or ())

    async def _webhook(self, configuration: Configuration) -> str:
        webhooks = await self._read_webhooks(configuration)
        services = {
            (service["namespace"], service["name"])
            for item in webhooks
            if (service := item["clientConfig"].get("service"))
        }
        if not services:
            raise CheckFailedError(f"{configuration} calls no Service", "run xds install")
        for namespace, name in sorted(services):
            slices = await self._api.list_all(
                f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
                labelSelector=f"kubernetes.io/service-name={name}",
            )
            endpoints = [endpoint for item in slices for endpoint in item.get("endpoints") or ()]
            if not any((endpoint.get("conditions") or {}).get("ready", True) for endpoint in endpoints):
                raise CheckFailedError(
                    f"Service {namespace}/{name} has no ready endpoint: {_UNAVAILABLE[configuration]}",
                    "check that the control plane's pods are ready: " + _LOGS.format(self._namespace),
                )
        return f"{_count(webhooks)} call " + list_names([f"{ns}/{name}" for ns, name in sorted(services)])

    async def _ca_bundle(self, configuration: Configuration) -> str:
        webhooks = await self._read_webhooks(configuration)
        trusted = self._trusted()
        outdated = [item["name"] for item in webhooks if _bundle(item) != trusted]
        if outdated:
            raise CheckFailedError(
                f"the caBundle of {list_names(outdated)} is not the mesh's root",
                "the leader writes it: " + _LOGS.format(self._namespace),
            )
        return f"{_count(webhooks)} trust the mesh's root"

    # --- replicas ---

    async def _replicas(self) -> str:
        deadline = asyncio.get_running_loop().time() + AGREEMENT_TIMEOUT
        while True:
            reports, members = await self._read_reports()
            generations = {report.generation for report in reports.values()}
            if len(generations) <= 1 or asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(POLL_INTERVAL)
        hint = _LOGS.format(self._namespace)
        if unreadable := [name for name, report in reports.items() if report == Report().without_progress()]:
            raise CheckFailedError(
                f"the report of {list_names(unreadable)} cannot be read: it is of another version",
                "wait until all replicas run one version",
            )
        if alone := [name for name, report in reports.items() if report.is_alone]:
            raise CheckFailedError(
                f"{list_names(alone)} follows its own plan, which it could not store", hint
            )
        if outside := [name for name in reports if name not in members]:
            raise CheckFailedError(f"the plan does not include {list_names(outside)}", hint)
        if len(generations) > 1:
            served = ", ".join(f"{name}: {report.generation}" for name, report in reports.items())
            raise CheckFailedError(f"replicas serve different generations ({served})", hint)
        return f"{len(reports)} serve generation {max(generations)}; {await self._leader()} leads"

    async def _read_reports(self) -> tuple[dict[str, Report], frozenset[str]]:
        """Return the reports of running replicas, and the members of the plan."""
        leases = await self._api.list_all(
            f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases",
            labelSelector=f"{LABEL}=true",
        )
        texts = {
            lease["metadata"]["name"]: (lease["metadata"].get("annotations") or {}).get(ANNOTATION, "")
            for lease in leases
            if lease["metadata"]["name"].startswith(PREFIX)
            if lease["metadata"]["name"] == PLAN or self._is_renewed(lease)
        }
        plan = texts.pop(PLAN, None)
        reports = {name.removeprefix(PREFIX): decode_report(text) for name, text in texts.items()}
        if not reports:
            raise CheckFailedError("no replica renews its Lease", _LOGS.format(self._namespace))
        try:
            members = decode_plan(plan).members if plan is not None else frozenset()
        except CodecError as error:
            raise CheckFailedError(str(error), "wait until all replicas run one version") from error
        return dict(sorted(reports.items(), key=lambda item: natural_key(item[0]))), members

    async def _leader(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases/{LEASE_NAME}"
        lease = await self._api.find(path)
        if lease is None or not lease["spec"].get("holderIdentity") or not self._is_renewed(lease):
            raise CheckFailedError(
                f"no replica leads: Lease {self._namespace}/{LEASE_NAME} is not renewed",
                "without a leader, modes do not change and certificates are not published: "
                + _LOGS.format(self._namespace),
            )
        return str(lease["spec"]["holderIdentity"])

    def _is_renewed(self, lease: Json) -> bool:
        spec = lease.get("spec") or {}
        try:
            renewed = datetime.fromisoformat(spec["renewTime"])
        except (KeyError, ValueError):
            return False
        # The pods' clocks may differ from the API server's.
        lifetime = timedelta(seconds=int(spec.get("leaseDurationSeconds") or 0)) + CLOCK_SKEW
        return self._server_time < renewed + lifetime

    # --- sidecars ---

    async def _pod_certificates(self) -> str:
        sidecars = [pod for pod in await self._running_pods() if _sidecar_image(pod)]
        if not sidecars:
            raise CheckSkippedError(_NO_SIDECARS, "")
        kept = sum(has_pod_certificate(pod) for pod in sidecars)
        if kept == len(sidecars):
            return f"kubelets keep the certificates of all {kept} sidecars"
        reason = await pod_certificates.why_unsupported(self._api)
        why = reason or "the others are older, or excluded by settings"
        return f"kubelets keep the certificates of {kept} of {len(sidecars)} sidecars: {why}"

    async def _running_pods(self) -> list[Json]:
        """Return the running pods, which are read once."""
        if self._pods is None:
            self._pods = await self._api.list_all("/api/v1/pods", fieldSelector="status.phase=Running")
        return self._pods

    async def _sidecar_images(self) -> str:
        [container, *_] = (await self._read_deployment())["spec"]["template"]["spec"]["containers"]
        prefix = "--sidecar-image="
        images = [a.removeprefix(prefix) for a in container.get("args") or () if a.startswith(prefix)]
        if not images:
            raise CheckSkippedError("the control plane does not set --sidecar-image", "")
        sidecars = {
            f"{pod['metadata']['name']}.{pod['metadata']['namespace']}": image
            for pod in await self._running_pods()
            if PROXY_IMAGE not in (pod["metadata"].get("annotations") or {})
            if (image := _sidecar_image(pod))
        }
        if not sidecars:
            raise CheckSkippedError(_NO_SIDECARS, "")
        outdated = [name for name, image in sidecars.items() if image != images[-1]]
        if outdated:
            raise CheckFailedError(
                f"{len(outdated)} of {len(sidecars)} do not run {images[-1]}: {list_names(outdated)}",
                "restart the workloads: kubectl rollout restart",
            )
        return f"{len(sidecars)} run {images[-1]}"


def _kind_hint(status: CrdStatus) -> str:
    if status.problem == crds.MISSING:
        return "run xds install-crds"
    if status.owner == "xds":
        # install-crds leaves existing definitions untouched.
        apply = "kubectl apply --server-side --force-conflicts -f -"
        return f"apply the current definitions: xds install --only crds -o yaml | {apply}"
    return f"upgrade the definition, which {status.owner or 'an unknown tool'} installed"


def _require(missing: list[Right], subject: str, hint: str) -> None:
    if missing:
        raise CheckFailedError(f"{subject} {list_names(map(str, missing))}", hint)


def _count(webhooks: list[Json]) -> str:
    return f"{len(webhooks)} webhook{'s' * (len(webhooks) != 1)}"


def _bundle(item: Json) -> bytes:
    try:
        return b64decode(item["clientConfig"].get("caBundle") or "").strip()
    except DecodeError:
        return b""


def _sidecar_image(pod: Json) -> str:
    spec = pod["spec"]
    containers = (*spec["containers"], *(spec.get("initContainers") or ()))
    return next((str(item["image"]) for item in containers if item["name"] == PROXY), "")


def list_names(names: Iterable[str]) -> str:
    """Return the first names in natural order, and the number of the rest."""
    return join_names(sorted(names, key=natural_key), MAX_NAMES)
