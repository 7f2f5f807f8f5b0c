"""`xds serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from xds.cli import garbage, logs
from xds.cli.identity_options import IdentityOptions
from xds.cli.manifests import load_settings
from xds.cli.option_groups import grouped_options
from xds.cli.options import (
    Address,
    Assignments,
    Context,
    Kubeconfig,
    MeshConfigFile,
    MeshConfigMap,
    fail,
    file_option,
    parse_address,
)
from xds.cli.runtime import Components, ListenAddresses, run
from xds.cli.tls_options import TlsListeners, TlsOptions
from xds.cli.tracing import check_endpoint
from xds.cli.webhook_options import WebhookOptions
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.effects import EffectWatcher
from xds.mesh.controlplane.page.access import check_token
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.auth import own_token_verifier
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.state_dir import StateError, load_or_create_root, load_or_create_token_key
from xds.mesh.model.objects import MeshConfig
from xds.mesh.sources.files import Folder
from xds.mesh.sources.settings import SettingsLoader

EXAMPLES = """
xds serve --manifests mesh/
xds serve --manifests mesh/ --state-dir state/ --xds-tls-address 0.0.0.0:15012
xds serve --kubernetes --webhook-address 0.0.0.0:15017
"""

log = structlog.get_logger("xds.cli.serve")


class Rollout(StrEnum):
    """How a change of mTLS mode is rolled out."""

    GATED = "gated"
    IMMEDIATE = "immediate"


class Switch(StrEnum):
    """Whether a feature is enabled."""

    TRUE = "true"
    FALSE = "false"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
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
class ListenOptions:
    """Options for plaintext listeners and connections."""

    xds_address: Annotated[
        str,
        typer.Option("--xds-address", metavar="HOST:PORT", help="Address of the plaintext xDS listener."),
    ] = "127.0.0.1:15010"
    rest_address: Annotated[
        str | None,
        typer.Option(
            "--rest-address",
            metavar="HOST:PORT",
            help="Address of the plaintext REST xDS listener (POST /v3/discovery:clusters etc.), which "
            "serves no private keys. Default: disabled.",
        ),
    ] = None
    insecure_xds: Annotated[
        bool,
        typer.Option(
            "--insecure-xds",
            help="Allow --xds-address and --rest-address to be reachable from other machines, without "
            "authentication. Plaintext listeners then serve no private keys.",
        ),
    ] = False
    admin_address: Annotated[
        str,
        typer.Option(
            "--admin-address",
            metavar="HOST:PORT",
            help="HTTP address of the page (/), /healthz, /ready and /metrics.",
        ),
    ] = "127.0.0.1:15014"
    admin_token: Annotated[
        Path | None,
        file_option(
            "--admin-token",
            "File with a token that clients need for the page and its API, as a bearer token or as the "
            "password. Default: none; only local clients are admitted, without a token.",
        ),
    ] = None
    max_connection_age: Annotated[
        float,
        typer.Option(
            "--max-connection-age",
            metavar="SECONDS",
            min=0,
            help="Maximum age of a sidecar's connection, in seconds (+/-10%). The sidecar then reconnects, "
            "possibly to another replica. 0 disables the limit.",
        ),
    ] = 1800

    def addresses(self) -> tuple[Address, Address, Address | None]:
        """Return the xDS, admin and REST addresses; exit with status 2 if they are not allowed."""
        xds = parse_address("--xds-address", self.xds_address)
        rest = parse_address("--rest-address", self.rest_address) if self.rest_address else None
        admin = parse_address("--admin-address", self.admin_address)
        if (exposed := _exposed(xds, rest)) and not self.insecure_xds:
            fail(
                f"{exposed[0]} is reachable from other machines, without encryption or authentication: "
                "listen on 127.0.0.1, or add --insecure-xds (plaintext listeners then serve no private keys)"
            )
        return xds, admin, rest

    def read_admin_token(self) -> str | None:
        """Return the token of --admin-token; exit with status 2 if it cannot be used."""
        if self.admin_token is None:
            return None
        try:
            return check_token(self.admin_token.read_text("utf-8"))
        except (OSError, ValueError) as error:
            fail(f"--admin-token {self.admin_token}: {error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOptions:
    """Options for changes of mTLS mode."""

    rollout: Annotated[
        Rollout,
        typer.Option(
            "--rollout",
            help="How a change of mTLS mode is rolled out. gated: servers accept both modes until all "
            "clients have switched; no request fails. immediate: servers and clients switch at once.",
        ),
    ] = Rollout.GATED
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
        return self.rollout_timeout if self.rollout is Rollout.GATED else None


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
    ] = Switch.TRUE
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

    source: SourceOptions
    """The objects and settings of the mesh."""
    listen: ListenOptions
    """Plaintext listeners and connections."""
    tls: TlsOptions
    """TLS listeners."""
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
    source = options.source
    source.validate()
    xds, admin, rest = options.listen.addresses()
    state_dir = options.identity.state_dir
    tls = options.tls.parse(
        kubernetes=source.kubernetes, can_verify_tokens=source.kubernetes or state_dir is not None
    )
    webhook_address = options.webhook.parse(kubernetes=source.kubernetes)
    if source.kubernetes and state_dir:
        fail("--state-dir requires --manifests; with --kubernetes the CA is in a Secret (xds-ca-secret)")
    sds = options.identity.sds
    policy = options.identity.compliance_policy
    assignments = [
        *(source.assignments or ()),
        *([f"meshConfig.sdsUdsPath={sds}"] if sds else ()),
        *([f"values.xds.compliancePolicy={policy.value}"] if policy else ()),
        *(["values.xds.observe=false"] if options.observe.observe is Switch.FALSE else ()),
    ]
    external = options.identity.external_issuer()
    # Fail if a --set is invalid. An invalid --mesh-config file does not fail: it can be fixed while running.
    load_settings(None, assignments)
    exposed = _exposed(xds, rest)
    addresses = ListenAddresses(
        xds=xds,
        admin=admin,
        rest=rest,
        names=tls.names,
        admin_token=options.listen.read_admin_token(),
        collector=check_endpoint(options.observe.otlp_endpoint) if options.observe.otlp_endpoint else "",
    )
    max_connection_age = options.listen.max_connection_age or None
    running: Coroutine[Any, Any, int]
    if source.manifests:
        folder = Folder(source.manifests, SettingsLoader(source.mesh_config, assignments))
        build = partial(
            _build_components,
            exposed,
            tls,
            state_dir,
            rollout_timeout=options.rollout.timeout,
            external=external,
        )
        running = run(folder, build, addresses, max_connection_age=max_connection_age)
    else:
        from xds.cli import serve_kubernetes  # noqa: PLC0415 - the Kubernetes client takes long to import

        cluster = serve_kubernetes.ClusterOptions(
            kubeconfig=source.kubeconfig,
            context=source.context,
            namespace=source.namespace,
            mesh_config_map=source.mesh_config_map,
            assignments=assignments,
            tls=tls,
            webhook=options.webhook,
            webhook_address=webhook_address,
            rollout_timeout=options.rollout.timeout,
            external=external,
        )
        running = serve_kubernetes.run_in_cluster(
            cluster, addresses, exposed=exposed, max_connection_age=max_connection_age
        )
    logs.configure()
    garbage.defer()
    raise typer.Exit(asyncio.run(running))


async def _build_components(
    exposed: list[str],
    tls: TlsListeners,
    state_dir: Path | None,
    config: MeshConfig,
    *,
    rollout_timeout: float | None,
    external: ExternalIssuer | None,
) -> Components:
    """Create the components of a control plane for manifests."""
    try:
        authority = load_or_create_root(state_dir, config.trust_domain, datetime.now(UTC))
        token_verifier = (
            own_token_verifier(load_or_create_token_key(state_dir))
            if state_dir and tls.accept_tokens
            else None
        )
    except StateError as error:
        fail(f"--state-dir: {error}", 1)
    # Serve no keys in plaintext if any listener can be reached from other machines. A loopback listener is
    # not exempt: connections of a forwarded port also come from this machine.
    serve_keys = not exposed and all(address.is_loopback for address in tls.addresses)
    if serve_keys:
        log.warning("plaintext xDS serves private keys: any local user can impersonate any workload")
    elif exposed:
        log.warning("plaintext xDS is reachable from other machines", address=exposed)
    if state_dir is None:
        log.info("root certificate is temporary: set --state-dir to keep it after a restart")
    controller = Controller(
        authority,
        serve_keys=serve_keys,
        rollout_timeout=rollout_timeout,
        external=external,
    )
    authorities = Authorities(authority=authority)
    effects = EffectWatcher(lambda: controller.mesh, controller.ready)
    listeners = tls.open(controller, lambda: authorities, token_verifier=token_verifier)
    return Components(controller, effects, listeners=listeners)


def _exposed(xds: Address, rest: Address | None) -> list[str]:
    """Return the plaintext listeners that other machines can reach, each as `OPTION ADDRESS`."""
    addresses = {"--xds-address": xds, "--rest-address": rest}
    return [
        f"{option} {address}" for option, address in addresses.items() if address and not address.is_loopback
    ]
