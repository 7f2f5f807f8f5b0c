"""Storage and rotation of the mesh CA, whose key is in a Secret that all replicas share.

The first replica creates the Secret. If several start at once, one creates it and the others read it. A
user's own CA in Istio's Secret `cacerts` takes precedence. It is copied into our Secret: after the user
replaces `cacerts`, the old CA continues to issue until the new root is trusted everywhere
(`xds.mesh.identity.rotation`).

Required permissions in its own namespace (a Role, not a ClusterRole): get secrets `xds-ca-secret` and
`cacerts`; update `xds-ca-secret`; create secrets (RBAC cannot restrict `create` to a name). Keys are never
written to a log, an event or an error.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from http import HTTPStatus

import structlog
from cryptography.hazmat.primitives import hashes

from xds.mesh.identity import rotation
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.rotation import Authorities, Stage, Timing
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger

log = structlog.get_logger(__name__)

SECRET = "xds-ca-secret"  # noqa: S105 - a name
USER_SECRET = "cacerts"  # noqa: S105 - a name
"""Secret with the user's own CA, with Istio's name, and the keys of Istio or cert-manager."""
POLL_INTERVAL = 10.0
"""Seconds between two reads of the Secrets."""


class AuthorityError(Exception):
    """No CA is usable. The message explains the reason and the fix."""


@dataclass(frozen=True, slots=True)
class StoredAuthorities:
    """Content of the Secret."""

    authorities: Authorities
    """CAs and roots in the Secret."""
    without_data: Json = field(repr=False)
    """The Secret without its data, so that labels and annotations of other tools are preserved."""


def utc_now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)


async def load_or_create_authorities(
    api: KubeApi, namespace: str, trust_domain: str, now: datetime
) -> Authorities:
    """Return the CA that all replicas share. Create it on first use.

    Raises:
        AuthorityError: a Secret has invalid content.
        KubeError: the API server cannot be reached or rejects a request.
    """
    secrets = CaSecrets(api, namespace)
    user_authority = await secrets.read_user_authority(now)
    while True:
        stored = await secrets.read(now)
        if stored is None:
            created = Authorities(
                authority=user_authority or Authority.create(PrivateKey.generate(), trust_domain, now)
            )
            if await secrets.create(created):
                source = USER_SECRET if user_authority else "new"
                log.info("mesh CA created", secret=f"{namespace}/{SECRET}", source=source)
                return created
        elif user_authority is None or is_target(stored.authorities, user_authority):
            return stored.authorities
        elif started := await secrets.replace(stored, stored.authorities.begin(user_authority, now)):
            log.info(
                "mesh CA rotation started",
                secret=f"{namespace}/{USER_SECRET}",
                stage=started.authorities.stage.value,
            )
            return started.authorities


def is_target(authorities: Authorities, ca: Authority) -> bool:
    """Return whether a CA issues certificates, or will after the current rotation."""
    target = authorities.upcoming or authorities.authority
    return (target.certificate, target.roots) == (ca.certificate, ca.roots)


class CaSecrets:
    """Reads and writes the Secrets of a namespace that contain CAs."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def read_user_authority(self, now: datetime) -> Authority | None:
        """Return the user's own CA, or None. Raises AuthorityError, KubeError."""
        secret = await self._api.find(f"{self._path}/{USER_SECRET}")
        if secret is None:
            return None
        try:
            return rotation.read_user_authority(_decode_data(secret), now)
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{USER_SECRET} cannot be used as the mesh's CA: {error}. "
                "Correct ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or tls.crt, tls.key and "
                "ca.crt if cert-manager writes them, or delete the Secret "
                f"(kubectl -n {self._namespace} delete secret {USER_SECRET}) to use a CA that xds creates"
            ) from error

    async def read(self, now: datetime) -> StoredAuthorities | None:
        """Return the stored CAs, or None if the Secret does not exist. Raises AuthorityError, KubeError."""
        secret = await self._api.find(f"{self._path}/{SECRET}")
        if secret is None:
            return None
        try:
            return StoredAuthorities(Authorities.from_data(_decode_data(secret), now), _without_data(secret))
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{SECRET} contains a CA that cannot be used: {error}. Restore "
                f"it, or delete it (kubectl -n {self._namespace} delete secret {SECRET}) to create a new "
                "root; requests then fail until every sidecar has the new root"
            ) from error

    async def create(self, authorities: Authorities) -> bool:
        """Create the Secret. Return False if it exists already. Raises KubeError."""
        try:
            await self._api.create(self._path, self._new_secret() | _encode_data(authorities))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True

    async def replace(self, old: StoredAuthorities, new: Authorities) -> StoredAuthorities | None:
        """Replace the stored CAs. Return None if the Secret has changed since the read. Raises KubeError."""
        try:
            written = await self._api.replace(f"{self._path}/{SECRET}", old.without_data | _encode_data(new))
        except KubeError as error:
            if error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
            return None
        return StoredAuthorities(new, _without_data(written))

    def _new_secret(self) -> Json:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "istio.io/ca-root",
            "metadata": {
                "name": SECRET,
                "namespace": self._namespace,
                "labels": {"app.kubernetes.io/managed-by": "xds"},
            },
        }


