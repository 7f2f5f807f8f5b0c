"""The TLS listeners of the xDS server."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.parts import SecureListeners, Settings
from xds.mesh.identity.auth import AdminAuthorizer, Authentication, TokenVerifier
from xds.mesh.identity.claims import IdentityPattern
from xds.mesh.identity.rotation import Authorities
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.model.names import host_port


def secure_listeners(
    settings: Settings,
    controller: Controller,
    authorities: Callable[[], Authorities],
    *,
    token_verifier: TokenVerifier | None,
    service_names: Iterable[str] = (),
    own_identity: IdentityPattern | None = None,
) -> SecureListeners | None:
    """Return the TLS listeners for the xDS server; None if there are no addresses.

    Args:
        settings: the addresses, and who may use the admin services.
        controller: the source of the mesh's settings.
        authorities: returns the issuing CA and the trusted roots.
        token_verifier: verifies tokens; None if no tokens are accepted.
        service_names: DNS names of the control plane's Service.
        own_identity: the control plane's own identity, which is an admin by default; None if it is unknown.

    Raises:
        IdentityError: a name cannot be in a certificate, or the CA has expired.
    """
    addresses = [
        (address, required)
        for address, required in ((settings.xds_tls, False), (settings.xds_mtls, True))
        if address
    ]
    if not addresses:
        return None
    # Clients on this machine, or of a forwarded port, use the local names.
    hosts = [host for (host, _), _ in addresses if not _is_unspecified(host)]
    names = dict.fromkeys((*service_names, *settings.names, "localhost", "127.0.0.1", "::1", *hosts))

    def trust() -> Trust:
        current = authorities()
        return Trust(current.authority, current.trusted_pem, current.bridges_pem)

    def trust_domains() -> Sequence[str]:
        return controller.mesh.config.trust_domains

    certificate = ServerCertificate(tuple(names), trust)
    authentication = Authentication(trust_domains, token_verifier)
    own = (own_identity,) if own_identity else ()
    return SecureListeners(
        [
            (host_port(*address), certificate.credentials(certificate_required=required))
            for address, required in addresses
        ],
        authentication,
        AdminAuthorizer(authentication, settings.admins or own, trust_domains),
        AdminAuthorizer(authentication, own, trust_domains, denial="is not a replica"),
    )


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
