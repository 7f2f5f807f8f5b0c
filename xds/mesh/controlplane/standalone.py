"""The parts of a control plane without a Kubernetes cluster: its CA is in a directory, or in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import structlog

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.ineffective_objects import IneffectiveObjects
from xds.mesh.controlplane.listeners import secure_listeners
from xds.mesh.controlplane.parts import Components, Settings
from xds.mesh.identity.auth import own_token_verifier
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.state_dir import load_or_create_root, load_or_create_token_key
from xds.mesh.model.objects import MeshConfig

log = structlog.get_logger(__name__)


async def build_components(settings: Settings, state_dir: Path | None, config: MeshConfig) -> Components:
    """Create the components. With the first two arguments bound, this is a `BuildComponents`.

    Plaintext streams get private keys if no listener of xDS can be reached from other machines.

    Args:
        settings: the listeners and options.
        state_dir: the directory of the root certificate and of the key that signs tokens; None for a
            temporary root certificate, without tokens.
        config: the settings of the mesh.

    Raises:
        StateError: the directory cannot be used.
        IdentityError: the root certificate has expired since it was read.
    """
    authority = load_or_create_root(state_dir, config.trust_domain, datetime.now(UTC))
    token_verifier = (
        own_token_verifier(load_or_create_token_key(state_dir)) if state_dir and settings.xds_tls else None
    )
    if settings.is_loopback:
        log.warning("plaintext xDS serves private keys: any local user can impersonate any workload")
    if state_dir is None:
        log.info("root certificate is temporary: set --state-dir to keep it after a restart")
    controller = Controller(
        authority,
        serve_keys=settings.is_loopback,
        rollout_timeout=settings.rollout_timeout,
        external=settings.external,
    )
    authorities = Authorities(authority=authority)
    listeners = secure_listeners(settings, controller, lambda: authorities, token_verifier=token_verifier)
    ineffective = IneffectiveObjects(lambda: controller.mesh, controller.ready)
    return Components(controller, ineffective, listeners=listeners)
