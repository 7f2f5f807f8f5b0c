"""`xds token`: what it prints, writes and renews. test_serve_tokens.py uses its tokens."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.cli.commands import write_folder
from tests.support.manifests import workload_entry
from xds.cli import app
from xds.cli.token_files import TokenFiles
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.claims import Caller, CredentialKind, UnauthenticatedError
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.state_dir import (
    MORE_ROOTS_FILE,
    TOKEN_KEY_FILE,
    load_or_create_root,
    load_or_create_token_key,
    roots,
)

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: web-0, namespace: shop, uid: "11-22"}}
spec: {{serviceAccountName: {}}}
"""
TIMEOUT = 60.0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that `xds serve` has used."""
    load_or_create_root(tmp_path / "state", "cluster.local", datetime.now(UTC))
    return tmp_path / "state"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, pod=POD.format("seller"))


def caller(account: str, pod: str = "web-0", uid: str = "") -> Caller:
    return Caller(
        namespace="shop", service_account=account, pod=pod, pod_uid=uid, credential=CredentialKind.TOKEN
    )


def xds(*words: object) -> Result:
    return CliRunner().invoke(app, ["token", *map(str, words)], prog_name="xds")


def verify(state: Path, text: str) -> Caller:
    return load_or_create_token_key(state).verify(text, datetime.now(UTC))


def is_valid(state: Path, text: str) -> bool:
    try:
        verify(state, text)
    except UnauthenticatedError:
        return False
    return True


def issued_at(text: str) -> datetime:
    payload = json.loads(urlsafe_b64decode(f"{text.split('.')[1]}=="))
    return datetime.fromtimestamp(payload["iat"], UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_token_is_printed_alone(state: Path, folder: Path) -> None:
    for options, expected in (
        ((), caller("default")),
        (("--service-account", "seller"), caller("seller")),
        (("--manifests", folder), caller("seller", uid="11-22")),
    ):
        done = xds("web-0.shop", "--state-dir", state, *options)
        assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        assert verify(state, done.stdout.strip()) == expected
    assert mode(state / TOKEN_KEY_FILE) == 0o600


@pytest.mark.parametrize("name", ["vm.shop", "we/vm.shop"])
def test_workload_entry_gets_a_token_of_its_account(state: Path, tmp_path: Path, name: str) -> None:
    machine = workload_entry("vm", "shop", "10.8.0.1", serviceAccount="seller")
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh/vm.yaml").write_text(yaml.safe_dump(machine))
    out = tmp_path / "out"

    done = xds(name, "--state-dir", state, "--manifests", tmp_path / "mesh", "--out-dir", out)

    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert verify(state, (out / name / "token").read_text()) == caller("seller", "we/vm")


def test_token_without_a_pod_is_for_admins(state: Path) -> None:
    done = xds("--service-account", "ops/admin", "--state-dir", state)
    assert (done.exit_code, done.stderr) == (0, "")
    assert verify(state, done.stdout.strip()) == Caller(
        namespace="ops", service_account="admin", credential=CredentialKind.TOKEN
    )


def test_token_expires_after_its_lifetime(state: Path) -> None:
    for options, seconds in (((), 3600), (("--lifetime", 60), 60)):
        began = datetime.now(UTC)
        text = xds("web-0.shop", "--state-dir", state, *options).stdout.strip()
        assert load_or_create_token_key(state).verify(text, began + timedelta(seconds=seconds - 1))
        with pytest.raises(Exception, match="expired"):
            load_or_create_token_key(state).verify(text, datetime.now(UTC) + timedelta(seconds=seconds))


def test_folder_is_written_for_each_pod(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "web-0.shop").mkdir(parents=True)  # as where a volume is mounted
    for _ in range(2):
        done = xds("web-0.shop", "my.db.shop", "--state-dir", state, "--out-dir", out)
        assert (done.exit_code, done.stdout) == (0, ""), done.output
    for pod in ("web-0", "my.db"):
        found = out / f"{pod}.shop"
        assert {each.name for each in found.iterdir()} == {"token", "root-cert.pem"}
        assert (mode(found / "token"), mode(found / "root-cert.pem")) == (0o600, 0o644)
        assert verify(state, (found / "token").read_text()) == caller("default", pod)
        assert (found / "root-cert.pem").read_bytes() == roots(state)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "set POD.NAMESPACE, or use --service-account NAMESPACE/NAME"),
        (
            ("--service-account", "admin"),
            "--service-account admin: must be NAMESPACE/NAME if no pod is set",
        ),
        (("--service-account", "spiffe://x/ns/a/sa/b"), "must be NAMESPACE/NAME if no pod is set"),
        (("--service-account", "a/b", "--out-dir", "OUT"), "set POD.NAMESPACE"),
        (("a.b", "c.d"), "add --out-dir to write tokens for several pods"),
        (("a.b", "--renew"), "--renew requires --out-dir"),
        (
            ("a.b", "--service-account", "x", "--manifests", "M"),
            "--service-account cannot be combined with --manifests",
        ),
        (("a.b", "--service-account", "x/y"), "--service-account 'x/y' is not a DNS name"),
        (("web",), "'web' is not POD.NAMESPACE, such as web-0.shop"),
        (("../x.shop",), "'../x.shop' is not POD.NAMESPACE"),
        (("a/b.shop",), "'a/b.shop' is not POD.NAMESPACE"),
        (("a.b", "--lifetime", "9"), "Invalid value for '--lifetime'"),
        (
            ("web.shop", "--manifests", "M"),
            "pod web.shop not found (POD.NAMESPACE); did you mean web-0.shop?",
        ),
    ],
)
def test_invalid_options_exit_with_2(
    state: Path, folder: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"M": str(folder), "OUT": str(tmp_path / "out")}
    done = xds(*(places.get(word, word) for word in words), "--state-dir", state)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_unreadable_or_unwritable_files_are_reported(state: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for options, status, message in (
        (("--state-dir", tmp_path / "none"), 2, "does not exist"),
        (
            ("--state-dir", tmp_path / "empty", "--out-dir", tmp_path / "out"),
            1,
            "root-cert.pem does not exist",
        ),
        (
            ("--state-dir", state, "--out-dir", tmp_path / "file/x"),
            1,
            f"{tmp_path}/file/x/web-0.shop: Not a dir",
        ),
    ):
        done = xds("web-0.shop", *options)
        assert (done.exit_code, message in " ".join(done.stderr.replace("│", " ").split())) == (
            status,
            True,
        ), message
    (state / TOKEN_KEY_FILE).write_text("no key")
    (state / TOKEN_KEY_FILE).chmod(0o600)
    done = xds("web-0.shop", "--state-dir", state)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"xds: --state-dir: {state}/{TOKEN_KEY_FILE}: this is not a token key" in done.stderr


class Renewing:
    """`xds token --renew`, as a process."""

    def __init__(self, tmp_path: Path, *options: object) -> None:
        self.out, self._log, self._stdout = tmp_path / "out/web-0.shop", tmp_path / "log", tmp_path / "stdout"
        with self._log.open("w") as log, self._stdout.open("w") as stdout:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "xds", "token", "web-0.shop", "--state-dir", tmp_path / "state"),
                    *("--out-dir", tmp_path / "out", "--renew", *map(str, options)),
                ],
                stderr=log,
                stdout=stdout,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def token(self) -> str:
        return (self.out / "token").read_text() if (self.out / "token").exists() else ""

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        assert (self.process.wait(TIMEOUT), self._stdout.read_text()) == (0, "")
        assert 'event="token renewal stopped"' in self.log.splitlines()[-1]


@contextmanager
def renewing(tmp_path: Path, *options: object) -> Iterator[Renewing]:
    made = Renewing(tmp_path, *options)
    try:
        yield made
        assert "Traceback" not in made.log
    finally:
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_token_is_renewed_before_it_expires(state: Path, tmp_path: Path, number: int) -> None:
    began = datetime.now(UTC)
    with renewing(tmp_path, "--lifetime", 12) as process:
        process.wait_for(process.token)
        for _ in range(2):
            before = process.token()
            process.wait_for(lambda before=before: process.token() != before)
            # This process may have been late. The other one issued the new token before the old one expired.
            renewed = issued_at(process.token())
            assert issued_at(before) + timedelta(seconds=5) <= renewed
            assert load_or_create_token_key(state).verify(before, renewed) == caller("default")
        process.end(number)
        written = process.log.count('event="token written" pod=web-0.shop account=shop/default')
        assert written >= 3
        assert written <= 1 + (issued_at(process.token()) - began) / timedelta(seconds=5)
        assert not [line for line in process.log.splitlines() if before in line]


def test_renew_waits_for_the_root_certificate(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with renewing(tmp_path) as process:
        process.wait_for(lambda: 'event="token not written"' in process.log)
        assert "root-cert.pem does not exist: xds serve creates it" in process.log
        load_or_create_root(tmp_path / "state", "cluster.local", datetime.now(UTC))
        process.wait_for(process.token)
        process.end()
        assert process.log.count("token not written") == 1


def test_files_are_renewed_if_roots_or_key_change(state: Path, tmp_path: Path) -> None:
    with renewing(tmp_path) as process:
        process.wait_for(process.token)
        other = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC))
        (state / MORE_ROOTS_FILE).write_bytes(other.certificate_pem)
        process.wait_for(lambda: other.certificate_pem in (process.out / "root-cert.pem").read_bytes())
        (state / TOKEN_KEY_FILE).unlink()
        process.wait_for(lambda: is_valid(state, process.token()))
        assert verify(state, process.token()) == caller("default")
        process.end()


def test_token_is_renewed_if_the_account_changes(state: Path, folder: Path, tmp_path: Path) -> None:
    with renewing(tmp_path, "--manifests", folder) as process:
        process.wait_for(process.token)
        assert verify(state, process.token()) == caller("seller", uid="11-22")
        before = process.token()
        (folder / "pod.yaml").unlink()
        process.wait_for(lambda: "the pod is no longer in the manifests" in process.log)
        assert process.token() == before
        (folder / "pod.yaml").write_text(POD.format("buyer"))
        process.wait_for(lambda: process.token() != before)
        assert verify(state, process.token()) == caller("buyer", uid="11-22")
        process.end()


def test_clock_set_back_does_not_delay_renewal(state: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    times = iter([now, now + timedelta(minutes=29), now - timedelta(days=1)])
    whom = {"web-0.shop": caller("seller")}
    files = TokenFiles(lambda: whom, state, tmp_path / "out", timedelta(hours=1), now=lambda: next(times))
    written = []
    for _ in range(3):
        assert not files.write()["web-0.shop"].problem
        written.append((tmp_path / "out/web-0.shop/token").read_text())
    assert written[0] == written[1] != written[2]


def test_problem_with_one_pod_does_not_delay_others(state: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/web-0.shop").write_text("in the way")
    whom = {"web-0.shop": caller("seller"), "web-1.shop": caller("seller", "web-1"), "gone.shop": None}
    files = TokenFiles(lambda: whom, state, tmp_path / "out", timedelta(hours=1))
    assert {name: outcome.problem for name, outcome in files.write().items()} == {
        "web-0.shop": f"{tmp_path}/out/web-0.shop: File exists",
        "web-1.shop": "",
        "gone.shop": "the pod is no longer in the manifests",
    }
    assert (tmp_path / "out/web-1.shop/token").exists()
