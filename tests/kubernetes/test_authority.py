"""The CA in a Secret: shared by all replicas, replaceable by the user's CA, and never logged."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from tests.identity.companies import Company, key_pem, pem
from tests.kubernetes.environment.cluster import Cluster
from tests.kubernetes.secret_objects import put
from tests.support.tasks import background
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.rotation import Authorities, Stage, Timing
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.ca_secret import (
    SECRET,
    USER_SECRET,
    AuthorityError,
    CaSecrets,
    RotationController,
    load_or_create_authorities,
)

NOW = datetime.now(UTC)
RULES = [
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET, USER_SECRET], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["update"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
]
"""The rights that the module documents."""


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    async with cluster.namespace("ca") as name:
        yield name


async def users_ca(cluster: Cluster, namespace: str, company: Company, root: Company) -> None:
    """Put a CA into `cacerts` as in Istio's documentation."""
    data = {
        "ca-cert.pem": pem(company),
        "ca-key.pem": key_pem(company),
        "root-cert.pem": pem(root),
        "cert-chain.pem": pem(company) + pem(root),
    }
    await put(cluster, namespace, USER_SECRET, data)


async def kept(cluster: Cluster, namespace: str) -> dict[str, bytes]:
    secret = await cluster.api.get(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    return {name: b64decode(value) for name, value in secret["data"].items()}


async def authorities(api: KubeApi, namespace: str) -> Authorities:
    return await load_or_create_authorities(api, namespace, "cluster.local", NOW)


async def test_ten_concurrent_replicas_agree_on_one_root(cluster: Cluster, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(await cluster.connect()) for _ in range(10)]
        states = await asyncio.gather(*(authorities(api, namespace) for api in replicas))
    assert len({item.authority.certificate_pem for item in states}) == 1
    assert len({item.authority.key.to_pem() for item in states}) == 1
    assert (await kept(cluster, namespace))["ca-cert.pem"] == states[0].authority.certificate_pem
    # A later replica gets the same root.
    assert (await authorities(cluster.api, namespace)).authority.root_pem == states[0].authority.root_pem


async def test_documented_rights_suffice(cluster: Cluster, namespace: str) -> None:
    await cluster.allow(f"ca-{namespace}", RULES, namespace)
    async with await cluster.connect(f"ca-{namespace}") as api:
        await until_allowed(api, namespace)
        await authorities(api, namespace)
        root = Company.root("Root", NOW)
        await users_ca(cluster, namespace, root, root)
        assert (await authorities(api, namespace)).stage is Stage.SPREADING


async def until_allowed(api: KubeApi, namespace: str) -> None:
    """Wait until RBAC has seen the new binding."""
    async with asyncio.timeout(30):
        while True:
            try:
                await CaSecrets(api, namespace).read(NOW)
            except KubeError as error:
                if error.status != 403:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def test_forbidden_secret_is_an_error(cluster: Cluster, namespace: str) -> None:
    async with await cluster.connect("nobody") as api:
        with pytest.raises(KubeError, match=r'cannot get resource "secrets"'):
            await authorities(api, namespace)


async def test_user_ca_is_used_with_its_chain(cluster: Cluster, namespace: str) -> None:
    root = Company.root("Root", NOW, key=rsa.generate_private_key(65537, 4096))
    issuing = root.subsidiary("Issuing", pathlen=0, key=rsa.generate_private_key(65537, 4096))
    await users_ca(cluster, namespace, issuing, root)
    state = await authorities(cluster.api, namespace)
    assert state.authority.certificate == issuing.certificate
    assert state.authority.root_pem == pem(root)
    assert state.stage is Stage.STEADY
    # Another replica gets the same CA, both from our copy and from the user's Secret.
    await cluster.api.delete(f"/api/v1/namespaces/{namespace}/secrets/{USER_SECRET}")
    again = await authorities(cluster.api, namespace)
    assert again.authority.certificate == issuing.certificate
    assert again.authority.issuers == (root.certificate,)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("ca-key.pem", None, "ca-key.pem is missing"),
        (
            "ca-key.pem",
            b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
            "not a PEM private key",
        ),
        ("root-cert.pem", b"nothing", "not a PEM certificate"),
        ("root-cert.pem", pem(Company.root("Other", NOW)), "does not lead to the root"),
        (
            "ca-cert.pem",
            pem(Company.root("Other", NOW - timedelta(days=1000))),
            "to different CAs|expired",
        ),
    ],
)
async def test_bad_user_ca_is_refused_with_a_hint(
    cluster: Cluster, namespace: str, name: str, value: bytes | None, complaint: str
) -> None:
    root = Company.root("Root", NOW)
    data = {"ca-cert.pem": pem(root), "ca-key.pem": key_pem(root), "root-cert.pem": pem(root), name: value}
    await put(
        cluster, namespace, USER_SECRET, {key: value for key, value in data.items() if value is not None}
    )
    with pytest.raises(AuthorityError, match=complaint) as refusal:
        await authorities(cluster.api, namespace)
    assert f"{namespace}/cacerts" in str(refusal.value)
    assert f"kubectl -n {namespace} delete secret cacerts" in str(refusal.value)
    assert "c2VjcmV0" not in str(refusal.value)
    with pytest.raises(KubeError) as missing:
        await kept(cluster, namespace)
    assert missing.value.is_not_found


