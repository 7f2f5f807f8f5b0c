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
from xds.mesh.identity.rotation import Authorities, Stage, Timing
from xds.mesh.kube.api import Json, KubeApi, KubeError
from xds.mesh.kube.log_once import Complaint

log = structlog.get_logger(__name__)

SECRET = "xds-ca-secret"  # noqa: S105 - a name
USERS = "cacerts"
"""The Secret with a CA of the user's own, as Istio names it and the keys in it."""
NOTICE = timedelta(days=30)
"""How long before the CA's end the log says so, once a day."""
POLL = 10.0
"""Seconds after which the Secrets are looked at again."""


class AuthorityError(Exception):
    """There is no CA to issue certificates with: what is wrong, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the Secret held."""

    authorities: Authorities
    rest: Json = field(repr=False)
    """All of the Secret but its data: what others put there stays."""


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


async def kept_authority(api: KubeApi, namespace: str, trust_domain: str, now: datetime) -> Authorities:
    """Return the CA that all replicas share, made on first use.

    AuthorityError: a Secret holds something that cannot be used. KubeError: the API server cannot be asked, or refuses.
    """
    secrets = Secrets(api, namespace)
    users = await secrets.users(now)
    while True:
        found = await secrets.read(now)
        if found is None:
            made = Authorities(authority=users or Authority.create(PrivateKey.generate(), trust_domain, now))
            if await secrets.create(made):
                source = USERS if users else "new"
                log.info("the mesh's CA is set up", secret=f"{namespace}/{SECRET}", source=source)
                return made
        elif users is None or is_target(found.authorities, users):
            return found.authorities
        elif begun := await secrets.replace(found, found.authorities.begin(users, now)):
            log.info("another CA", secret=f"{namespace}/{USERS}", stage=begun.authorities.stage.value)
            return begun.authorities


def is_target(authorities: Authorities, ca: Authority) -> bool:
    """Tell whether a CA is the one that issues, or will once a rotation that is under way is over."""
    target = authorities.upcoming or authorities.authority
    return (target.certificate, target.roots) == (ca.certificate, ca.roots)


class Secrets:
    """The Secrets with CAs in a namespace."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def users(self, now: datetime) -> Authority | None:
        """Return the user's own CA; None: there is none. AuthorityError, KubeError."""
        found = await self._api.find(f"{self._path}/{USERS}")
        if found is None:
            return None
        try:
            return rotation.read_authority(_data(found), now)
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{USERS} cannot be used as the mesh's CA: {error}. Put ca-cert.pem, "
                f"ca-key.pem, root-cert.pem and cert-chain.pem right, or remove the Secret (kubectl -n "
                f"{self._namespace} delete secret {USERS}) to go on with a CA of xds's own"
            ) from error

    async def read(self, now: datetime) -> Kept | None:
        """Return what is kept; None: nothing is. AuthorityError, KubeError."""
        found = await self._api.find(f"{self._path}/{SECRET}")
        if found is None:
            return None
        try:
            return Kept(Authorities.from_data(_data(found), now), _rest(found))
        except IdentityError as error:
            raise AuthorityError(
                f"the Secret {self._namespace}/{SECRET} holds a CA that cannot be used: {error}. Restore it, or remove it "
                f"(kubectl -n {self._namespace} delete secret {SECRET}) to start with a new root: requests fail then "
                "until every sidecar has it"
            ) from error

    async def create(self, authorities: Authorities) -> bool:
        """Keep them, unless somebody was faster: False. KubeError."""
        try:
            await self._api.create(self._path, self._new() | _as_data(authorities))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True

    async def replace(self, old: Kept, new: Authorities) -> Kept | None:
        """Keep others; None: somebody has written there since. KubeError."""
        try:
            written = await self._api.replace(f"{self._path}/{SECRET}", old.rest | _as_data(new))
        except KubeError as error:
            if error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
            return None
        return Kept(new, _rest(written))

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


class Rotation:
    """Follows the Secrets, and takes the steps of a rotation when it is time.

    Every replica follows; the one that leads writes.
    """

    def __init__(
        self,
        secrets: Secrets,
        first: Authorities,
        *,
        taken: Callable[[Authorities], None],
        lagging: Callable[[], Sequence[str]],
        leads: Callable[[], bool],
        now: Callable[[], datetime] = utc_now,
        timing: Timing = rotation.DEFAULT_TIMING,
        every: float = POLL,
    ) -> None:
        """Make one for what `kept_authority` returned.

        Args:
            secrets: where the CA is kept.
            first: what holds.
            taken: told what holds from now on.
            lagging: says which proxies have not taken the roots that hold now.
            leads: says whether this replica may write.
            now: a clock.
            timing: how long the steps last.
            every: seconds after which the Secrets are looked at again.
        """
        self.current = first
        """What holds."""
        self._secrets = secrets
        self._taken, self._lagging, self._leads = taken, lagging, leads
        self._now, self._timing, self._every = now, timing, every
        what = "the CA's Secret cannot be followed; what is known stays in force"
        self._complain = Complaint(log, what, level="error")
        self._held_up_by = 0
        self._warned: date | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.look()
            except (AuthorityError, KubeError) as error:
                self._complain(str(error))
            else:
                self._complain("")

    async def look(self) -> None:
        """Look at the Secrets once. AuthorityError, KubeError."""
        now = self._now()
        found = await self._secrets.read(now)
        if found is None:
            # Somebody removed it. What everybody trusts is better put back than replaced by something new.
            await self._secrets.create(self.current)
            return
        if found.authorities.to_data() != self.current.to_data():
            self._take(found.authorities)
        self._warn_of_the_end(now)
        if not self._leads():
            return
        next_ = await self._next(found.authorities, now)
        if next_ is not found.authorities and await self._secrets.replace(found, next_):
            self._take(next_)

    async def _next(self, found: Authorities, now: datetime) -> Authorities:
        users = await self._secrets.users(now)
        if users and not is_target(found, users):
            return found.begin(users, now)
        lagging = self._lagging() if found.stage is Stage.SPREADING else ()
        next_ = found.advance(now, is_trusted_everywhere=not lagging, timing=self._timing)
        held_up = (
            lagging
            and next_ is found
            and found.advance(now, is_trusted_everywhere=True, timing=self._timing) is not found
        )
        if held_up and len(lagging) != self._held_up_by:
            log.warning(
                "the new root waits for proxies that have not taken it", count=len(lagging), first=lagging[0]
            )
        self._held_up_by = len(lagging) if held_up else 0
        return next_

    def _take(self, authorities: Authorities) -> None:
        self.current = authorities
        self._taken(authorities)
        issuer = authorities.authority.certificate.fingerprint(hashes.SHA256()).hex()[:16]
        log.info(
            "the mesh's roots changed",
            stage=authorities.stage.value,
            roots=len(authorities.trusted),
            issuer=issuer,
        )

    def _warn_of_the_end(self, now: datetime) -> None:
        left = self.current.authority.expires - now
        if left < NOTICE and self._warned != now.date():
            self._warned = now.date()
            log.warning("the mesh's CA ends: replace it", expires=self.current.authority.expires.isoformat())


def _rest(secret: Json) -> Json:
    return {name: value for name, value in secret.items() if name != "data"}


def _as_data(authorities: Authorities) -> Json:
    return {"data": {name: b64encode(pem).decode() for name, pem in authorities.to_data().items()}}


def _data(secret: Json) -> dict[str, bytes]:
    return {name: b64decode(value) for name, value in (secret.get("data") or {}).items()}
