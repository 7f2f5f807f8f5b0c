"""The mesh's CA in a cluster: its key lives in a Secret that all replicas share.

Whoever comes first makes it: of any number of replicas that start at once, one can create the Secret, and the others read it.
A CA of the user's own, in Istio's Secret `cacerts`, is preferred. It is copied into ours: when the user puts another into
`cacerts`, the old one has to go on issuing until the new root is trusted everywhere (`xds.mesh.identity.rotation`).

Needs in its own namespace (a Role, not a ClusterRole): secrets `xds-ca-secret` and `cacerts`: get; `xds-ca-secret`: update;
secrets: create (RBAC cannot restrict that to a name). Keys never get into a log, an event or an error.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus

import structlog
from cryptography.hazmat.primitives import hashes

from xds.mesh.identity import rotation
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.rotation import Authorities, Stage, Waits
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import OnceLogger

log = structlog.get_logger(__name__)

SECRET = "xds-ca-secret"  # noqa: S105 - a name
USER_SECRET = "cacerts"  # noqa: S105 - a name
"""The Secret with a CA of the user's own, as Istio names it and the keys in it."""
EXPIRY_WARNING = timedelta(days=30)
"""How long before the CA's end the log says so, once a day."""
POLL_INTERVAL = 10.0
"""Seconds after which the Secrets are looked at again."""


class AuthorityError(Exception):
    """There is no CA to issue certificates with: what is wrong, and how to mend it."""


@dataclass(frozen=True, slots=True)
class StoredAuthorities:
    """What the Secret held."""

    authorities: Authorities
    without_data: Json = field(repr=False)
    """All of the Secret but its data: what others put there stays."""


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


async def load_or_create_authorities(
    api: KubeApi, namespace: str, trust_domain: str, now: datetime
) -> Authorities:
    """Return the CA that all replicas share, made on first use.

    AuthorityError: a Secret holds something that cannot be used. KubeError: the API server cannot be asked, or refuses.
    """
    secrets = CaSecrets(api, namespace)
    user_authority = await secrets.read_user_authority(now)
    while True:
        found = await secrets.read(now)
        if found is None:
            made = Authorities(
                authority=user_authority or Authority.create(PrivateKey.generate(), trust_domain, now)
            )
            if await secrets.create(made):
                source = USER_SECRET if user_authority else "new"
                log.info("the mesh's CA is set up", secret=f"{namespace}/{SECRET}", source=source)
                return made
        elif user_authority is None or is_target(found.authorities, user_authority):
            return found.authorities
        elif begun := await secrets.replace(found, found.authorities.begin(user_authority, now)):
            log.info("another CA", secret=f"{namespace}/{USER_SECRET}", stage=begun.authorities.stage.value)
            return begun.authorities


def is_target(authorities: Authorities, ca: Authority) -> bool:
    """Tell whether a CA is the one that issues, or will once a rotation that is under way is over."""
    target = authorities.upcoming or authorities.authority
    return (target.certificate, target.roots) == (ca.certificate, ca.roots)


