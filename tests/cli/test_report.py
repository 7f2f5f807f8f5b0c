"""`xds report` of a running control plane: content, digest and signature."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from structlog.testing import capture_logs
from typer.testing import Result

from tests.cli import commands
from tests.cli.test_plan_observed import DAY, observe_since, send, send_plaintext, xds
from tests.controlplane.rollouts import Plane, running
from tests.policy.world import pod
from tests.support.waiting import eventually
from xds.cli.report_document import KEYS, canonical, fingerprint, seal
from xds.cli.report_html import render
from xds.mesh.controlplane.problem_times import FoundProblem
from xds.mesh.controlplane.report import service
from xds.mesh.model.objects import Change, MeshConfig, Problem
from xds.mesh.observe.edges import Client, TrafficMode
from xds.mesh.v1 import reports_pb2 as pb
from xds.protocol.wire import Node
from xds.server.stream import now
from xds.snapshot import ENDPOINT, LISTENER

FORMAT = serialization.PrivateFormat.PKCS8


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    with capture_logs():
        async with running("PERMISSIVE") as plane:
            observe_since(plane, 8 * DAY)
            yield plane


def write_key(folder: Path, key: Any, password: bytes = b"") -> tuple[Path, Path]:
    """Return the files of a private key and of its public key."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, FORMAT, encryption))
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def verify(path: Path, *words: object) -> Result:
    return commands.xds("report", "--verify", path, *words)


