"""`xds serve`."""

from __future__ import annotations

import asyncio
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import structlog
import typer

from xds.cli import garbage, logs
from xds.cli.identity_options import IdentityOptions
from xds.cli.listen_options import ListenOptions, exposed_options
from xds.cli.manifests import load_settings
from xds.cli.option_groups import grouped_options
from xds.cli.options import (
    Assignments,
    Context,
    Kubeconfig,
    MeshConfigFile,
    MeshConfigMap,
    fail,
)
from xds.cli.webhook_options import WebhookOptions
from xds.mesh.controlplane import standalone
from xds.mesh.controlplane.app import CannotListenError, ControlPlane
from xds.mesh.controlplane.parts import Components, Settings
from xds.mesh.identity.keys import IdentityError
from xds.mesh.identity.state_dir import StateError
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

EXAMPLES = """
xds serve --manifests mesh/
xds serve --manifests mesh/ --state-dir state/ --xds-tls-address 0.0.0.0:15012
xds serve --kubernetes --webhook-address 0.0.0.0:15017
"""

log = structlog.get_logger("xds.cli.serve")

CANNOT_ISSUE = "cannot issue the server certificate: {}"
"""Error if the CA has expired since it was read."""

RolloutMode = Literal["gated", "immediate"]
"""How a change of mTLS mode is rolled out."""

Switch = Literal["true", "false"]
"""Whether a feature is enabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSourceOptions:
    """Options for the objects and settings of the mesh."""

    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--manifests",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of Kubernetes and Istio objects (*.yaml, *.yml, *.json), as for kubectl apply. "
            "Can be repeated.",
        ),
    ] = None
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="Read objects from a Kubernetes cluster (see --kubeconfig) instead of --manifests.",
        ),
    ] = False
    kubeconfig: Kubeconfig = None
    context: Context = None
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            metavar="NAME",
            help="Namespace of the control plane. Requires --kubernetes. Default: the pod's namespace in a "
            "cluster, else istio-system.",
        ),
    ] = None
    mesh_config_map: MeshConfigMap = None
    mesh_config: MeshConfigFile = None
    assignments: Assignments = None

    def validate(self) -> None:
        """Exit with status 2 if the options are invalid or contradict each other."""
        if self.kubernetes == bool(self.manifests):
            fail("use either --manifests DIR or --kubernetes" + (", not both" if self.kubernetes else ""))
        if self.kubernetes and self.mesh_config:
            fail("--mesh-config requires --manifests; use --mesh-config-map with --kubernetes")
        cluster_options = {
            "--kubeconfig": self.kubeconfig,
            "--context": self.context,
            "--namespace": self.namespace,
            "--mesh-config-map": self.mesh_config_map,
        }
        for option, value in cluster_options.items():
            if value and not self.kubernetes:
                fail(f"{option} requires --kubernetes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOptions:
    """Options for changes of mTLS mode."""

    rollout: Annotated[
        RolloutMode,
        typer.Option(
            "--rollout",
            help="How a change of mTLS mode is rolled out. gated: servers accept both modes until all "
            "clients have switched; no request fails. immediate: servers and clients switch at once.",
        ),
    ] = "gated"
    rollout_timeout: Annotated[
        float,
        typer.Option(
            "--rollout-timeout",
            metavar="SECONDS",
            min=0,
            help="Time to wait for a proxy to ACK before continuing without it, in seconds.",
        ),
    ] = 30

    @property
    def timeout(self) -> float | None:
        """The timeout of a gated rollout; None for immediate changes."""
        return self.rollout_timeout if self.rollout == "gated" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveOptions:
    """Options for observed traffic and traces."""

    observe: Annotated[
        Switch,
        typer.Option(
            "--observe",
            help="Have sidecars report their requests, plaintext connections and refused connections, for "
            "xds observe. false: sidecars' listeners have no access logs, and no reports are read. A change "
            "replaces inbound listeners: open inbound connections are drained once.",
        ),
    ] = "true"
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            "--otlp-endpoint",
            metavar="URL",
            help="OpenTelemetry collector that receives a trace of each change over HTTP, such as "
            "http://collector:4318. Requires the extra xds-mesh[otel].",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of `xds serve`."""

    source: ServeSourceOptions
    """The objects and settings of the mesh."""
    listen: ListenOptions
    """Listeners and connections."""
    rollout: RolloutOptions
    """Changes of mTLS mode."""
    observe: ObserveOptions
    """Observed traffic and traces."""
    identity: IdentityOptions
    """The CA and certificates."""
    webhook: WebhookOptions
    """The injection webhook."""


