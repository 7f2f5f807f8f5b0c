"""`xds serve --manifests` with the tokens of `xds token`: a token gets only its own pod's key."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.cli.serve_process import TIMEOUT, ServeProcess, serving
from tests.identity.credentials import token
from tests.introspect.grpcurl import GRPCURL
from tests.server.doors import DENIED, SDS, UNPROVEN
from tests.server.proxies import REQUEST, RESPONSE, Client
from tests.support.loopback import free_port
from xds.codec import message_class
from xds.mesh.identity.claims import Caller, CredentialKind
from xds.mesh.identity.state_dir import TOKEN_KEY_FILE, load_or_create_token_key, roots
from xds.mesh.identity.tokens import TokenKey
from xds.snapshot import SECRET

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{security.istio.io/tlsMode: istio}}{more}}}
spec: {{serviceAccountName: {account}}}
status: {{podIP: 127.9.0.{number}}}
---
"""
NODE = "sidecar~127.9.0.1~{}.shop~shop.svc.cluster.local"
_SECRET = message_class("envoy.extensions.transport_sockets.tls.v3.Secret")


def pod(name: str, account: str = "web", number: int = 1, uid: str = "") -> str:
    return POD.format(name=name, account=account, number=number, more=f", uid: {uid}" if uid else "")


@dataclass
class Site:
    """Pods web-1 and web-2 of account web, and a control plane with a port for tokens."""

    folder: Path
    state: Path
    port: int
    process: ServeProcess

    def options(self) -> tuple[object, ...]:
        where = f"127.0.0.1:{self.port}"
        return "--state-dir", self.state, "--xds-tls-address", where, "--admin-identity", "ops/admin"

    def token(self, *words: object) -> str:
        """Return the output of `xds token`."""
        command = [sys.executable, "-m", "xds", "token", "--state-dir", self.state, *words]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def signed(
        self,
        account: str = "web",
        pod: str = "web-1",
        *,
        namespace: str = "shop",
        uid: str = "",
        age: float = 0,
        key: TokenKey | None = None,
    ) -> str:
        """Return a token as `xds token` signs it, issued `age` seconds ago, with a lifetime of one hour."""
        caller = Caller(
            namespace=namespace,
            service_account=account,
            pod=pod,
            pod_uid=uid,
            credential=CredentialKind.TOKEN,
        )
        issued = datetime.now(UTC) - timedelta(seconds=age)
        return (key or load_or_create_token_key(self.state)).issue(caller, issued, timedelta(hours=1))

    @asynccontextmanager
    async def channel(self, text: str | None) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(roots(self.state))
        if text is not None:
            shown = grpc.access_token_call_credentials(text)
            credentials = grpc.composite_channel_credentials(credentials, shown)
        async with grpc.aio.secure_channel(f"localhost:{self.port}", credentials) as channel:
            yield channel

    async def fetch_key(self, text: str | None, pod: str = "web-1") -> tuple[grpc.StatusCode, str]:
        """Fetch a pod's key with a token; return the status, and the error or the certificate."""
        request = REQUEST(resource_names=["default"])
        request.node.id = NODE.format(pod)
        async with self.channel(text) as channel, asyncio.timeout(60):
            call = channel.unary_unary(f"{SDS}/FetchSecrets")
            while True:
                try:
                    answer = RESPONSE.FromString(await call(request.SerializeToString(), timeout=TIMEOUT))
                    break
                except grpc.aio.AioRpcError as error:
                    if "yet; ask again" not in (
                        error.details() or ""
                    ):  # Otherwise the request came before the first snapshot.
                        return error.code(), error.details() or ""
        [resource] = answer.resources
        secret = _SECRET.FromString(resource.value)
        assert b"PRIVATE KEY" in secret.tls_certificate.private_key.inline_bytes
        return grpc.StatusCode.OK, secret.tls_certificate.certificate_chain.inline_bytes.decode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "pods.yaml").write_text(pod("web-1", uid="11-22") + pod("web-2", number=2))
    made = Site(folder, tmp_path / "state", free_port(), None)  # type: ignore[arg-type]
    with serving(folder, *made.options()) as made.process:
        yield made


async def test_token_gets_only_its_own_pods_key(site: Site) -> None:
    own = site.token("web-1.shop", "--manifests", site.folder)
    code, first = await site.fetch_key(own)
    assert code is grpc.StatusCode.OK, first
    code, second = await site.fetch_key(site.token("web-2.shop", "--service-account", "web"), "web-2")
    assert (code, first == second) == (grpc.StatusCode.OK, False)
    assert (await site.fetch_key(site.token("--service-account", "shop/web")))[0] is grpc.StatusCode.OK

    header, payload, _ = own.split(".")
    shown = {
        "none": (None, UNPROVEN, "no credential"),
        "garbage": ("garbage", UNPROVEN, "not a service account token"),
        "forged": (f"{header}.{payload}.AAAA", UNPROVEN, "not signed by this control plane"),
        "alg none": (f"eyJhbGciOiJub25lIn0.{payload}.", UNPROVEN, "not signed by this control plane"),
        "a cluster's": (token({"aud": ["xds-ca"], "exp": 2e9}), UNPROVEN, "not signed by this control plane"),
        "of another key": (
            site.signed(key=TokenKey.generate()),
            UNPROVEN,
            "created with another --state-dir",
        ),
        "expired": (site.signed(age=3601), UNPROVEN, "expired at"),
        "not valid yet": (site.signed(age=-600), UNPROVEN, "not valid yet"),
        "another namespace's": (site.signed(namespace="other"), DENIED, "in another namespace"),
        "another account's": (site.signed("other"), DENIED, "another service account"),
        "another pod's": (site.signed(pod="web-2"), DENIED, "bound to pod web-2"),
        "an earlier pod's": (site.signed(uid="00-00"), DENIED, "an earlier pod of that name"),
        "the admin's": (site.token("--service-account", "ops/admin"), DENIED, "in another namespace"),
    }
    for name, (text, code, why) in shown.items():
        ended = await site.fetch_key(text)
        assert (name, ended[0], why in ended[1]) == (name, code, True), ended
    log = site.process.log.read_text()
    assert not [name for name, (text, *_) in shown.items() if text and text in log]
    assert own not in log
    assert (site.state / TOKEN_KEY_FILE).read_text().strip() not in log


