"""Sidecars of `xds proxy` that make their own keys, and a control plane that certifies them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.envoy import EnvoyProcess
from tests.support.local import LocalMesh, LocalPod
from tests.support.loopback import free_port
from tests.support.switchover import Plane
from xds.codec import to_json_dict
from xds.mesh.controlplane.certificate_service import CertificateService
from xds.mesh.envoy.bootstrap import bootstrap
from xds.mesh.identity.auth import Authentication, own_token_verifier
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.identity.tokens import TokenKey
from xds.mesh.model.mesh import Mesh
from xds.server import XdsServer


class TokenPlane(Plane):
    """A control plane in the test's own process that accepts tokens over TLS."""

    token_key = TokenKey.generate()

    def __init__(self, *what: Any, **options: Any) -> None:
        super().__init__(*what, **options)
        self.services: list[type[CertificateService]] = [CertificateService]
        self.tls_port = free_port()

    async def listen(self) -> int:
        def trust() -> Trust:
            authority, pem = self.controller.certificates.trust
            return Trust(authority, pem)

        def trust_domains() -> tuple[str, ...]:
            return self.controller.mesh.config.trust_domains

        authenticate = Authentication(trust_domains, own_token_verifier(self.token_key))
        credentials = ServerCertificate(["localhost"], trust).credentials(certificate_required=False)
        server = XdsServer(
            self.controller.connections,
            "127.0.0.1:0",
            grace=0.5,
            added=[service(self.controller, authenticate) for service in self.services],
            secure=[(f"127.0.0.1:{self.tls_port}", credentials)],
            authenticate=authenticate,
        )
        await self._exits.enter_async_context(server)
        return self.tls_port


class ProxyProcess(EnvoyProcess):
    """`xds proxy` with this environment."""

    environment: dict[str, str]

    def _command(self, binary: str) -> list[str]:
        variables = (f"{name}={value}" for name, value in self.environment.items())
        return ["env", *variables, sys.executable, "-m", "xds", "proxy"]


class OwnKeyMesh(LocalMesh):
    """A mesh whose sidecars are started by `xds proxy`, with keys of their own."""

    def makes_key(self, pod: LocalPod) -> bool:
        """Return whether a pod's sidecar makes its own key."""
        return True

    def token(self, pod: LocalPod, **claims: str) -> str:
        caller = {"namespace": pod.namespace, "service_account": pod.said["account"], "pod": pod.name}
        issued = Caller(**caller | claims, credential=CredentialKind.TOKEN)
        return TokenPlane.token_key.issue(issued, datetime.now(UTC), timedelta(hours=1))

    def _envoy(self, pod: LocalPod, facts: Mesh, **how: Any) -> EnvoyProcess:
        known, folder = facts.pod(pod.namespace, pod.name), self.folder(pod)
        assert known, pod
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(self.token(pod))
        (folder / "roots.pem").write_bytes(self.plane.controller.certificates.trust[1])
        process = ProxyProcess(pod.full_name, to_json_dict(bootstrap(known, "", 0)), self._directory, **how)
        process.environment = {
            "POD_NAME": pod.name,
            "POD_NAMESPACE": pod.namespace,
            "SERVICE_ACCOUNT": pod.said["account"],
            "INSTANCE_IP": pod.address,
            "XDS_ADDRESS": f"localhost:{self.plane.tls_port}",
            "XDS_TOKEN_FILE": str(folder / "token"),
            "XDS_ROOT_FILE": str(folder / "roots.pem"),
            "XDS_INTERCEPTION_MODE": "NONE",
            "XDS_APP_ADDRESS": pod.app_address,
            "XDS_CONCURRENCY": "1",
            **({"XDS_KEY_DIR": str(folder / "key")} if self.makes_key(pod) else {}),
        }
        return process

    def folder(self, pod: LocalPod) -> Path:
        return self._directory / f"files-{pod.full_name}"