CERT_MANAGER_ROOT = Company.root("Root", NOW)
CERT_MANAGER_CA = CERT_MANAGER_ROOT.subsidiary("Policy").subsidiary("Issuing")
LEAF = CERT_MANAGER_ROOT.subsidiary("Leaf", ca=False)
EXPIRED = CERT_MANAGER_ROOT.subsidiary("Expired", lifetime=timedelta(microseconds=1))


async def test_ca_of_cert_manager_is_used_with_its_chain(cluster: Cluster, namespace: str) -> None:
    root = Company.root("Root", NOW)
    policy = root.subsidiary("Policy", pathlen=1)
    issuing = policy.subsidiary("Issuing", pathlen=0)
    data = {"tls.crt": pem(issuing) + pem(policy), "tls.key": key_pem(issuing), "ca.crt": pem(root)}
    await put(cluster, namespace, USER_SECRET, data, kind="kubernetes.io/tls")
    state = await authorities(cluster.api, namespace)
    assert state.authority.certificate == issuing.certificate
    assert state.authority.issuers == (policy.certificate, root.certificate)
    assert state.stage is Stage.STEADY


async def test_self_signed_ca_of_cert_manager_is_used(cluster: Cluster, namespace: str) -> None:
    root = Company.root("Root", NOW)
    data = {"tls.crt": pem(root), "tls.key": key_pem(root), "ca.crt": pem(root)}
    await put(cluster, namespace, USER_SECRET, data, kind="kubernetes.io/tls")
    assert (await authorities(cluster.api, namespace)).authority.root == root.certificate


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"ca.crt": b""}, "ca.crt is missing"),
        ({"tls.key": b""}, "tls.key is missing"),
        ({"tls.key": key_pem(CERT_MANAGER_ROOT)}, "the private key does not match the certificate"),
        ({"tls.crt": pem(LEAF), "tls.key": key_pem(LEAF)}, "is not a CA certificate: .*CA:FALSE"),
        ({"tls.crt": pem(EXPIRED), "tls.key": key_pem(EXPIRED)}, "the certificate expired at"),
        ({}, "the chain does not lead to the root: .*signed the certificate CN=Issuing"),
        ({"ca-cert.pem": b"x"}, "it contains both tls.crt and ca-cert.pem: keep one of the forms"),
    ],
)
async def test_bad_ca_of_cert_manager_is_refused_with_a_hint(
    cluster: Cluster, namespace: str, changed: dict[str, bytes], complaint: str
) -> None:
    ca = CERT_MANAGER_CA
    data = {"tls.crt": pem(ca), "tls.key": key_pem(ca), "ca.crt": pem(CERT_MANAGER_ROOT)} | changed
    await put(cluster, namespace, USER_SECRET, data)
    with pytest.raises(AuthorityError, match=complaint) as refusal:
        await authorities(cluster.api, namespace)
    assert f"{namespace}/cacerts" in str(refusal.value)
    assert "tls.crt, tls.key and ca.crt" in str(refusal.value)