class RotationController:
    """Polls the Secrets, and starts each stage of a rotation when it is due.

    Every replica reads the Secrets; only the leader writes them.
    """

    def __init__(
        self,
        secrets: CaSecrets,
        first: Authorities,
        *,
        on_change: Callable[[Authorities], None],
        lagging: Callable[[], Sequence[str]],
        leads: Callable[[], bool],
        now: Callable[[], datetime] = utc_now,
        timing: Timing = rotation.DEFAULT_TIMING,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        """Create a controller.

        Args:
            secrets: the Secrets to read and write.
            first: the CAs that `load_or_create_authorities` returned.
            on_change: called with the new CAs after each change.
            lagging: returns the proxies that have not accepted the current roots.
            leads: returns whether this replica is the leader.
            now: the clock.
            timing: the durations of the stages.
            poll_interval: seconds between two reads of the Secrets.
        """
        self.current = first
        """CAs and roots in use."""
        self._secrets = secrets
        self._on_change, self._lagging, self._leads = on_change, lagging, leads
        self._now, self._timing, self._poll_interval = now, timing, poll_interval
        self._log_problem = OnceLogger(
            log, "cannot read the CA Secret, using the last known CA", level="error"
        )
        self._blocking_count = 0
        self._warned: date | None = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._poll_interval)
            try:
                await self.sync()
            except (AuthorityError, KubeError) as error:
                self._log_problem(str(error))
            else:
                self._log_problem("")

    async def sync(self) -> None:
        """Read the Secrets once, and continue a rotation. Raises AuthorityError, KubeError."""
        now = self._now()
        stored = await self._secrets.read(now)
        if stored is None:
            # The Secret was deleted. Restore the CA that all proxies trust.
            await self._secrets.create(self.current)
            return
        if stored.authorities.to_data() != self.current.to_data():
            self._adopt(stored.authorities)
        self._warn_of_expiry(now)
        if not self._leads():
            return
        next_state = await self._next_state(stored.authorities, now)
        if next_state is not stored.authorities and await self._secrets.replace(stored, next_state):
            self._adopt(next_state)

    async def _next_state(self, current: Authorities, now: datetime) -> Authorities:
        user_authority = await self._secrets.read_user_authority(now)
        if user_authority and not is_target(current, user_authority):
            return current.begin(user_authority, now)
        lagging = self._lagging() if current.stage is Stage.SPREADING else ()
        next_state = current.advance(now, is_trusted_everywhere=not lagging, timing=self._timing)
        is_blocked = (
            lagging
            and next_state is current
            and current.advance(now, is_trusted_everywhere=True, timing=self._timing) is not current
        )
        if is_blocked and len(lagging) != self._blocking_count:
            log.warning(
                "CA rotation is waiting for proxies to accept the new root",
                count=len(lagging),
                first=lagging[0],
            )
        self._blocking_count = len(lagging) if is_blocked else 0
        return next_state

    def _adopt(self, authorities: Authorities) -> None:
        self.current = authorities
        self._on_change(authorities)
        issuer = authorities.authority.certificate.fingerprint(hashes.SHA256()).hex()[:16]
        log.info(
            "mesh roots changed",
            stage=authorities.stage.value,
            roots=len(authorities.trusted),
            issuer=issuer,
        )

    def _warn_of_expiry(self, now: datetime) -> None:
        if self.current.authority.expires_soon(now) and self._warned != now.date():
            self._warned = now.date()
            log.warning(
                "mesh CA certificate expires soon", expires=self.current.authority.expires.isoformat()
            )


def _without_data(secret: Json) -> Json:
    return {name: value for name, value in secret.items() if name != "data"}


def _encode_data(authorities: Authorities) -> Json:
    return {"data": {name: b64encode(pem).decode() for name, pem in authorities.to_data().items()}}


def _decode_data(secret: Json) -> dict[str, bytes]:
    return {name: b64decode(value) for name, value in (secret.get("data") or {}).items()}