@grouped_options
def serve(options: ServeOptions) -> None:
    """Run the control plane for a folder of manifests or a Kubernetes cluster, and apply changes live.

    An invalid object is logged with its file and line, or its name. Its last valid version stays active; a
    policy without a valid version is STRICT until it is fixed. While the API server cannot be reached, the
    current configuration stays active.

    The control plane starts to serve once it has listed every kind, or read every document of the manifests.
    Until then, /ready returns what is missing.
    """
    source, observe = options.source, options.observe
    source.validate()
    state_dir = options.identity.state_dir
    settings = options.listen.parse(
        kubernetes=source.kubernetes, can_verify_tokens=source.kubernetes or state_dir is not None
    )
    webhook = options.webhook.parse(kubernetes=source.kubernetes)
    if source.kubernetes and state_dir:
        fail("--state-dir requires --manifests; with --kubernetes the CA is in a Secret (xds-ca-secret)")
    sds = options.identity.sds
    policy = options.identity.compliance_policy
    assignments = [
        *(source.assignments or ()),
        *([f"meshConfig.sdsUdsPath={sds}"] if sds else ()),
        *([f"values.xds.compliancePolicy={policy}"] if policy else ()),
        *(["values.xds.observe=false"] if observe.observe == "false" else ()),
    ]
    # Fail if a --set is invalid. An invalid --mesh-config file does not fail: it can be fixed while running.
    load_settings(None, assignments)
    settings = replace(
        settings,
        rollout_timeout=options.rollout.timeout,
        external=options.identity.external_issuer(),
        webhook=webhook,
        collector=_check_endpoint(observe.otlp_endpoint) if observe.otlp_endpoint else "",
    )
    _raise_file_limit()
    logs.configure()
    garbage.defer()
    if exposed := exposed_options(settings):
        log.warning("plaintext xDS is reachable from other machines", address=exposed)
    run = _run_in_cluster if source.kubernetes else _run_for_manifests
    raise typer.Exit(asyncio.run(run(options, settings, assignments)))


async def _run_for_manifests(options: ServeOptions, settings: Settings, assignments: list[str]) -> int:
    """Run for folders of manifests."""

    async def build(config: MeshConfig) -> Components:
        try:
            return await standalone.build_components(settings, options.identity.state_dir, config)
        except StateError as error:
            fail(f"--state-dir: {error}", 1)
        except IdentityError as error:
            fail(CANNOT_ISSUE.format(error), 1)

    source = Folder(options.source.manifests or (), SettingsLoader(options.source.mesh_config, assignments))
    return await _run(ControlPlane(source, build, settings))


async def _run_in_cluster(options: ServeOptions, settings: Settings, assignments: list[str]) -> int:
    """Run as one of several replicas in a cluster."""
    # The Kubernetes client takes long to import.
    from xds.cli import cluster  # noqa: PLC0415
    from xds.mesh.controlplane import in_cluster  # noqa: PLC0415
    from xds.mesh.kube.ca_secret import AuthorityError  # noqa: PLC0415
    from xds.mesh.sources.kubernetes import CONFIG_MAP, Kubernetes  # noqa: PLC0415

    async def build(config: MeshConfig) -> Components:
        try:
            return await in_cluster.build_components(settings, api, source, config)
        except AuthorityError as error:
            fail(str(error), 1)
        except IdentityError as error:
            fail(CANNOT_ISSUE.format(error), 1)

    async with cluster.connect(options.source.kubeconfig, options.source.context) as api:
        source = Kubernetes(
            api,
            assignments=assignments,
            namespace=options.source.namespace or "",
            config_map=options.source.mesh_config_map or CONFIG_MAP,
        )
        log.info("kubernetes source configured", server=api.server, namespace=source.namespace)
        return await _run(ControlPlane(source, build, settings))


async def _run(control_plane: ControlPlane) -> int:
    """Run until SIGINT or SIGTERM arrives; return the exit status."""
    running = asyncio.create_task(control_plane.run())
    collecting = asyncio.create_task(_collect_garbage(control_plane.ready))

    def stop() -> None:
        if not running.cancelling():  # A second signal must not interrupt what the first one ends.
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        log.info("control plane stopped")
        return 0
    except CannotListenError as error:
        options = " or ".join(f"--{name.replace('_', '-')}-address" for name in error.listeners)
        log.error("cannot listen", problem=f"{error} (choose another with {options})")  # noqa: TRY400 - not a bug
    except typer.Exit:
        raise
    except Exception:
        log.exception("control plane failed")
    finally:
        collecting.cancel()
    return 1


async def _collect_garbage(ready: asyncio.Event) -> None:
    await ready.wait()
    garbage.freeze()
    await garbage.collect_after_growth()


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit: the usual 1,024 also limits connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS does not accept its hard limit as the soft limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_endpoint(endpoint: str) -> str:
    """Return the URL of a collector. Exit if it is invalid or if the packages for traces are missing."""
    if not endpoint.startswith(("http://", "https://")):
        fail(f"--otlp-endpoint {endpoint}: is not a URL such as http://collector:4318")
    packages = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    try:
        is_installed = all(find_spec(package) for package in packages)
    except ModuleNotFoundError:  # A parent is missing.
        is_installed = False
    if not is_installed:
        fail("--otlp-endpoint requires the packages of OpenTelemetry: pip install 'xds-mesh[otel]'")
    return endpoint.rstrip("/")