async def test_damaged_ca_secret_is_refused_with_a_hint(cluster: Cluster, namespace: str) -> None:
    await put(cluster, namespace, SECRET, {"ca-cert.pem": pem(Company.root("Root", NOW))})
    with pytest.raises(AuthorityError, match=rf"{namespace}/{SECRET}.*ca-key.pem is missing.*delete secret"):
        await authorities(cluster.api, namespace)


async def test_keys_are_not_logged(cluster: Cluster, namespace: str) -> None:
    with capture_logs() as logs:
        state = await authorities(cluster.api, namespace)
        root = Company.root("Root", NOW)
        await users_ca(cluster, namespace, root, root)
        await authorities(cluster.api, namespace)
    assert len(logs) == 2
    for key in (state.authority.key.to_pem(), key_pem(root)):
        assert key.splitlines()[1].decode() not in str(logs)


# --- rotation -----------------------------------------------------------------------------------------------


class Replica:
    """A replica that follows the Secret, and the authorities it was given."""

    def __init__(self, api: KubeApi, namespace: str, first: Authorities, **how: Any) -> None:
        self.changes: list[Authorities] = []
        self.lagging: Sequence[str] = ()
        self.leads = True
        self.time = NOW
        self.rotation = RotationController(
            CaSecrets(api, namespace),
            first,
            on_change=self.changes.append,
            lagging=lambda: self.lagging,
            leads=lambda: self.leads,
            now=lambda: self.time,
            timing=Timing(timedelta(minutes=1), timedelta(hours=1), timedelta(hours=2)),
            **how,
        )

    async def look(self, after: timedelta = timedelta()) -> Stage:
        self.time += after
        await self.rotation.sync()
        return self.rotation.current.stage


async def replicas(cluster: Cluster, namespace: str) -> tuple[Replica, Replica]:
    first = await authorities(cluster.api, namespace)
    leader, follower = (Replica(cluster.api, namespace, first) for _ in range(2))
    follower.leads = False
    return leader, follower


async def test_any_replica_continues_the_rotation_to_a_new_user_ca(cluster: Cluster, namespace: str) -> None:
    leader, follower = await replicas(cluster, namespace)
    old = leader.rotation.current.authority
    root = Company.root("Root", NOW)
    issuing = root.subsidiary("Issuing")
    await users_ca(cluster, namespace, issuing, root)

    assert await follower.look() is Stage.STEADY  # only the leader writes
    assert await leader.look() is Stage.SPREADING
    assert await follower.look() is Stage.SPREADING
    for replica in (leader, follower):
        assert replica.changes[-1].authority.certificate == old.certificate
        assert replica.changes[-1].extra_roots == (pem(root),)

    # The leader is gone. The follower continues and waits for its own proxies.
    follower.leads, follower.lagging = True, ["sidecar~10.0.0.1~a.b~b.svc.cluster.local"]
    with capture_logs() as logs:
        assert await follower.look(timedelta(seconds=30)) is Stage.SPREADING
        assert logs == []
        assert await follower.look(timedelta(minutes=2)) is Stage.SPREADING
        assert await follower.look() is Stage.SPREADING
    assert [(entry["count"], entry["first"]) for entry in logs] == [(1, follower.lagging[0])]
    follower.lagging = ()
    assert await follower.look() is Stage.RETIRING
    assert follower.changes[-1].authority.certificate == issuing.certificate
    assert follower.changes[-1].extra_roots == (old.root_pem,)

    # A new replica reads the same state.
    started = await authorities(cluster.api, namespace)
    assert started.to_data() == follower.changes[-1].to_data()

    assert await follower.look(timedelta(hours=3)) is Stage.STEADY
    assert follower.changes[-1].trusted_pem == pem(root)
    assert len(follower.changes) == 3
    assert await follower.look() is Stage.STEADY
    assert len(follower.changes) == 3