async def read(plane: Plane, *words: str) -> dict[str, Any]:
    result = await xds(plane, "report", "-o", "json", *words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# --- content ----------------------------------------------------------------------------------------------


async def test_report_says_what_holds(plane: Plane):
    send_plaintext(plane, 3 * DAY)
    send(plane, Client("shop", "one"), TrafficMode.MTLS, 60)
    plane.apply(pod("legacy", "zoo", sidecar=False))
    await eventually(lambda: plane.controller.mesh.pod("zoo", "legacy"))
    report = (await read(plane))["report"]
    scope = report["scope"]
    assert (scope["trustDomain"], scope["period"], scope["namespaces"]) == ("cluster.local", "604800s", [])
    assert [(each["namespace"], each["name"]) for each in report["workloads"]] == [
        ("shop", "one"),
        ("shop", "web"),
        ("zoo", "legacy"),
    ]
    web = report["workloads"][1]
    assert (web["pods"], web["sidecars"], web["connected"], web["services"]) == (2, 2, 2, ["web.shop"])
    port = web["ports"][0]
    assert (port["port"], port["mode"], port["acked"], port["sinceChange"]) == (8080, "PERMISSIVE", 2, False)
    assert port["since"] <= scope["created"]
    assert [each["send"] for each in port["allowed"]] == ["plaintext", "mtls"]
    assert [(each["client"], each["mode"], each["requests"]) for each in web["observed"]] == [
        ("cron", "PLAINTEXT", "0"),
        ("one", "MTLS", "1"),
    ]
    assert (web["certificates"]["known"], report["certificates"]["known"]) == (2, "3")
    assert web["certificates"]["firstRenewal"] < web["certificates"]["firstExpiry"]
    assert [(each["kind"], each["subject"]) for each in report["exceptions"]] == [
        ("plaintext", "one.shop"),
        ("plaintext", "web.shop"),
        ("no-sidecar", "legacy.zoo"),
    ]
    [tls] = report["tls"]
    assert (tls["sidecars"], tls["minVersion"], tls["postQuantum"]) == (3, "TLSV1_3", False)
    versions = {each["part"]: each["version"] for each in report["versions"]}
    assert versions["xds control plane"] == "0.1.0"
    assert {"Python", "grpcio", "cryptography", "Envoy", "Kubernetes"} <= versions.keys()
    assert report["gaps"] == []
    assert report["notShown"][0].startswith("What connections negotiated: only Envoy's statistics have it")


async def test_mode_is_enforced_since_its_rollout():
    with capture_logs():
        async with running("DISABLE") as plane:
            history = plane.controller.rollouts.rollout.history
            plane.set_mode("STRICT")
            await eventually(lambda: plane.first.held(LISTENER))
            web = (await read(plane))["report"]["workloads"][1]
            ports = [each for each in web["ports"] if each["port"] == 8080]
            assert {each["desiredMode"] for each in ports} == {"STRICT"}
            assert sum(each["acked"] for each in ports) < sum(each["pods"] for each in ports) == 2
            unknown = "".join(each["unknownSince"] for each in ports)
            assert "sidecars that have not ACKed their listener: " in unknown
            await plane.first.answer(LISTENER)
            await plane.one.answer(ENDPOINT)
            await eventually(lambda: history.count >= 2)
            await eventually(lambda: all(each.session.synced for each in plane.server.discovery.streams))
            report = (await read(plane))["report"]
            port = report["workloads"][1]["ports"][0]
            finished = max(each.finished_at for each in history.finished())
            age = now() - finished
            since = datetime.fromisoformat(report["scope"]["created"]) - datetime.fromisoformat(port["since"])
            assert (port["mode"], port["acked"], port["sinceChange"]) == ("STRICT", 2, True)
            assert 0 <= since.total_seconds() <= age
            assert report["exceptions"] == []


async def test_namespaces_and_periods(plane: Plane):
    assert [each["name"] for each in (await read(plane, "-n", "shop"))["report"]["workloads"]] == [
        "one",
        "web",
    ]
    result = await xds(plane, "report", "-n", "shpo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "namespace shpo not found" in result.stderr
    result = await xds(plane, "report", "--since", "8d")
    assert (result.exit_code, result.stderr) == (2, "xds: --since: traffic is remembered for only 7d\n")
    observe_since(plane, 3600)
    report = (await read(plane, "--since", "2h"))["report"]
    assert report["gaps"] == ["observed for only 1h of 2h"]
    assert report["scope"]["since"] == report["scope"]["countedSince"]


async def test_disabled_observation_and_problems_are_told(plane: Plane):
    plane.controller.change(Change(config=MeshConfig(observe=False, fips=True)))
    await eventually(lambda: not plane.controller.mesh.config.observe)
    plane.source.problems = [FoundProblem(Problem(where="a.yaml:1", what="<b>bad</b>"), None)]
    report = (await read(plane))["report"]
    assert "observation is disabled" in report["gaps"]
    assert [each["fips"] for each in report["tls"]] == [True]
    assert report["exceptions"][0]["what"] == "<b>bad</b>"
    html = (await xds(plane, "report")).stdout
    assert "not known: observation is disabled" in html
    assert "&lt;b&gt;bad&lt;/b&gt;" in html
    assert "<b>" not in html


async def test_period_defaults_to_7_days(plane: Plane):
    method = plane.channel.unary_stream(
        "/xds.mesh.v1.Reports/Create", pb.CreateReportRequest.SerializeToString, pb.Report.FromString
    )
    parts = [part async for part in method(pb.CreateReportRequest())]
    assert parts[0].scope.period.seconds == 7 * DAY


async def test_large_report_has_several_parts(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    whole = (await read(plane))["report"]
    monkeypatch.setattr(service, "MAX_PART_SIZE", 10)
    method = plane.channel.unary_stream(
        "/xds.mesh.v1.Reports/Create", pb.CreateReportRequest.SerializeToString, pb.Report.FromString
    )
    parts = [part async for part in method(pb.CreateReportRequest())]
    assert [len(part.workloads) + len(part.exceptions) for part in parts] == [0, 1, 1, 1, 1]
    split = (await read(plane))["report"]
    changing = {name: split[name] for name in ("scope",)}
    assert split == whole | changing


async def test_report_contains_no_secret(plane: Plane, tmp_path: Path):
    private, _ = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    outputs = [
        (await xds(plane, "report", "-o", name, "--sign", str(private))).stdout for name in ("html", "json")
    ]
    issued = plane.controller.certificates._issuer._issued.values()
    keys = [each.leaf.key.to_pem() for each in issued] + [private.read_bytes()]
    keys.append(plane.controller.certificates.trust[0].key.to_pem())
    assert len(keys) == 5
    for text in outputs:
        assert "PRIVATE" not in text
        for key in keys:
            body = b"".join(key.split(b"\n")[1:-2]).decode()
            assert body[:40] not in text
            assert body[-40:] not in text


async def test_html_shows_what_json_has(plane: Plane):
    send_plaintext(plane, 60)
    result = await xds(plane, "report")
    assert result.stdout.startswith("<!doctype html>")
    assert re.findall("<script", result.stdout) == ["<script"]
    text = re.sub(r"<[^>]+>", " ", result.stdout)
    for words in (
        "Mutual TLS report of cluster.local",
        "PERMISSIVE",
        "legacy/cron",
        "web.shop:80",
        "at least since",
    ):
        assert words in text
    assert result.stdout.count("<caption>") == result.stdout.count("<table")


async def test_html_says_what_is_not_known(plane: Plane):
    document = await read(plane)
    one, web = document["report"]["workloads"]
    one["ports"] = []
    listed, others = web["ports"]
    del listed["since"]
    listed |= {"unknownSince": "sidecars that are not connected: 2", "desiredMode": "STRICT"}
    others["mode"] = "MODE_UNSPECIFIED"
    edge = {"service": "web.shop:80", "mode": "PLAINTEXT", "clientNamespace": "", "client": "192.0.2.1"}
    times = dict.fromkeys(("firstSeen", "lastSeen"), "2026-12-01T12:00:00Z")
    web["observed"] = [{**edge, **times, "requests": "2"}]
    clients = {"clients": "", "accounts": ["a/b", "c/d"], "moreAccounts": 3}
    listed["allowed"] = [{"send": "mtls", "why": "", **clients}]
    text = re.sub(r"<[^>]+>", "|", render(document))
    for words in (
        "|all||no sidecar|",
        "|PERMISSIVE (rollout to STRICT)|",
        "|not known: sidecars that are not connected: 2|",
        "|not intercepted|",
        "|192.0.2.1 (no pod: a node, or a client outside the mesh)|",
        "|a/b, c/d and 3 more|",
        "|0 %||2026-12-01 12:00 UTC|",
    ):
        assert words in text, words


def test_envoys_of_other_replicas_are_counted():
    nodes = [[Node(id="a", user_agent_name="envoy", user_agent_version="1.40.0")], [Node(id="b")]]
    found = [(each.version, each.count) for each in service._versions(nodes, 2) if each.part == "Envoy"]
    assert found == [
        ("1.40.0", 1),
        ("not known: the sidecar has not sent it", 1),
        ("not known: the sidecars are connected to other replicas", 2),
    ]


# --- digest and signature ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="EC"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
    ],
)
async def test_signed_report_is_verified(plane: Plane, tmp_path: Path, key: Any):
    private, public = write_key(tmp_path, key)
    for name in ("html", "json"):
        path = tmp_path / f"report.{name}"
        path.write_text((await xds(plane, "report", "-o", name, "--sign", str(private))).stdout)
        result = verify(path, "--key", public)
        assert (result.exit_code, result.stderr) == (0, "")
        assert fingerprint(key.public_key()) in result.stdout
        assert "which is in the report" in verify(path).stdout
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        result = verify(path, "--key", write_key(other, ed25519.Ed25519PrivateKey.generate())[1])
        assert (result.exit_code, result.stderr) == (
            1,
            f"xds: {path}: the signature does not match the report and the key\n",
        )


def test_openssl_verifies_a_signature(tmp_path: Path):
    private, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    document = seal({"scope": {"b": "é", "a": 1}}, private.read_bytes())
    (tmp_path / "data").write_bytes(canonical(document["report"]))
    (tmp_path / "signature").write_bytes(base64.b64decode(document["signature"]["value"]))
    command = [
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        public,
        "-signature",
        tmp_path / "signature",
        tmp_path / "data",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "Verified OK\n", done.stderr


def test_digest_is_that_of_canonical_json():
    document = seal({"b": [1, "é"], "a": {}}, None)
    digest = hashlib.sha256('{"a":{},"b":[1,"é"]}'.encode()).hexdigest()
    assert document == {"report": {"b": [1, "é"], "a": {}}, "digest": f"sha256:{digest}"}


async def test_changes_are_found(plane: Plane, tmp_path: Path):
    private, public = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    document, path = await read(plane, "--sign", str(private)), tmp_path / "report"

    def reject(text: str, message: str, status: int = 1, *words: object) -> None:
        path.write_text(text)
        result = verify(path, *words)
        assert (result.exit_code, result.stdout) == (status, "")
        assert result.stderr.startswith(f"xds: {path}: {message}"), result.stderr

    changed = json.loads(json.dumps(document))
    changed["report"]["workloads"][0]["ports"][0]["mode"] = "STRICT"
    reject(json.dumps(changed), "the report was changed: its digest is sha256:")
    resealed = document | seal(changed["report"], None)
    reject(json.dumps(resealed), "the signature does not match")
    unsigned = {name: document[name] for name in ("report", "digest")}
    reject(json.dumps(unsigned), "the report has no signature", 1, "--key", public)
    for signature in ({}, {"value": "x"}, [], {"value": "!", "publicKey": public.read_text()}):
        reject(json.dumps(document | {"signature": signature}), "the signature is malformed")
    other = {"value": "", "publicKey": "x"}
    reject(json.dumps(document | {"signature": other}), "this is not a public key in PEM format")
    page = render(document)
    reject(page.replace("PERMISSIVE</td>", "STRICT</td>"), "the text is not that of its data")
    reject(render(document).replace("<main>", "<main><p>Approved</p>"), "the text is not that of its data")
    empty = json.dumps(seal({}, None))
    reject(re.sub('(id="report">).*(</script>)', rf"\1{empty}\2", page), "the text is not that of its data")
    for text in (
        "",
        "[]",
        "{}",
        '{"report": 1}',
        "<!doctype html>",
        "\udcff".encode(errors="surrogateescape").decode("latin1"),
    ):
        reject(text, "is not the output of xds report", 2)
    path.write_bytes(b"\xff")
    assert verify(path).exit_code == 2


@pytest.mark.parametrize(
    ("key", "password", "message"),
    [
        pytest.param(
            ed25519.Ed25519PrivateKey.generate(), b"x", "the private key is encrypted", id="encrypted"
        ),
        pytest.param(
            ec.generate_private_key(ec.SECP384R1()),
            b"",
            f"the key is unsupported; supported: {KEYS}",
            id="P-384",
        ),
        pytest.param(rsa.generate_private_key(65537, 1024), b"", "the key is unsupported", id="RSA 1024"),
    ],
)
def test_unusable_keys_are_refused(tmp_path: Path, key: Any, password: bytes, message: str):
    private, public = write_key(tmp_path, key, password)
    result = commands.xds("report", "--sign", private)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"xds: --sign {private}: {message}")
    result = commands.xds("report", "--sign", public)
    assert result.stderr == f"xds: --sign {public}: this is not a private key in PEM format\n"
    signed = seal({}, None) | {"signature": {"value": "", "publicKey": public.read_text()}}
    (tmp_path / "report").write_text(json.dumps(signed))
    result = verify(tmp_path / "report")
    assert result.exit_code == 1
    expected = "the signature does not match" if password else "the key is unsupported"
    assert expected in result.stderr


def test_options_that_exclude_each_other(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("{}")
    result = verify(file, "--sign", file)
    assert (result.exit_code, result.stderr) == (
        2,
        "xds: --verify cannot be combined with --sign or --namespace\n",
    )
    result = commands.xds("report", "--key", file)
    assert (result.exit_code, result.stderr) == (
        2,
        "xds: --key requires --verify; to sign a report, use --sign\n",
    )
