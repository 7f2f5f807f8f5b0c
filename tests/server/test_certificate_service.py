"""Certificates for keys of sidecars: who gets one, for which identity, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from xds.mesh.controlplane import certificate_service
from xds.mesh.controlplane.certificate_service import CertificateService
from xds.mesh.controlplane.controller import Controller
from xds.mesh.identity import chain
from xds.mesh.identity.auth import Authentication, own_token_verifier
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.external import identity_of
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.server_tls import ServerCertificate, Trust
from xds.mesh.identity.tokens import TokenKey
from xds.mesh.model.objects import Change, MeshConfig, Meta, Pod, Ref
from xds.mesh.sidecar.own_certificate import METHOD
from xds.mesh.v1 import certificates_pb2 as pb
from xds.server import XdsServer

NOW = datetime.now(UTC)
CA = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
RSA = {bits: rsa.generate_private_key(65537, bits) for bits in (1024, 2048)}
OWN = "spiffe://cluster.local/ns/shop/sa/web"
STATUS = grpc.StatusCode


def csr(key: Any = KEY, names: tuple[str, ...] = (), padding: int = 0) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names or padding:
        uris = [
            x509.UniformResourceIdentifier(name) for name in (*names, *(["x" * padding] if padding else []))
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def forged() -> str:
    """Return a request for the key of somebody else."""
    request = x509.load_pem_x509_csr(csr().encode())
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    old, new = (key.public_bytes(serialization.Encoding.DER, info) for key in (KEY.public_key(), other))
    der = request.public_bytes(serialization.Encoding.DER).replace(old, new)
    return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Site:
    controller: Controller
    server: XdsServer
    tokens: TokenKey

    def token(self, **claims: str) -> str:
        caller = {"namespace": "shop", "service_account": "web", "pod": "web-0"} | claims
        caller |= {"credential": CredentialKind.TOKEN}
        return self.tokens.issue(Caller(**caller), NOW, timedelta(hours=1))

    def channel(self, *, tls: bool = True) -> grpc.aio.Channel:
        if not tls:
            return grpc.aio.insecure_channel(f"localhost:{self.server.port}")
        credentials = grpc.ssl_channel_credentials(CA.root_pem)
        return grpc.aio.secure_channel(f"localhost:{self.server.secure_ports[0]}", credentials)

    async def call(self, request: pb.IstioCertificateRequest, token: str = "") -> Any:
        """Call with the bytes of a message, as a client in another language does."""
        async with self.channel() as channel:
            metadata = (("authorization", f"Bearer {token or self.token()}"),)
            call = channel.unary_unary(METHOD)
            answer = await call(request.SerializeToString(), metadata=metadata, timeout=30)
        return pb.IstioCertificateResponse.FromString(answer)

    async def refusal(
        self, request: pb.IstioCertificateRequest, token: str = "", **how: Any
    ) -> tuple[Any, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.call(request, token)
        return refused.value.code(), refused.value.details()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    controller, tokens = Controller(CA), TokenKey.generate()
    pods = tuple(
        Pod(meta=Meta(ref=Ref("Pod", "shop", name), uid=uid), address="10.0.0.1", service_account="web")
        for name, uid in (("web-0", ""), ("web-1", "new"))
    )
    controller.mesh = controller.mesh.apply(Change(applied=pods))
    authenticate = Authentication(lambda: ("cluster.local",), own_token_verifier(tokens))
    certificate = ServerCertificate(["localhost"], lambda: Trust(CA, CA.root_pem))
    secure = [
        ("127.0.0.1:0", certificate.credentials(certificate_required=required)) for required in (False, True)
    ]
    server = XdsServer(
        controller.connections,
        "127.0.0.1:0",
        grace=0.2,
        added=[CertificateService(controller, authenticate)],
        secure=secure,
        authenticate=authenticate,
    )
    async with server:
        yield Site(controller, server, tokens)


async def test_certificate_is_for_the_callers_identity_whatever_the_request_names(site: Site) -> None:
    other = "spiffe://cluster.local/ns/bank/sa/vault"
    response = await site.call(pb.IstioCertificateRequest(csr=csr(names=(other,)), subject_id=other))
    leaf_pem, root_pem = response.cert_chain
    assert identity_of(leaf_pem.encode()) == OWN
    (leaf,) = chain.read(leaf_pem.encode())
    assert leaf.public_key() == KEY.public_key()
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(CA.certificate)
    assert root_pem.encode() == CA.root_pem
    assert site.controller.certificates.stats().issued == 1
    assert site.controller.certificates.requests["signed"] == 1


def test_messages_have_the_names_and_numbers_of_istio() -> None:
    service = pb.DESCRIPTOR.services_by_name["IstioCertificateService"]
    assert service.full_name == certificate_service.SERVICE == "istio.v1.auth.IstioCertificateService"
    fields = {
        message.full_name: {field.name: field.number for field in message.fields}
        for message in pb.DESCRIPTOR.message_types_by_name.values()
    }
    assert fields == {
        "istio.v1.auth.IstioCertificateRequest": {"csr": 1, "subject_id": 2, "validity_duration": 3},
        "istio.v1.auth.IstioCertificateResponse": {"cert_chain": 1},
    }


@pytest.mark.parametrize(
    ("requested", "seconds"), [(0, 86400), (60, 60), (86400 * 365, 86400), (2**62, 86400)]
)
async def test_lifetime_can_only_be_shortened(site: Site, requested: int, seconds: int) -> None:
    response = await site.call(pb.IstioCertificateRequest(csr=csr(), validity_duration=requested))
    (leaf,) = chain.read(response.cert_chain[0].encode())
    end = leaf.not_valid_after_utc
    assert abs((end - datetime.now(UTC)).total_seconds() - seconds) < 30


@pytest.mark.parametrize("key", [RSA[2048], ec.generate_private_key(ec.SECP384R1())])
async def test_supported_keys_are_certified(site: Site, key: Any) -> None:
    response = await site.call(pb.IstioCertificateRequest(csr=csr(key)))
    assert chain.read(response.cert_chain[0].encode())[0].public_key() == key.public_key()


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("", "this is not a PEM certificate signing request"),
        (CA.root_pem.decode(), "this is not a PEM certificate signing request"),
        (csr()[:200], "this is not a PEM certificate signing request"),
        (csr(RSA[1024]), "the key is unsupported"),
        (csr(ec.generate_private_key(ec.SECP521R1())), "the key is unsupported"),
        (csr(ed25519.Ed25519PrivateKey.generate()), "the key is unsupported"),
        (forged(), "the request is not signed with its own key"),
        (csr(padding=16_000), "at most 16384 are accepted"),
    ],
)
async def test_unsuitable_requests_are_refused(site: Site, request_text: str, reason: str) -> None:
    code, details = await site.refusal(pb.IstioCertificateRequest(csr=request_text))
    assert code is STATUS.INVALID_ARGUMENT
    assert reason in details
    assert site.controller.certificates.requests == {"signed": 0, "refused": 1, "failed": 0}


async def test_negative_lifetime_is_refused(site: Site) -> None:
    code, details = await site.refusal(pb.IstioCertificateRequest(csr=csr(), validity_duration=-1))
    assert (code, "validity_duration is -1" in details) == (STATUS.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"pod": "web-9"}, STATUS.UNAVAILABLE),
        ({"service_account": "db"}, STATUS.PERMISSION_DENIED),
        ({"pod": "web-1", "pod_uid": "old"}, STATUS.PERMISSION_DENIED),
        ({"pod": "", "service_account": "db"}, STATUS.UNAVAILABLE),
        ({"pod": "", "namespace": "bank"}, STATUS.UNAVAILABLE),
    ],
)
async def test_callers_that_may_not_act_for_a_pod_are_refused(
    site: Site, claims: dict[str, str], status: STATUS
) -> None:
    code, _ = await site.refusal(pb.IstioCertificateRequest(csr=csr()), site.token(**claims))
    assert code is status
    assert site.controller.certificates.requests["failed"] == 1


async def test_mesh_with_another_sds_server_issues_no_certificates(site: Site) -> None:
    config = MeshConfig(sds_socket="/run/spire/agent.sock")
    site.controller.mesh = site.controller.mesh.apply(Change(config=config))
    code, details = await site.refusal(pb.IstioCertificateRequest(csr=csr()))
    assert (code, "/run/spire/agent.sock" in details) == (STATUS.FAILED_PRECONDITION, True)


async def test_token_without_a_pod_is_accepted(site: Site) -> None:
    response = await site.call(pb.IstioCertificateRequest(csr=csr()), site.token(pod=""))
    assert identity_of(response.cert_chain[0].encode()) == OWN


async def test_certificate_of_the_mesh_cannot_renew_itself(site: Site) -> None:
    leaf = CA.issue(OWN, NOW)
    credentials = grpc.ssl_channel_credentials(CA.root_pem, leaf.key.to_pem(), leaf.chain)
    async with grpc.aio.secure_channel(f"localhost:{site.server.secure_ports[1]}", credentials) as channel:
        call = channel.unary_unary(METHOD)(pb.IstioCertificateRequest(csr=csr()).SerializeToString())
        assert await call.code() is STATUS.PERMISSION_DENIED
        assert "a certificate cannot be used to renew itself" in (await call.details() or "")
    assert site.controller.certificates.stats().issued == 0


@pytest.mark.parametrize("tls", [True, False])
async def test_unauthenticated_callers_are_refused_before_they_send_a_request(site: Site, tls: bool) -> None:
    token = Site(site.controller, site.server, TokenKey.generate()).token() if tls else site.token()
    async with site.channel(tls=tls) as channel:
        call = channel.stream_unary(METHOD)(metadata=(("authorization", f"Bearer {token}"),))
        assert await call.code() is STATUS.UNAUTHENTICATED
    assert site.controller.certificates.stats().issued == 0


async def test_requests_of_a_caller_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_service, "REQUESTS", (2, 0))
    request = pb.IstioCertificateRequest(csr=csr())
    await site.call(request)
    await site.call(request)
    code, details = await site.refusal(request)
    assert (code, details) == (STATUS.RESOURCE_EXHAUSTED, "too many certificate requests: try again later")
    await site.call(request, site.token(pod=""))


async def test_waiting_requests_of_a_caller_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_service, "MAX_PENDING_OF_CALLER", 0)
    code, _ = await site.refusal(pb.IstioCertificateRequest(csr=csr()))
    assert code is STATUS.RESOURCE_EXHAUSTED


async def test_expiry_is_known_until_the_pod_is_deleted(site: Site) -> None:
    await site.call(pb.IstioCertificateRequest(csr=csr()))
    pod = site.controller.mesh.pod("shop", "web-0")
    assert pod
    certificates = site.controller.certificates
    expiry = certificates.expires_at(pod)
    assert expiry
    assert expiry > datetime.now(UTC) + timedelta(hours=23)
    assert certificates.stats().soonest_expiry == expiry
    certificates.forget(pod)
    assert certificates.expires_at(pod) is None
    assert certificates.stats().current == 0


async def test_expiry_is_known_until_the_certificate_is_due_for_renewal(site: Site) -> None:
    """The sidecar may have renewed it at another replica."""
    await site.call(pb.IstioCertificateRequest(csr=csr()))
    pod = site.controller.mesh.pod("shop", "web-0")
    assert pod
    certificates = site.controller.certificates
    certificates._now = lambda: datetime.now(UTC) + timedelta(hours=11)
    assert certificates.expires_at(pod)
    certificates._now = lambda: datetime.now(UTC) + timedelta(hours=13)
    assert certificates.expires_at(pod) is None
    assert certificates.stats().soonest_expiry is None


async def test_a_pod_that_is_deleted_while_its_certificate_is_signed_gets_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates, pod = site.controller.certificates, Ref("Pod", "shop", "web-0")
    certify = certificates.certify

    async def certify_late(*arguments: Any) -> Any:
        site.controller.mesh = site.controller.mesh.apply(Change(removed=(pod,)))
        return await certify(*arguments)

    monkeypatch.setattr(certificates, "certify", certify_late)
    code, _ = await site.refusal(pb.IstioCertificateRequest(csr=csr()))
    assert code is STATUS.UNAVAILABLE
    assert certificates.stats().current == 0


async def test_an_expired_ca_is_not_the_callers_fault(site: Site) -> None:
    certificates = site.controller.certificates
    certificates._now = lambda: CA.expires + timedelta(seconds=1)
    code, details = await site.refusal(pb.IstioCertificateRequest(csr=csr()))
    assert (code, "certificate expired" in details) == (STATUS.UNAVAILABLE, True)
    assert (certificates.requests["failed"], certificates.requests["refused"]) == (1, 0)
