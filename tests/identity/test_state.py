"""The root in the state directory: made once, kept private, agreed on by all who start at once."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xds.identity.ca import Authority
from xds.identity.keys import PrivateKey
from xds.state import (
    CERTIFICATE_FILE,
    KEY_FILE,
    MORE_ROOTS_FILE,
    TOKEN_KEY_FILE,
    StateError,
    replace,
    root_authority,
    roots,
    token_key,
)

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def load(state: Path | None, now: datetime = NOW) -> Authority:
    return root_authority(state, "cluster.local", now)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_root_is_made_on_first_use_and_used_from_then_on(state: Path) -> None:
    first = load(state)
    assert load(state, NOW + timedelta(days=300)).certificate == first.certificate


def test_only_we_can_read_the_key(state: Path) -> None:
    load(state)
    assert mode(state) == 0o700
    assert mode(state / KEY_FILE) == 0o600
    assert mode(state / CERTIFICATE_FILE) == 0o644


def test_nothing_else_is_left_in_the_directory(state: Path) -> None:
    load(state)
    load(state)
    assert {file.name for file in state.iterdir()} == {KEY_FILE, CERTIFICATE_FILE}


def test_parents_are_made_and_an_existing_directory_stays_as_it_is(tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.mkdir(mode=0o755)
    load(existing)
    load(tmp_path / "not" / "there")
    assert mode(existing) == 0o755


def test_without_a_directory_the_root_is_in_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None).certificate != load(None).certificate
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o666, 0o644])
def test_a_key_that_others_can_use_is_refused_with_the_remedy(state: Path, loose: int) -> None:
    load(state)
    (state / KEY_FILE).chmod(loose)
    with pytest.raises(StateError) as refusal:
        load(state)
    assert f"(mode {loose:04o})" in str(refusal.value)
    assert f"chmod 600 {state / KEY_FILE}" in str(refusal.value)
    (state / KEY_FILE).chmod(0o600)
    load(state)


def test_a_key_that_nobody_can_write_is_fine(state: Path) -> None:
    load(state)
    (state / KEY_FILE).chmod(0o400)
    load(state)


def test_a_crash_between_key_and_certificate_is_made_good(state: Path) -> None:
    load(state)
    key = (state / KEY_FILE).read_bytes()
    (state / CERTIFICATE_FILE).unlink()
    again = load(state)
    assert again.key.to_pem() == key == (state / KEY_FILE).read_bytes()
    assert load(state).certificate == again.certificate


def test_a_certificate_without_its_key_is_refused_and_kept(state: Path) -> None:
    load(state)
    (state / KEY_FILE).unlink()
    with pytest.raises(StateError, match=rf"{KEY_FILE} is missing"):
        load(state)
    assert [file.name for file in state.iterdir()] == [CERTIFICATE_FILE]


def test_a_key_of_another_root_is_refused(state: Path) -> None:
    load(state)
    (state / KEY_FILE).write_bytes(PrivateKey.generate().to_pem())
    with pytest.raises(StateError, match=rf"{state}.*two different CAs.*remove both") as refusal:
        load(state)
    assert "PRIVATE" not in str(refusal.value)


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE])
def test_a_damaged_file_is_refused_and_kept(state: Path, name: str) -> None:
    load(state)
    (state / name).write_bytes(b"")
    with pytest.raises(StateError, match="in PEM form"):
        load(state)
    assert (state / name).read_bytes() == b""


def test_an_expired_root_is_refused(state: Path) -> None:
    load(state)
    with pytest.raises(StateError, match=r"expired at 20\d\d.*remove both"):
        load(state, NOW + timedelta(days=4000))


def test_a_file_in_the_directorys_place_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a directory")
    with pytest.raises(StateError, match=rf"{tmp_path / 'state'}: File exists"):
        load(tmp_path / "state")


@pytest.mark.parametrize("stolen", [KEY_FILE, CERTIFICATE_FILE])
def test_whoever_links_a_file_first_wins(state: Path, monkeypatch: pytest.MonkeyPatch, stolen: str) -> None:
    link, winners = Path.hardlink_to, []

    def overtaken(target: Path, aside: Path) -> None:
        if target.name == stolen and not winners:
            winners.append(None)
            winners[0] = load(state)
        link(target, aside)

    monkeypatch.setattr(Path, "hardlink_to", overtaken)
    loser = load(state)
    assert loser.certificate == winners[0].certificate
    assert {file.name for file in state.iterdir()} == {KEY_FILE, CERTIFICATE_FILE}


def race(script: str, state: Path) -> set[str]:
    """Run a script in several processes at once; return what they printed."""
    lines = (
        "import sys",
        "from datetime import UTC, datetime",
        "from pathlib import Path",
        "from xds.state import root_authority, token_key",
        "state, now = Path(sys.argv[1]), datetime.now(UTC)",
        "print('ready', flush=True)",
        "sys.stdin.readline()",
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", "\n".join((*lines, script)), state],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    printed = {racer.communicate()[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 4
    return printed


def test_processes_that_start_at_once_agree_on_one_root(state: Path) -> None:
    printed = race(
        "root = root_authority(state, 'cluster.local', now)\n"
        "leaf = root.issue('spiffe://cluster.local/ns/a/sa/b', now)\n"
        "print(root.certificate_pem.hex())\n",
        state,
    )
    assert printed == {load(state, datetime.now(UTC)).certificate_pem.hex() + "\n"}
    assert {file.name for file in state.iterdir()} == {KEY_FILE, CERTIFICATE_FILE}


def test_processes_that_start_at_once_agree_on_one_key_for_tokens(state: Path) -> None:
    state.mkdir()
    printed = race("print(token_key(state).to_text().decode(), end='')", state)
    assert printed == {(state / TOKEN_KEY_FILE).read_text()}
    assert {file.name for file in state.iterdir()} == {TOKEN_KEY_FILE}
    assert mode(state / TOKEN_KEY_FILE) == 0o600


def test_the_key_for_tokens_is_made_once_and_only_where_there_is_a_directory(state: Path) -> None:
    with pytest.raises(StateError, match=f"{state}.*No such file"):
        token_key(state)
    state.mkdir()
    assert token_key(state) == token_key(state)


def test_a_key_for_tokens_that_cannot_be_used_is_refused_with_the_remedy(state: Path) -> None:
    state.mkdir()
    token_key(state)
    file = state / TOKEN_KEY_FILE
    file.chmod(0o644)
    with pytest.raises(StateError, match=rf"run 'chmod 600 {file}'.*remove it to start with a new one"):
        token_key(state)
    file.chmod(0o600)
    file.write_text("something else")
    with pytest.raises(StateError, match=rf"{file}: this is no key.*refuses all tokens") as refusal:
        token_key(state)
    assert "something else" not in str(refusal.value)


def test_the_roots_can_be_read_without_any_key(state: Path) -> None:
    with pytest.raises(StateError, match=r"root-cert\.pem is not there yet: xds serve makes it"):
        roots(state)
    mine = load(state)
    (state / KEY_FILE).unlink()
    assert roots(state) == mine.certificate_pem
    other = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    (state / MORE_ROOTS_FILE).write_bytes(other.certificate_pem + mine.certificate_pem)
    assert roots(state) == mine.certificate_pem + other.certificate_pem
    (state / MORE_ROOTS_FILE).write_text("no")
    with pytest.raises(StateError, match="roots that cannot be used"):
        roots(state)


def test_a_file_is_replaced_at_once_whoever_looks_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("before")
    with file.open() as held:
        replace(file, b"after", 0o600)
        assert held.read() == "before"
    assert (file.read_text(), mode(file)) == ("after", 0o600)
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        replace(tmp_path / "d", b"", 0o600)
    assert {each.name for each in tmp_path.iterdir()} == {"token", "d"}


def test_further_roots_that_somebody_put_there_are_trusted(state: Path) -> None:
    mine = load(state)
    other = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    (state / MORE_ROOTS_FILE).write_bytes(other.certificate_pem + mine.certificate_pem)
    assert load(state).roots == (mine.certificate, other.certificate)


def test_further_roots_that_cannot_be_read_are_refused(state: Path) -> None:
    load(state)
    (state / MORE_ROOTS_FILE).write_bytes(b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(StateError, match="no certificate in PEM form"):
        load(state)
