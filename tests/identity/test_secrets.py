"""What SDS gives to each pod, and when it changes."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret

from tests.identity.companies import Company, key_pem, pem
from xds.mesh.identity.ca import Authority, Leaf
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.secrets import Issuer, certificate_secret, roots_secret
from xds.mesh.model.objects import Meta, Pod, Ref
from xds.snapshot import SECRET, Resource

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HALF_LIFE = timedelta(hours=12)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(PrivateKey.generate(), "cluster.local", NOW)


@pytest.fixture
def issuer(authority: Authority) -> Issuer:
    return Issuer(authority)


def pod(
    name: str = "sleep-1",
    namespace: str = "full",
    service_account: str = "sleep",
    created: datetime | None = None,
    uid: str = "",
) -> Pod:
    meta = Meta(ref=Ref("Pod", namespace, name), created=created, uid=uid)
    return Pod(meta=meta, service_account=service_account)


def secret(resource: Resource) -> Secret:
    return Secret.parse(resource.body)


def key_of(resource: Resource) -> bytes:
    return secret(resource).tls_certificate.private_key.inline_bytes


def leaf_of(resource: Resource) -> x509.Certificate:
    return x509.load_pem_x509_certificate(secret(resource).tls_certificate.certificate_chain.inline_bytes)


def identity_of(resource: Resource) -> str:
    names = leaf_of(resource).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)[0]


def test_a_pod_gets_its_certificate_with_the_key_of_it_and_the_root(
    authority: Authority, issuer: Issuer
) -> None:
    default, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert (default.type_url, default.name) == (SECRET, "default")
    assert secret(default).name == "default"
    assert identity_of(default) == "spiffe://cluster.local/ns/full/sa/sleep"
    key = serialization.load_pem_private_key(key_of(default), None)
    assert key.public_key() == leaf_of(default).public_key()
    leaf_of(default).verify_directly_issued_by(authority.certificate)
    assert (roots.type_url, roots.name) == (SECRET, "ROOTCA")
    assert secret(roots).name == "ROOTCA"
    assert secret(roots).validation_context.trusted_ca.inline_bytes == authority.certificate_pem


def test_the_certificates_version_is_its_fingerprint_and_owes_nothing_to_the_key(issuer: Issuer) -> None:
    default, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert leaf_of(default).fingerprint(hashes.SHA256()).hex().startswith(default.version)
    assert len(default.version) == 16


def test_a_secret_shows_no_key(issuer: Issuer) -> None:
    default, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    line = key_of(default).splitlines()[1].decode()
    for shown in (repr(default), str(default), repr(issuer), repr(issuer._issued)):
        assert line not in shown
        assert "PRIVATE" not in shown


def test_the_same_is_given_until_half_its_life_is_over_then_a_new_key(issuer: Issuer) -> None:
    first, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert issuer.renew_at(pod()) == NOW + HALF_LIFE
    before = NOW + HALF_LIFE - timedelta(seconds=1)
    assert issuer.secrets_for(pod(), "cluster.local", before)[0] is first
    second, same_roots = issuer.secrets_for(pod(), "cluster.local", NOW + HALF_LIFE)
    assert key_of(second) != key_of(first)
    assert second.version != first.version
    assert same_roots is roots
    assert issuer.renew_at(pod()) == NOW + 2 * HALF_LIFE


def test_a_clock_that_was_set_back_gets_a_certificate_that_is_valid_now(issuer: Issuer) -> None:
    later, _ = issuer.secrets_for(pod(), "cluster.local", NOW + timedelta(days=3))
    earlier, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert earlier.version != later.version
    assert leaf_of(earlier).not_valid_before_utc < NOW


def test_a_lifetime_can_be_chosen(authority: Authority) -> None:
    issuer = Issuer(authority, lifetime=timedelta(minutes=2))
    issuer.secrets_for(pod(), "cluster.local", NOW)
    assert issuer.renew_at(pod()) == NOW + timedelta(minutes=1)


def test_no_two_pods_share_a_key_not_even_of_one_service_account(issuer: Issuer) -> None:
    pods = [pod("a"), pod("b"), pod("a", "legacy"), pod("c")]
    keys = {key_of(issuer.secrets_for(each, "cluster.local", NOW)[0]) for each in pods}
    assert len(keys) == len(pods)


@pytest.mark.parametrize(
    ("successor", "trust_domain"),
    [
        (pod(service_account="other"), "cluster.local"),
        (pod(), "prod.example"),
        (pod(created=NOW), "cluster.local"),
        (pod(uid="2"), "cluster.local"),
    ],
    ids=[
        "another service account",
        "another trust domain",
        "another pod of the same name",
        "within a second",
    ],
)
def test_a_pod_that_is_somebody_else_now_gets_a_key_of_its_own(
    issuer: Issuer, successor: Pod, trust_domain: str
) -> None:
    first, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    second, _ = issuer.secrets_for(successor, trust_domain, NOW)
    assert key_of(first) != key_of(second)
    assert identity_of(second) == successor.identity(trust_domain)


def test_a_pod_that_is_gone_is_forgotten_with_its_key(issuer: Issuer) -> None:
    first, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    issuer.forget(pod())
    issuer.forget(pod("never-known"))
    assert issuer.renew_at(pod()) is None
    assert key_of(issuer.secrets_for(pod(), "cluster.local", NOW)[0]) != key_of(first)


def test_two_issuers_of_one_root_never_give_the_same_key(authority: Authority) -> None:
    keys = {key_of(Issuer(authority).secrets_for(pod(), "cluster.local", NOW)[0]) for _ in range(2)}
    assert len(keys) == 2


def test_an_expired_root_is_an_error_that_says_so(issuer: Issuer) -> None:
    with pytest.raises(IdentityError, match="root certificate expired"):
        issuer.secrets_for(pod(), "cluster.local", NOW + timedelta(days=4000))


def test_several_roots_are_trusted_each_once_and_the_version_is_the_contents(authority: Authority) -> None:
    old = Authority.create(PrivateKey.generate(), "cluster.local", NOW).certificate_pem
    new = authority.certificate_pem
    both = roots_secret([new, old, new])
    bundle = secret(both).validation_context.trusted_ca.inline_bytes
    assert bundle == new + old
    assert len(x509.load_pem_x509_certificates(bundle)) == 2
    assert both == roots_secret([new.strip(), old])
    assert both.version != roots_secret([new]).version
    _, given = Issuer(authority, extra_roots=[old]).secrets_for(pod(), "cluster.local", NOW)
    assert given == both


def test_the_version_of_a_leaf_is_the_same_wherever_it_is_encoded(authority: Authority) -> None:
    leaf: Leaf = authority.issue("spiffe://cluster.local/ns/full/sa/sleep", NOW)
    assert certificate_secret(leaf) == certificate_secret(leaf)


def test_a_root_that_is_only_trusted_changes_no_certificate(authority: Authority, issuer: Issuer) -> None:
    before, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    issuer.rotate(authority, [new.root_pem])
    after, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert after is before
    assert roots == issuer.roots == roots_secret([authority.root_pem, new.root_pem])


def test_another_authority_issues_everybody_a_certificate_with_a_new_key_at_once(
    authority: Authority, issuer: Issuer
) -> None:
    before, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    issuer.rotate(new, [authority.root_pem])
    after, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    leaf_of(after).verify_directly_issued_by(new.certificate)
    assert key_of(after) != key_of(before)
    assert roots == roots_secret([new.root_pem, authority.root_pem])
    assert issuer.secrets_for(pod(), "cluster.local", NOW)[0] is after


def test_roots_that_came_with_a_ca_are_trusted_as_well() -> None:
    other, mine = Company.root("Other", NOW), Company.root("Mine", NOW)
    ca = Authority.load(pem(mine), key_pem(mine), NOW, root=pem(other) + pem(mine))
    _, roots = Issuer(ca).secrets_for(pod(), "cluster.local", NOW)
    assert roots == roots_secret([pem(mine), pem(other)])
