"""`xds serve`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options, tls_options, webhook_options
from xds.cli.runtime import Addresses, Part, Serving, run
from xds.mesh.inject import DEFAULT_IMAGE

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger as BoundLogger

    from xds.mesh.kube.api import KubeApi
    from xds.mesh.model.objects import MeshConfig
    from xds.mesh.sources.files import Folder
    from xds.mesh.sources.kubernetes import Kubernetes
    from xds.mesh.sources.settings import Settings


class Rollout(StrEnum):
    """How a change of mode is put in force."""

    GATED = "gated"
    IMMEDIATE = "immediate"


def serve(
    *,
    manifests: Annotated[Path | None, options.MANIFESTS] = None,
    kubernetes: Annotated[
        bool,
        typer.Option(
            "--kubernetes",
            help="Configure the sidecars of a Kubernetes cluster, from its API server: the one that we are a pod of, or "
            "else the one that kubectl would use (KUBECONFIG, ~/.kube/config).",
        ),
    ] = False,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            metavar="NAME",
            help="With --kubernetes: where the control plane is, and what belongs to it. Without it: the pod's own, or "
            "istio-system if we are no pod.",
            show_default=False,
        ),
    ] = None,
    mesh_config_map: Annotated[
        str | None,
        typer.Option(
            "--mesh-config-map",
            metavar="NAME",
            help="With --kubernetes: the ConfigMap of that namespace whose key mesh is Istio's MeshConfig; Istio's own "
            "is named istio. Without it: xds.",
            show_default=False,
        ),
    ] = None,
    mesh_config: options.MeshConfigFile = None,
    assignments: options.Assignments = None,
    xds_address: Annotated[
        str, typer.Option("--xds-address", metavar="HOST:PORT", help="Where sidecars connect.")
    ] = "127.0.0.1:15010",
    xds_tls_address: tls_options.TlsAddress = None,
    xds_mtls_address: tls_options.MtlsAddress = None,
    tls_names: tls_options.TlsNames = None,
    admin_identities: tls_options.AdminIdentities = None,
    admin_address: Annotated[
        str,
        typer.Option("--admin-address", metavar="HOST:PORT", help="Where /healthz, /ready and /metrics are."),
    ] = "127.0.0.1:15014",
    rest_address: Annotated[
        str | None,
        typer.Option(
            "--rest-address",
            metavar="HOST:PORT",
            help="Where the same is served to who polls with HTTP and JSON (POST /v3/discovery:clusters and so on), "
            "but for private keys. Off unless said.",
            show_default=False,
        ),
    ] = None,
    max_connection_age: Annotated[
        float,
        typer.Option(
            "--max-connection-age",
            metavar="SECONDS",
            min=0,
            help="How long a sidecar's connection lasts, give or take a tenth, before it has to connect anew: so "
            "sidecars spread over control planes that were added. 0: for ever.",
        ),
    ] = 1800,
    rollout: Annotated[
        Rollout,
        typer.Option(
            "--rollout",
            help="How a change of mode is put in force. gated: servers take both for as long as clients change over, so "
            "that no request fails. immediate: at once, on both sides.",
        ),
    ] = Rollout.GATED,
    rollout_timeout: Annotated[
        float,
        typer.Option(
            "--rollout-timeout",
            metavar="SECONDS",
            min=0,
            help="How long a change of mode waits for any sidecar before it goes on without it.",
        ),
    ] = 30,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            file_okay=False,
            help="Where the root certificate and its key are kept, and the key that signs tokens; made if need be. "
            "Must belong to the user who runs xds (or root), and be writable by no other. Without it the root lives as long as "
            "the process.",
            show_default=False,
        ),
    ] = None,
    sds: Annotated[
        str | None,
        typer.Option(
            "--sds",
            metavar="unix:///PATH",
            help="Where sidecars get their certificates and roots instead, such as the socket of SPIRE's agent: the "
            "setting meshConfig.sdsUdsPath. The path is that in the sidecar's container.",
            show_default=False,
        ),
    ] = None,
    webhook_address: webhook_options.WebhookAddress = None,
    sidecar_image: webhook_options.SidecarImage = DEFAULT_IMAGE,
    sidecar_xds_address: webhook_options.SidecarAddress = None,
    insecure_xds: Annotated[
        bool,
        typer.Option(
            "--insecure-xds",
            help="Allow an --xds-address or --rest-address that others can reach, though nobody has to prove who they are there. "
            "No sidecar gets a private key in plaintext then.",
        ),
    ] = False,
) -> None:
    """Configure sidecars from a folder of manifests or from a Kubernetes cluster, and follow its changes.

    Errors in an object are logged with file and line or its name, and the last good version of it stays in force; a policy
    without one is STRICT until it is repaired. While the API server cannot be reached, all that is known stays in force. At
    start /ready says what is waited for: every kind must be listed, and every document of the manifests must be readable.
    """
    if kubernetes == (manifests is not None):
        options.fail("say either --manifests DIR or --kubernetes" + (", not both" if kubernetes else ""))
    if kubernetes and mesh_config:
        options.fail(
            "--mesh-config is for --manifests; a cluster's settings are in a ConfigMap (--mesh-config-map)"
        )
    asked = {"--kubeconfig": kubeconfig, "--context": context, "--namespace": namespace}
    for option, value in (asked | {"--mesh-config-map": mesh_config_map}).items():
        if value and not kubernetes:
            options.fail(f"{option} is for --kubernetes")
    where = {"--xds-address": options.address("--xds-address", xds_address)}
    if rest_address:
        where["--rest-address"] = options.address("--rest-address", rest_address)
    admin = options.address("--admin-address", admin_address)
    exposed = [f"{option} {at}" for option, at in where.items() if not at.is_loopback]
    if exposed and not insecure_xds:
        options.fail(
            f"{exposed[0]} can be reached by others, and xDS is neither encrypted nor authenticated here. "
            "Listen on 127.0.0.1, or say --insecure-xds (sidecars then get no private keys in plaintext)"
        )
    opened = tls_options.Doors(
        kubernetes=kubernetes,
        tokens=kubernetes or state_dir is not None,
        tls=xds_tls_address,
        mtls=xds_mtls_address,
        names=tls_names,
        admins=admin_identities,
    )
    injected = webhook_options.Injecting(
        kubernetes=kubernetes, at=webhook_address, image=sidecar_image, xds_address=sidecar_xds_address
    )
    if kubernetes and state_dir:
        options.fail("--state-dir is for --manifests; a cluster keeps its CA in a Secret (xds-ca-secret)")
    assignments = [*(assignments or ()), *([f"meshConfig.sdsUdsPath={sds}"] if sds else ())]
    options.settings(
        None, assignments
    )  # a wrong --set is wrong use; a file can be repaired, and is waited for
    from xds.cli import logs  # noqa: PLC0415
    from xds.mesh.envoy.translate import warm  # noqa: PLC0415
    from xds.mesh.sources.settings import Settings  # noqa: PLC0415

    timeout = rollout_timeout if rollout is Rollout.GATED else None

    async def serving() -> int:
        async with AsyncExitStack() as stack:
            source: Folder | Kubernetes
            if manifests:
                source = _folder(manifests, Settings(mesh_config, assignments))
                prepare = partial(_alone, exposed, opened, state_dir, rollout_timeout=timeout)
            else:
                api = await stack.enter_async_context(options.connected(kubeconfig, context))
                source = _cluster(api, assignments, namespace, mesh_config_map)
                prepare = partial(
                    _in_cluster, exposed, opened, api, source, injected=injected, rollout_timeout=timeout
                )
            return await run(source, prepare, at, max_connection_age=max_connection_age or None)

    at = Addresses(
        xds=where["--xds-address"], admin=admin, rest=where.get("--rest-address"), names=tls_names or ()
    )
    logs.configure()
    warm()
    raise typer.Exit(asyncio.run(serving()))


async def _alone(
    exposed: list[str],
    opened: tls_options.Doors,
    state_dir: Path | None,
    config: MeshConfig,
    *,
    rollout_timeout: float | None,
) -> Serving:
    """Prepare to serve manifests."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from xds.mesh.controlplane.controller import Hub  # noqa: PLC0415
    from xds.mesh.controlplane.effects import EffectWatcher  # noqa: PLC0415
    from xds.mesh.identity.auth import own_token_verifier  # noqa: PLC0415
    from xds.mesh.identity.rotation import Authorities  # noqa: PLC0415
    from xds.mesh.identity.state_dir import StateError, load_or_create_root, load_or_create_token_key  # noqa: PLC0415

    try:
        authority = load_or_create_root(state_dir, config.trust_domain, datetime.now(UTC))
        judge = (
            own_token_verifier(load_or_create_token_key(state_dir))
            if state_dir and opened.takes_tokens
            else None
        )
    except StateError as error:
        options.fail(f"--state-dir: {error}", 1)
    # Who can be reached by others is no demo, and a forwarded port looks like this machine.
    serve_keys = not exposed and all(each.is_loopback for each in opened.addresses)
    _say_what_is_at_stake(exposed, keys=serve_keys, kept=state_dir is not None)
    hub = Hub(authority, serve_keys=serve_keys, rollout_timeout=rollout_timeout)
    authorities = Authorities(authority=authority)
    effects = EffectWatcher(lambda: hub.mesh, hub.ready)
    return Serving(hub, effects, door=await opened.door(hub, lambda: authorities, judge=judge))