async def test_token_for_another_audience_is_rejected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds.mesh.identity.tokens.AUDIENCE", "istio-ca")
    code, error = await site.fetch_key(site.signed())
    assert (code, "not for audience xds-ca" in error) == (UNPROVEN, True)


async def test_stream_ends_if_its_pod_or_account_changes(site: Site) -> None:
    async with site.channel(site.signed()) as one, site.channel(site.signed(pod="web-2")) as two:
        streams = [
            Client(each, method=f"{SDS}/StreamSecrets", node=NODE.format(name))
            for each, name in ((one, "web-1"), (two, "web-2"))
        ]
        for stream in streams:
            await stream.ask(SECRET, "default")
            assert (await stream.get()).resources
        # In one step: web-2 must not be missing from a file that is half written.
        (site.folder.parent / "new.yaml").write_text(pod("web-2", "other", 2))
        (site.folder.parent / "new.yaml").rename(site.folder / "pods.yaml")
        ends = [await stream.end() for stream in streams]
        assert ends[0] == (DENIED, "pod shop/web-1 is gone")
        assert (ends[1][0], "another service account" in ends[1][1]) == (DENIED, True)
        assert (await site.fetch_key(site.token("web-2.shop", "--manifests", site.folder), "web-2"))[
            0
        ] is grpc.StatusCode.OK


async def test_token_survives_a_restart_but_not_a_new_state_dir(site: Site, tmp_path: Path) -> None:
    text = site.signed()
    site.process.process.kill()
    site.process.process.wait()
    with serving(site.folder, *site.options()):
        assert (await site.fetch_key(text))[0] is grpc.StatusCode.OK
    site.state = tmp_path / "other"
    with serving(site.folder, *site.options()):
        code, error = await site.fetch_key(text)
    assert (code, "created with another --state-dir" in error) == (UNPROVEN, True)


async def test_plaintext_has_no_keys_if_token_port_is_exposed(site: Site, tmp_path: Path) -> None:
    port = free_port()
    options = (
        "--state-dir",
        site.state,
        "--xds-tls-address",
        f"0.0.0.0:{port}",
        "--tls-name",
        "control-plane",
    )
    with serving(site.folder, *options) as process:
        [secret] = await asyncio.to_thread(
            lambda: process.fetch("web-1.shop", SECRET, "default", "ROOTCA").resources
        )
        assert b"PRIVATE KEY" not in secret.value
        assert not process.logged("serves private keys")
        assert process.logged('names="control-plane, localhost')
        site.port = port
        assert (await site.fetch_key(site.signed()))[0] is grpc.StatusCode.OK


def test_admin_token_works_with_status_and_grpcurl(site: Site, tmp_path: Path) -> None:
    written = tmp_path / "out/admin.ops"
    site.token("admin.ops", "--service-account", "admin", "--out-dir", tmp_path / "out")
    (tmp_path / "web").write_text(site.signed())
    where = f"localhost:{site.port}"

    def status(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "xds", "status", "-o", "json", "--xds-address", where),
                *("--ca-file", str(written / "root-cert.pem"), "--token-file", str(file)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    seen = status(written / "token")
    assert (seen.returncode, "time" in json.loads(seen.stdout)) == (1, True), seen.stderr
    refused = status(tmp_path / "web")
    assert (refused.returncode, "shop/web is not an admin" in refused.stderr) == (3, True)

    def grpcurl(text: str) -> subprocess.CompletedProcess[str]:
        shown = ("-H", f"authorization: Bearer {text}") if text else ()
        limits = ("-connect-timeout", "30", "-max-time", "60")
        command = [GRPCURL, "-cacert", written / "root-cert.pem", *shown, *limits, where]
        return subprocess.run(
            [*command, "xds.mesh.v1.Proxies/List"], capture_output=True, text=True, timeout=90, check=False
        )

    seen = grpcurl(site.token("--service-account", "ops/admin"))
    assert (seen.returncode, "time" in json.loads(seen.stdout)) == (0, True), seen.stderr
    for text, why in (("", "no credential"), (site.signed(), "is not an admin")):
        refused = grpcurl(text)
        assert (refused.returncode != 0, why in refused.stderr) == (True, True), refused.stderr


def test_unusable_token_key_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / TOKEN_KEY_FILE).write_text("no key")
    process = ServeProcess(
        tmp_path / "m", "--state-dir", tmp_path / "state", "--xds-tls-address", "127.0.0.1:0"
    )
    assert process.process.wait(TIMEOUT) == 1
    log = process.log.read_text()
    assert f"--state-dir: {tmp_path}/state/{TOKEN_KEY_FILE} is accessible to other users (mode 0644)" in log
