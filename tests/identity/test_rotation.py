"""The steps of a CA rotation. Each can be stored and resumed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tests.identity.companies import Company, key_pem, pem
from xds.mesh.identity import chain
from xds.mesh.identity.ca import LEAF_LIFETIME, Authority, Leaf
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.rotation import DEFAULT_TIMING, Authorities, Stage, read_authority, read_user_authority

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OLD, NEW = (Authority.create(PrivateKey.generate(), "cluster.local", NOW) for _ in range(2))
STEADY = Authorities(authority=OLD)
SPREADING = STEADY.begin(NEW, NOW)
RETIRING = SPREADING.advance(NOW + DEFAULT_TIMING.spread, is_trusted_everywhere=True)


def test_spreading_trusts_the_new_root_before_it_issues() -> None:
    assert SPREADING.stage is Stage.SPREADING
    assert SPREADING.authority is OLD
    assert SPREADING.extra_roots == (NEW.root_pem,)
    assert SPREADING.trusted_pem == OLD.root_pem + NEW.root_pem


def test_retiring_issues_from_the_new_ca_and_trusts_both() -> None:
    assert RETIRING.stage is Stage.RETIRING
    assert RETIRING.authority is NEW
    assert RETIRING.extra_roots == (OLD.root_pem,)
    assert RETIRING.since == NOW + DEFAULT_TIMING.spread


def test_rotation_ends_without_the_old_root() -> None:
    done = RETIRING.advance(NOW + DEFAULT_TIMING.spread + DEFAULT_TIMING.retire, is_trusted_everywhere=True)
    assert done == Authorities(authority=NEW, bridges=RETIRING.bridges)
    assert done.stage is Stage.STEADY
    assert done.extra_roots == ()


def test_old_root_is_trusted_longer_than_its_leaves_live() -> None:
    assert DEFAULT_TIMING.retire > LEAF_LIFETIME


@pytest.mark.parametrize(
    ("at", "after", "is_trusted_everywhere"),
    [
        (STEADY, timedelta(days=365), True),
        (SPREADING, DEFAULT_TIMING.spread - MINUTE, True),
        (SPREADING, DEFAULT_TIMING.give_up - MINUTE, False),
        (RETIRING, DEFAULT_TIMING.spread + DEFAULT_TIMING.retire - MINUTE, True),
    ],
    ids=["nothing to do", "too early", "a proxy lags", "old certificates are valid"],
)
def test_no_step_happens_early(at: Authorities, after: timedelta, is_trusted_everywhere: bool) -> None:
    assert at.advance(NOW + after, is_trusted_everywhere=is_trusted_everywhere) is at


def test_lagging_proxy_blocks_rotation_only_until_timeout() -> None:
    assert SPREADING.advance(NOW + DEFAULT_TIMING.give_up, is_trusted_everywhere=False).authority is NEW


@pytest.mark.parametrize("kept", [STEADY, SPREADING, RETIRING], ids=lambda kept: kept.stage.value)
def test_rotation_state_round_trips(kept: Authorities) -> None:
    read = Authorities.from_data(kept.to_data(), NOW)
    assert read.to_data() == kept.to_data()
    assert (read.stage, read.since, read.trusted) == (kept.stage, kept.since, kept.trusted)
    assert read.authority.certificate == kept.authority.certificate


def verify_with_only(root: Authority, leaf: Leaf, bridges: bytes) -> None:
    cert, *between = x509.load_pem_x509_certificates(leaf.chain + bridges)
    verifier = (
        PolicyBuilder()
        .store(Store(root.roots))
        .time(NOW + DEFAULT_TIMING.spread)
        .build_server_verifier(x509.DNSName("xds.svc"))
    )
    verifier.verify(cert, between)


def test_bridges_verify_the_server_with_older_roots() -> None:
    third = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    twice = RETIRING.begin(third, NOW).advance(NOW + DEFAULT_TIMING.spread, is_trusted_everywhere=True)
    for kept, roots in ((STEADY, [OLD]), (RETIRING, [OLD, NEW]), (twice, [OLD, NEW, third])):
        leaf = kept.authority.issue_server(["xds.svc"], NOW)
        for root in roots:
            verify_with_only(root, leaf, kept.bridges_pem)
    with pytest.raises(VerificationError):
        verify_with_only(OLD, third.issue_server(["xds.svc"], NOW), b"")


def test_bridge_connects_intermediates() -> None:
    first, second = Company.root("First", NOW), Company.root("Second", NOW)
    below = first.subsidiary("Below the first")
    old = Authority.load(pem(below), key_pem(below), NOW, root=pem(first))
    issuing = second.subsidiary("Below the second", pathlen=0)
    new = Authority.load(pem(issuing), key_pem(issuing), NOW, root=pem(second))
    bridge = old.bridge(new, NOW)
    assert len(chain.read(bridge)) == 2
    verify_with_only(old, new.issue_server(["xds.svc"], NOW), bridge)


@pytest.mark.parametrize("pathlen", [0, 1])
def test_path_length_limit_prevents_a_bridge(pathlen: int) -> None:
    root, other = Company.root("Root", NOW, pathlen=pathlen), Company.root("Other", NOW)
    issuing = other.subsidiary("Issuing")
    old = Authority.load(pem(root), key_pem(root), NOW)
    new = Authority.load(pem(issuing), key_pem(issuing), NOW, root=pem(other))
    assert (old.bridge(new, NOW) == b"") is (pathlen < 2)
    assert (
        Authorities(authority=old)
        .begin(new, NOW)
        .advance(NOW + DEFAULT_TIMING.spread, is_trusted_everywhere=True)
        .bridges
        == ()
    )


def test_expired_bridge_is_removed() -> None:
    short = Authority.create(PrivateKey.generate(), "cluster.local", NOW, timedelta(days=1))
    once = (
        Authorities(authority=short)
        .begin(NEW, NOW)
        .advance(NOW + DEFAULT_TIMING.spread, is_trusted_everywhere=True)
    )
    assert len(once.bridges) == 1
    later = NOW + timedelta(days=2)
    third = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    again = once.begin(third, later).advance(later + DEFAULT_TIMING.spread, is_trusted_everywhere=True)
    assert [certificate.issuer for certificate in again.bridges] == [NEW.certificate.subject]


def test_intermediate_is_stored_with_its_chain_and_all_roots() -> None:
    root, other = Company.root("Root", NOW), Company.root("Other", NOW)
    issuing = root.subsidiary("Issuing", pathlen=0)
    ca = Authority.load(pem(issuing), key_pem(issuing), NOW, root=pem(other) + pem(root))
    read = read_authority(Authorities(authority=ca).to_data(), NOW)
    assert read.issuers == (root.certificate,)
    assert read.roots == (root.certificate, other.certificate)


def test_new_intermediate_of_the_same_root_issues_at_once() -> None:
    root = Company.root("Root", NOW)
    first, second = (
        Authority.load(pem(company), key_pem(company), NOW, root=pem(root))
        for company in (root.subsidiary("First"), root.subsidiary("Second"))
    )
    changed = Authorities(authority=first).begin(second, NOW)
    assert changed == Authorities(authority=second)


def test_return_to_a_trusted_root_is_immediate() -> None:
    back = RETIRING.begin(OLD, NOW)
    assert back.authority is OLD
    assert len(back.bridges) == 2
    assert back.extra_roots == (NEW.root_pem,)
    assert back.stage is Stage.RETIRING


def test_another_ca_during_spreading_restarts_the_step() -> None:
    third = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    changed = SPREADING.begin(third, NOW + MINUTE)
    assert changed.authority is OLD
    assert changed.extra_roots == (third.root_pem,)
    assert changed.since == NOW + MINUTE
    # Even if the new CA's root is spreading already: not all proxies may trust it yet.
    assert SPREADING.begin(NEW, NOW + MINUTE).stage is Stage.SPREADING


def test_rotation_during_retiring_keeps_three_roots() -> None:
    third = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    begun = RETIRING.begin(third, NOW)
    assert begun.extra_roots == (third.root_pem, OLD.root_pem)
    further = begun.advance(NOW + DEFAULT_TIMING.spread, is_trusted_everywhere=True)
    assert further.authority is third
    assert further.extra_roots == (NEW.root_pem, OLD.root_pem)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ca-key.pem": None}, "ca-key.pem is missing"),
        ({"ca-cert.pem": b" "}, "ca-cert.pem is missing"),
        ({"next-ca-key.pem": None}, "next-ca-key.pem is missing"),
        ({"rotation-since": None}, "rotation-since is missing or not an ISO 8601 time"),
        ({"rotation-since": b"yesterday"}, "rotation-since is missing or not an ISO 8601 time"),
        ({"rotation-since": b"2030-01-01T12:00:00"}, "rotation-since has no time zone"),
        ({"ca-key.pem": NEW.key.to_pem()}, "to different CAs"),
    ],
)
def test_damaged_state_is_rejected_with_the_reason(change: dict[str, bytes | None], complaint: str) -> None:
    data = {name: value for name, value in (SPREADING.to_data() | change).items() if value is not None}
    with pytest.raises(IdentityError, match=complaint) as refusal:
        Authorities.from_data(data, NOW)
    assert "PRIVATE" not in str(refusal.value)


def test_repr_hides_keys() -> None:
    for line in SPREADING.authority.key.to_pem().splitlines()[1:2]:
        assert line.decode() not in repr(SPREADING)


def test_bundle_has_no_duplicate_certificates() -> None:
    assert chain.bundle([OLD.root_pem, NEW.root_pem + OLD.root_pem]) == OLD.root_pem + NEW.root_pem


def test_users_ca_has_the_form_of_istio_or_cert_manager() -> None:
    root = Company.root("Root", NOW)
    issuing = root.subsidiary("Issuing")
    istio = {
        "ca-cert.pem": pem(issuing),
        "ca-key.pem": key_pem(issuing),
        "root-cert.pem": pem(root),
        "cert-chain.pem": pem(issuing),
    }
    manager = {"tls.crt": pem(issuing), "tls.key": key_pem(issuing), "ca.crt": pem(root)}
    one, other = (read_user_authority(data, NOW) for data in (istio, manager))
    assert (one.certificate, one.roots) == (other.certificate, other.roots)
    with pytest.raises(IdentityError, match=r"both tls.crt and ca-cert.pem"):
        read_user_authority(istio | manager, NOW)
    with pytest.raises(IdentityError, match=r"tls.crt is missing"):
        read_user_authority({"tls.key": key_pem(issuing)}, NOW)
