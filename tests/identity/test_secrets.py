"""Secrets that SDS sends to each pod, and when they change."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret

from tests.identity.companies import Company, key_pem, pem
from xds.mesh.identity.ca import Authority, Leaf
from xds.mesh.identity.keys import IdentityError, PrivateKey
from xds.mesh.identity.secrets import Issuer, certificate_secret, file_secret, roots_secret
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


def test_kubelet_keeps_the_key_in_a_file_that_envoy_follows() -> None:
    certificate = secret(file_secret("/run/certificate/bundle.pem")).tls_certificate
    assert certificate.certificate_chain.filename == certificate.private_key.filename
    assert certificate.private_key.filename == "/run/certificate/bundle.pem"
    assert certificate.watched_directory
    assert certificate.watched_directory.path == "/run/certificate"


def test_pod_gets_its_certificate_key_and_root(authority: Authority, issuer: Issuer) -> None:
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


def test_version_is_the_certificate_fingerprint(issuer: Issuer) -> None:
    default, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert leaf_of(default).fingerprint(hashes.SHA256()).hex().startswith(default.version)
    assert len(default.version) == 16


def test_repr_of_a_secret_hides_the_key(issuer: Issuer) -> None:
    default, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    line = key_of(default).splitlines()[1].decode()
    for shown in (repr(default), str(default), repr(issuer), repr(issuer._issued)):
        assert line not in shown
        assert "PRIVATE" not in shown


def test_certificate_is_renewed_at_half_its_lifetime(issuer: Issuer) -> None:
    first, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert issuer.renew_at(pod()) == NOW + HALF_LIFE
    before = NOW + HALF_LIFE - timedelta(seconds=1)
    assert issuer.secrets_for(pod(), "cluster.local", before)[0] is first
    second, same_roots = issuer.secrets_for(pod(), "cluster.local", NOW + HALF_LIFE)
    assert key_of(second) != key_of(first)
    assert second.version != first.version
    assert same_roots is roots
    assert issuer.renew_at(pod()) == NOW + 2 * HALF_LIFE


def test_clock_set_back_gets_a_valid_certificate(issuer: Issuer) -> None:
    later, _ = issuer.secrets_for(pod(), "cluster.local", NOW + timedelta(days=3))
    earlier, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert earlier.version != later.version
    assert leaf_of(earlier).not_valid_before_utc < NOW


def test_lifetime_is_configurable(authority: Authority) -> None:
    issuer = Issuer(authority, lifetime=timedelta(minutes=2))
    issuer.secrets_for(pod(), "cluster.local", NOW)
    assert issuer.renew_at(pod()) == NOW + timedelta(minutes=1)


def test_each_pod_has_its_own_key(issuer: Issuer) -> None:
    pods = [pod("a"), pod("b"), pod("a", "legacy"), pod("c")]
    keys = {key_of(issuer.secrets_for(owner, "cluster.local", NOW)[0]) for owner in pods}
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
        "new pod of the same name",
        "new pod within the same second",
    ],
)
def test_pod_with_a_new_identity_gets_a_new_key(issuer: Issuer, successor: Pod, trust_domain: str) -> None:
    first, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    second, _ = issuer.secrets_for(successor, trust_domain, NOW)
    assert key_of(first) != key_of(second)
    assert identity_of(second) == successor.identity(trust_domain)


def test_deleted_pod_and_its_key_are_forgotten(issuer: Issuer) -> None:
    first, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    issuer.forget(pod())
    issuer.forget(pod("never-known"))
    assert issuer.renew_at(pod()) is None
    assert key_of(issuer.secrets_for(pod(), "cluster.local", NOW)[0]) != key_of(first)


def test_issuers_of_one_root_generate_different_keys(authority: Authority) -> None:
    keys = {key_of(Issuer(authority).secrets_for(pod(), "cluster.local", NOW)[0]) for _ in range(2)}
    assert len(keys) == 2


def test_expired_root_is_an_error(issuer: Issuer) -> None:
    with pytest.raises(IdentityError, match="root certificate expired"):
        issuer.secrets_for(pod(), "cluster.local", NOW + timedelta(days=4000))


def test_roots_are_bundled_without_duplicates(authority: Authority) -> None:
    old = Authority.create(PrivateKey.generate(), "cluster.local", NOW).certificate_pem
    new = authority.certificate_pem
    both = roots_secret([new, old, new])
    bundle = secret(both).validation_context.trusted_ca.inline_bytes
    assert bundle == new + old
    assert len(x509.load_pem_x509_certificates(bundle)) == 2
    assert both == roots_secret([new.strip(), old])
    assert both.version != roots_secret([new]).version
    _, issued = Issuer(authority, extra_roots=[old]).secrets_for(pod(), "cluster.local", NOW)
    assert issued == both


def test_leaf_secret_is_deterministic(authority: Authority) -> None:
    leaf: Leaf = authority.issue("spiffe://cluster.local/ns/full/sa/sleep", NOW)
    assert certificate_secret(leaf) == certificate_secret(leaf)


def test_additional_root_keeps_certificates(authority: Authority, issuer: Issuer) -> None:
    before, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    issuer.rotate(authority, [new.root_pem])
    after, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    assert after is before
    assert roots == issuer.roots == roots_secret([authority.root_pem, new.root_pem])


def test_new_authority_reissues_certificates_at_once(authority: Authority, issuer: Issuer) -> None:
    before, _ = issuer.secrets_for(pod(), "cluster.local", NOW)
    new = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    issuer.rotate(new, [authority.root_pem])
    after, roots = issuer.secrets_for(pod(), "cluster.local", NOW)
    leaf_of(after).verify_directly_issued_by(new.certificate)
    assert key_of(after) != key_of(before)
    assert roots == roots_secret([new.root_pem, authority.root_pem])
    assert issuer.secrets_for(pod(), "cluster.local", NOW)[0] is after


def test_roots_supplied_with_a_ca_are_trusted() -> None:
    other, mine = Company.root("Other", NOW), Company.root("Mine", NOW)
    ca = Authority.load(pem(mine), key_pem(mine), NOW, root=pem(other) + pem(mine))
    _, roots = Issuer(ca).secrets_for(pod(), "cluster.local", NOW)
    assert roots == roots_secret([pem(mine), pem(other)])