class CaSecrets:
    """The Secrets with CAs in a namespace."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def read_user_authority(self, now: datetime) -> Authority | None:
        """Return the user's own CA; None: there is none. AuthorityError, KubeError."""
        found = await self._api.find(f"{self._path}/{USER_SECRET}")
        if found is None:
            return None
        try:
            return rotation.authority(_decode_data(found), now)
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{USER_SECRET} cannot be used as the mesh's CA: {error}. Put ca-cert.pem, "
                f"ca-key.pem, root-cert.pem and cert-chain.pem right, or remove the Secret (kubectl -n "
                f"{self._namespace} delete secret {USER_SECRET}) to go on with a CA of xds's own"
            ) from error

    async def read(self, now: datetime) -> StoredAuthorities | None:
        """Return what is kept; None: nothing is. AuthorityError, KubeError."""
        found = await self._api.find(f"{self._path}/{SECRET}")
        if found is None:
            return None
        try:
            return StoredAuthorities(Authorities.from_data(_decode_data(found), now), _without_data(found))
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{SECRET} holds a CA that cannot be used: {error}. Restore it, or remove it "
                f"(kubectl -n {self._namespace} delete secret {SECRET}) to start with a new root: requests fail then "
                "until poll_interval sidecar has it"
            ) from error

    async def create(self, authorities: Authorities) -> bool:
        """Keep them, unless somebody was faster: False. KubeError."""
        try:
            await self._api.create(self._path, self._new() | _encode_data(authorities))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True

    async def replace(self, old: StoredAuthorities, new: Authorities) -> StoredAuthorities | None:
        """Keep others; None: somebody has written there since. KubeError."""
        try:
            written = await self._api.replace(f"{self._path}/{SECRET}", old.without_data | _encode_data(new))
        except KubeError as error:
            if error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
            return None
        return StoredAuthorities(new, _without_data(written))

    def _new(self) -> Json:
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
    """Follows the Secrets, and takes the steps of a rotation when it is time.

    Every replica follows; the one that leads writes.
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
        waits: Waits = rotation.WAITS,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        """Make one for what `load_or_create_authorities` returned.

        Args:
            secrets: where the CA is kept.
            first: what holds.
            on_change: told what holds from now on.
            lagging: says which proxies have not on_change the roots that hold now.
            leads: says whether this replica may write.
            now: a clock.
            waits: how long the steps last.
            poll_interval: seconds after which the Secrets are looked at again.
        """
        self.current = first
        """What holds."""
        self._secrets = secrets
        self._on_change, self._lagging, self._leads = on_change, lagging, leads
        self._now, self._waits, self._poll_interval = now, waits, poll_interval
        what = "the CA's Secret cannot be followed; what is known stays in force"
        self._log_problem = OnceLogger(log, what, level="error")
        self._blocking_count = 0
        self._warned: date | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(self._poll_interval)
            try:
                await self.sync()
            except (AuthorityError, KubeError) as error:
                self._log_problem(str(error))
            else:
                self._log_problem("")

    async def sync(self) -> None:
        """Look at the Secrets once. AuthorityError, KubeError."""
        now = self._now()
        found = await self._secrets.read(now)
        if found is None:
            # Somebody removed it. What everybody trusts is better put back than replaced by something new.
            await self._secrets.create(self.current)
            return
        if found.authorities.to_data() != self.current.to_data():
            self._adopt(found.authorities)
        self._warn_of_expiry(now)
        if not self._leads():
            return
        following = await self._next_state(found.authorities, now)
        if following is not found.authorities and await self._secrets.replace(found, following):
            self._adopt(following)

    async def _next_state(self, found: Authorities, now: datetime) -> Authorities:
        user_authority = await self._secrets.read_user_authority(now)
        if user_authority and not is_target(found, user_authority):
            return found.begin(user_authority, now)
        lagging = self._lagging() if found.stage is Stage.SPREADING else ()
        following = found.advance(now, everybody_trusts=not lagging, waits=self._waits)
        is_blocked = (
            lagging
            and following is found
            and found.advance(now, everybody_trusts=True, waits=self._waits) is not found
        )
        if is_blocked and len(lagging) != self._blocking_count:
            log.warning(
                "the new root waits for proxies that have not on_change it",
                count=len(lagging),
                first=lagging[0],
            )
        self._blocking_count = len(lagging) if is_blocked else 0
        return following

    def _adopt(self, authorities: Authorities) -> None:
        self.current = authorities
        self._on_change(authorities)
        issuer = authorities.authority.certificate.fingerprint(hashes.SHA256()).hex()[:16]
        log.info(
            "the mesh's roots changed",
            stage=authorities.stage.value,
            roots=len(authorities.trusted),
            issuer=issuer,
        )

    def _warn_of_expiry(self, now: datetime) -> None:
        left = self.current.authority.expires - now
        if left < EXPIRY_WARNING and self._warned != now.date():
            self._warned = now.date()
            log.warning("the mesh's CA ends: replace it", expires=self.current.authority.expires.isoformat())


def _without_data(secret: Json) -> Json:
    return {name: value for name, value in secret.items() if name != "data"}


def _encode_data(authorities: Authorities) -> Json:
    return {"data": {name: b64encode(pem).decode() for name, pem in authorities.to_data().items()}}


def _decode_data(secret: Json) -> dict[str, bytes]:
    return {name: b64decode(value) for name, value in (secret.get("data") or {}).items()}
