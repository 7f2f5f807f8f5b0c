"""Problems of the running mesh: certificates, and replicas that do not hear of each other."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.controlplane.sidecar import Sidecar
from tests.controlplane.world import AUTHORITY, NOW, pod, running, service
from tests.policy.world import rule
from tests.support.tasks import background
from tests.support.waiting import eventually
from xds.mesh.controlplane import problem_times, running_problems
from xds.mesh.controlplane.controller import Controller
from xds.mesh.controlplane.running_problems import RunningProblems
from xds.mesh.controlplane.signing import ExternalIssuer
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.model.authorization import Action, Attribute, Condition, Pattern, Rule
from xds.mesh.model.objects import AuthorizationPolicy, Change, Meta, Mode, ModePolicy, Ref
from xds.mesh.observe.edges import Client, Denial, EdgeKey, Reporter, Target, Traffic, TrafficMode
from xds.mesh.rollout.observation import Report
from xds.mesh.rollout.plan import StoredPlan
from xds.mesh.rollout.sync import ReplicaSync
from xds.mesh.sources.report import SourceUpdate
from xds.snapshot import SECRET


class Watched:
    """The problems of a controller, and what was recorded about them."""

    def __init__(self, controller: Controller, *traffic: Traffic) -> None:
        self.updates: list[SourceUpdate] = []
        self.watcher = RunningProblems(controller, lambda: traffic, self.updates.append)

    async def check(self, now=NOW) -> list[str]:
        await self.watcher.check(now)
        return [f"{problem.where}: {problem.what}" for problem in self.watcher.problems]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(problem_times, "SETTLE_TIME", 0.0)


async def test_ca_certificate_is_reported_before_it_expires():
    watched = Watched(Controller(AUTHORITY))
    expires = AUTHORITY.expires
    assert await watched.check(expires - timedelta(days=31)) == []
    (problem,) = await watched.check(expires - timedelta(days=29))
    assert problem.startswith(f"mesh CA: the CA certificate expires on {expires:%Y-%m-%d %H:%M} UTC")
    (problem,) = await watched.check(expires + timedelta(days=1))
    assert "the CA certificate expired on" in problem
    assert await watched.check() == []
    assert [len(update.solved) for update in watched.updates] == [0, 1, 1]


async def test_root_of_a_signer_is_reported_before_it_expires(tmp_path):
    (tmp_path / "roots.pem").write_bytes(AUTHORITY.certificate_pem)
    controller = Controller(
        Authority.create(PrivateKey.generate(), "cluster.local", NOW, timedelta(days=1)),
        external=ExternalIssuer(["cat"], tmp_path / "roots.pem", lambda: NOW),
    )
    expires = AUTHORITY.expires
    assert controller.certificates.stats().root_expiry == expires
    watched = Watched(controller)
    assert await watched.check(expires - timedelta(days=31)) == []
    (problem,) = await watched.check(expires - timedelta(days=29))
    assert problem.startswith(f"signer roots: a root of the external signer expires on {expires:%Y-%m-%d}")


async def test_problem_is_reported_once_it_has_lasted(monkeypatch):
    monkeypatch.setattr(problem_times, "SETTLE_TIME", 1e9)
    watched = Watched(Controller(AUTHORITY))
    assert await watched.check(AUTHORITY.expires) == []
    assert not watched.updates
    monkeypatch.setattr(problem_times, "SETTLE_TIME", 0.0)
    assert len(await watched.check(AUTHORITY.expires)) == 1


async def test_failed_check_is_logged_once_and_retried(monkeypatch):
    monkeypatch.setattr(running_problems, "CHECK_INTERVAL", 0.001)
    checks = []

    def failing_traffic() -> tuple[Traffic, ...]:
        checks.append(None)
        raise RuntimeError("a bug")

    async with running(pod("web"), service("web")) as controller:
        watcher = RunningProblems(controller, failing_traffic, lambda update: None)
        with capture_logs() as logs:
            async with background(watcher.run()):
                await eventually(lambda: len(checks) > 2)
    assert [(entry["log_level"], entry["problem"]) for entry in logs] == [("error", "RuntimeError: a bug")]
    assert "in failing_traffic" in logs[0]["stack"]


async def test_certificate_that_is_not_renewed_is_reported(monkeypatch):
    monkeypatch.setattr(running_problems, "MAX_SIDECARS", 1)
    async with (
        running(pod("web"), pod("other"), service("web")) as controller,
        Sidecar(controller, "web", "shop") as web,
        Sidecar(controller, "other", "shop") as other,
    ):
        for sidecar in (web, other):
            await sidecar.wait_for(lambda sidecar=sidecar: "default" in sidecar.secrets)
        watched = Watched(controller)
        # Renewal is due after 12 h, and expiry after 24 h.
        assert await watched.check(NOW + timedelta(hours=17)) == []
        problem, more = await watched.check(NOW + timedelta(hours=19))
        assert problem.startswith("Pod shop/web: the certificate expires on ")
        assert problem.endswith(" UTC and is not renewed")
        assert more == "sidecars: further sidecars have such certificates"
        assert watched.watcher.problems[0].subject == "Pod shop/web"


async def test_certificate_that_is_not_acked_is_reported(monkeypatch):
    async with running(pod("web"), service("web")) as controller:
        web = Sidecar(controller, "web", "shop")
        web.hold(SECRET)
        async with web:
            await web.wait_for(lambda: web.held(SECRET))
            watched = Watched(controller)
            assert await watched.check() == []
            monkeypatch.setattr(running_problems, "UNACKED_TIME", 0.0)
            (problem,) = await watched.check()
            assert problem == (
                "Pod shop/web: the sidecar has not ACKed its latest certificate for more than a minute"
            )


async def test_replicas_that_do_not_hear_of_each_other_are_reported():
    controller, sync = Controller(AUTHORITY), ReplicaSync("this", lambda: True)
    assert controller.enable_sync(sync)
    watched = Watched(controller)
    (problem,) = await watched.check()
    assert problem.startswith("replica this: this replica cannot renew its Lease")

    now = asyncio.get_running_loop().time()
    sync.reports.renewed(now, now)
    assert await watched.check() == []
    sync.plan_read("1", StoredPlan(3, members=frozenset({"this", "other"})))
    sync.reports.receive("other", "1", Report(generation=2), 15.0, now)
    (problem,) = await watched.check()
    assert problem.startswith("replica other: it serves an earlier generation than the plan")
    sync.reports.receive("other", "2", Report(generation=3), -1.0, now)
    (problem,) = await watched.check()
    assert problem.startswith("replica other: its report has expired")
    sync.reports.forget("other")
    controller.rollouts.follower.is_alone = True
    controller.rollouts.follower.can_follow = False
    alone, behind = await watched.check()
    assert "follows its own plan" in alone
    assert "DestinationRule that this replica has not read" in behind


def _failed(traffic: Traffic, client: Client, *, port: int = 80, seen: float) -> None:
    key = EdgeKey(client, Target("shop", "web", port), TrafficMode.PLAINTEXT)
    traffic.add(key, Reporter.CLIENT, ("shop", "web"), requests=6, failed=6, now=seen)


async def test_requests_that_policies_make_fail_are_reported(monkeypatch):
    monkeypatch.setattr(running_problems, "MAX_FAILING", 1)
    traffic, seen = Traffic(), NOW.timestamp()
    _failed(traffic, Client("shop", "frontend"), seen=seen)
    _failed(traffic, Client("shop", "web"), seen=seen)
    # Not reported: an address outside the mesh, an account without pods, and a port that no longer exists.
    _failed(traffic, Client("", "10.0.0.9"), seen=seen)
    _failed(traffic, Client("shop", "gone"), seen=seen)
    _failed(traffic, Client("shop", "frontend"), port=81, seen=seen)
    plaintext = rule("shop", "web.shop.svc.cluster.local", "DISABLE")
    strict = ModePolicy(meta=Meta(ref=Ref("PeerAuthentication", "shop", "strict")), mode=Mode.STRICT)
    frontend = pod("frontend", account="frontend")
    facts = (pod("web"), frontend, service("web"), plaintext, strict)
    async with running(*facts) as controller:
        watched = Watched(controller, traffic)
        (problem,) = await watched.check()
        assert problem == (
            "Service shop/web: requests of shop/frontend to port 80 fail: "
            "the client sends plaintext, but the server accepts mutual TLS only"
        )
        assert watched.watcher.problems[0].hint == "see xds explain frontend.shop web.shop:80"
        # Five minutes without a failed request, or policies that allow them.
        later = NOW + timedelta(minutes=6)
        assert await watched.check(later) == []
        _failed(traffic, Client("shop", "frontend"), seen=later.timestamp())
        assert await watched.check(later) == [problem]
        controller.change(Change(removed=(plaintext.ref,)))
        await eventually(lambda: controller.mesh.get(plaintext.ref) is None)
        assert await watched.check(later) == []


@pytest.mark.parametrize(
    ("denial", "rules", "is_reported"),
    [
        (Denial("", "GET", "/"), (), True),
        (Denial("", "GET", "/", dry_run=True), (), False),
        # Other requests of the client are allowed.
        (
            Denial("", "GET", "/"),
            (Rule(operations=((Condition(Attribute.METHOD, (Pattern.parse("PUT"),)),),)),),
            False,
        ),
    ],
)
async def test_clients_of_which_everything_is_denied_are_reported(denial, rules, is_reported):
    traffic, seen = Traffic(), NOW.timestamp()
    key = EdgeKey(Client("shop", "frontend"), Target("shop", "web", 80), TrafficMode.MTLS, denial)
    traffic.add(key, Reporter.SERVER, ("shop", "web"), requests=1, now=seen)
    policy = AuthorizationPolicy(
        meta=Meta(ref=Ref("AuthorizationPolicy", "shop", "rules")), action=Action.ALLOW, rules=rules
    )
    async with running(pod("web"), pod("frontend", account="frontend"), service("web"), policy) as controller:
        watched = Watched(controller, Traffic(), traffic)
        expected = ["Service shop/web: requests of shop/frontend to port 80 fail: "]
        assert [problem[: len(expected[0])] for problem in await watched.check()] == expected * is_reported
        assert await watched.check(NOW + timedelta(minutes=6)) == []