async def test_ca_expiry_is_logged_daily(cluster: Cluster, namespace: str) -> None:
    root = Company.root("Root", NOW, lifetime=timedelta(days=120))
    await users_ca(cluster, namespace, root, root)
    _, follower = await replicas(cluster, namespace)
    events = []
    for after in (0, 85, 6, 0, 1):
        with capture_logs() as logs:
            await follower.look(timedelta(days=after))
        events.append([entry["event"] for entry in logs])
    assert events == [[], [], ["mesh CA certificate expires soon"], [], ["mesh CA certificate expires soon"]]


async def test_bad_user_ca_does_not_affect_a_running_replica(cluster: Cluster, namespace: str) -> None:
    leader, _ = await replicas(cluster, namespace)
    before = await kept(cluster, namespace)
    await put(cluster, namespace, USER_SECRET, {"ca-cert.pem": b"x"})
    with pytest.raises(AuthorityError):
        await leader.look()
    assert await kept(cluster, namespace) == before
    assert leader.changes == []


async def test_deleted_secret_is_restored(cluster: Cluster, namespace: str) -> None:
    leader, follower = await replicas(cluster, namespace)
    before = await kept(cluster, namespace)
    await cluster.api.delete(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    await follower.look()
    assert await kept(cluster, namespace) == before
    await leader.look()
    assert leader.changes == []


async def test_foreign_fields_of_the_secret_are_kept(cluster: Cluster, namespace: str) -> None:
    ca = Company.root("Root", NOW)
    await put(cluster, namespace, SECRET, {"ca-cert.pem": pem(ca), "ca-key.pem": key_pem(ca)})
    path = f"/api/v1/namespaces/{namespace}/secrets/{SECRET}"
    await cluster.api.patch(path, {"metadata": {"labels": {"backup": "nightly"}}})
    leader, _ = await replicas(cluster, namespace)
    other = Company.root("Other", NOW)
    await users_ca(cluster, namespace, other, other)
    assert await leader.look() is Stage.SPREADING
    secret = await cluster.api.get(path)
    assert secret["metadata"]["labels"] == {"backup": "nightly"}
    assert secret["type"] == "Opaque"
    kept_now = await leader.rotation._secrets.read(NOW)
    assert key_pem(ca).splitlines()[1].decode() not in repr(kept_now)
    assert "PRIVATE" not in repr(kept_now)


async def test_concurrent_writes_do_not_overwrite_each_other(cluster: Cluster, namespace: str) -> None:
    leader, other = await replicas(cluster, namespace)
    other.leads = True
    root = Company.root("Root", NOW)
    await users_ca(cluster, namespace, root, root)
    await asyncio.gather(leader.look(), other.look())
    await asyncio.gather(leader.look(), other.look())
    assert leader.rotation.current.to_data() == other.rotation.current.to_data()
    assert leader.rotation.current.extra_roots == (pem(root),)


async def test_controller_runs_periodically_and_logs_errors_once(cluster: Cluster, namespace: str) -> None:
    first = await authorities(cluster.api, namespace)
    changed = asyncio.Event()
    follower = Replica(cluster.api, namespace, first, poll_interval=0.01)
    follower.rotation._on_change = lambda _: changed.set()
    looks = 0
    sync = follower.rotation.sync

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await sync()

    follower.rotation.sync = counted
    await put(cluster, namespace, USER_SECRET, {"ca-cert.pem": b"x"})
    with capture_logs() as logs:
        async with background(follower.rotation.run()), asyncio.timeout(30):
            while looks < 5:
                await asyncio.sleep(0.01)
            root = Company.root("Root", NOW)
            await users_ca(cluster, namespace, root, root)
            await changed.wait()
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert len(errors) == 1
    assert "ca-key.pem is missing" in errors[0]["problem"]


async def test_created_ca_has_the_trust_domain(cluster: Cluster, namespace: str) -> None:
    made = await load_or_create_authorities(cluster.api, namespace, "prod.example", NOW)
    assert isinstance(made.authority, Authority)
    assert "prod.example" in made.authority.certificate.subject.rfc4514_string()