async def _in_cluster(
    exposed: list[str],
    opened: tls_options.Doors,
    api: KubeApi,
    source: Kubernetes,
    config: MeshConfig,
    *,
    injected: webhook_options.Injecting,
    rollout_timeout: float | None,
) -> Serving:
    """Prepare to serve a cluster, as one of several."""
    from xds.mesh.controlplane.controller import Hub  # noqa: PLC0415
    from xds.mesh.controlplane.effects import EffectWatcher  # noqa: PLC0415
    from xds.mesh.kube.ca_secret import AuthorityError  # noqa: PLC0415
    from xds.mesh.kube.conditions import Conditions  # noqa: PLC0415
    from xds.mesh.kube.replica import Replica  # noqa: PLC0415
    from xds.mesh.kube.tokens import TokenReviews  # noqa: PLC0415

    namespace = source.namespace
    try:
        replica = await Replica.join(api, namespace, config.trust_domain)
    except AuthorityError as error:
        options.fail(str(error), 1)
    _say_what_is_at_stake(exposed, keys=False, kept=True)
    kept = replica.authorities
    hub = Hub(kept.authority, extra_roots=kept.extra_roots, serve_keys=False, rollout_timeout=rollout_timeout)
    replica.follow(hub)
    effects = EffectWatcher(lambda: hub.mesh, hub.ready)
    told = Conditions(
        api, lambda: source.problems, lambda: hub.mesh, lambda: effects.by_object, leads=replica.leads
    )
    # Each that is to run besides is added here.
    parts: list[Part] = [*replica.parts, told.run, *injected.parts(hub, api, namespace, replica.leads)]
    door = await opened.door(
        hub, lambda: replica.authorities, judge=TokenReviews(api), api=api, namespace=namespace
    )
    return Serving(hub, effects, parts, door, injected.metrics)


def _folder(manifests: Path, settings: Settings) -> Folder:
    from xds.mesh.sources.files import Folder  # noqa: PLC0415

    return Folder(manifests, settings)


def _cluster(
    api: KubeApi, assignments: list[str] | None, namespace: str | None, config_map: str | None
) -> Kubernetes:
    from xds.mesh.sources.kubernetes import CONFIG_MAP, Kubernetes  # noqa: PLC0415

    source = Kubernetes(
        api, assignments=assignments or (), namespace=namespace or "", config_map=config_map or CONFIG_MAP
    )
    _log().info("kubernetes", server=api.server, namespace=source.namespace)
    return source


def _say_what_is_at_stake(exposed: list[str], *, keys: bool, kept: bool) -> None:
    if keys:
        _log().warning(
            "every user of this machine can take any pod's identity: nobody has to prove who they are"
        )
    elif exposed:
        _log().warning("xDS is neither encrypted nor authenticated, and others can reach it", address=exposed)
    if not kept:
        _log().info("the root certificate is new, and lives as long as this process; --state-dir keeps it")


def _log() -> BoundLogger:
    import structlog  # noqa: PLC0415

    log: BoundLogger = structlog.get_logger("xds.cli.serve")
    return log
