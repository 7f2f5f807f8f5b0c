"""The root in the state directory: created once, kept private, shared by concurrent processes."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.state_dir import (
    CERTIFICATE_FILE,
    KEY_FILE,
    MORE_ROOTS_FILE,
    TOKEN_KEY_FILE,
    StateError,
    load_or_create_root,
    load_or_create_token_key,
    roots,
    write_atomically,
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
    return load_or_create_root(state, "cluster.local", now)


def put(path: Path, content: bytes) -> None:
    """Write a file as an administrator does."""
    path.write_bytes(content)
    path.chmod(0o644)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_root_is_created_once_and_reused(state: Path) -> None:
    first = load(state)
    assert load(state, NOW + timedelta(days=300)).certificate == first.certificate


def test_only_the_owner_can_read_the_key(state: Path) -> None:
    load(state)
    assert mode(state) == 0o700
    assert mode(state / KEY_FILE) == 0o600
    assert mode(state / CERTIFICATE_FILE) == 0o644


def test_no_temporary_files_remain(state: Path) -> None:
    load(state)
    load(state)
    assert {file.name for file in state.iterdir()} == {KEY_FILE, CERTIFICATE_FILE}


def test_parent_directories_are_created(tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.mkdir(mode=0o755)
    load(existing)
    load(tmp_path / "not" / "there")
    assert mode(existing) == 0o755


def test_root_without_a_directory_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None).certificate != load(None).certificate
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o666, 0o644])
def test_key_readable_by_others_is_refused_with_a_hint(state: Path, loose: int) -> None:
    load(state)
    (state / KEY_FILE).chmod(loose)
    with pytest.raises(StateError) as refusal:
        load(state)
    assert f"(mode {loose:04o})" in str(refusal.value)
    assert f"chmod 600 {state / KEY_FILE}" in str(refusal.value)
    (state / KEY_FILE).chmod(0o600)
    load(state)


def test_read_only_key_is_accepted(state: Path) -> None:
    load(state)
    (state / KEY_FILE).chmod(0o400)
    load(state)


def test_crash_between_key_and_certificate_is_repaired(state: Path) -> None:
    load(state)
    key = (state / KEY_FILE).read_bytes()
    (state / CERTIFICATE_FILE).unlink()
    again = load(state)
    assert again.key.to_pem() == key == (state / KEY_FILE).read_bytes()
    assert load(state).certificate == again.certificate


def test_certificate_without_its_key_is_refused_and_kept(state: Path) -> None:
    load(state)
    (state / KEY_FILE).unlink()
    with pytest.raises(StateError, match=rf"{KEY_FILE} is missing"):
        load(state)
    assert [file.name for file in state.iterdir()] == [CERTIFICATE_FILE]


def test_key_of_another_root_is_refused(state: Path) -> None:
    load(state)
    (state / KEY_FILE).write_bytes(PrivateKey.generate().to_pem())
    with pytest.raises(StateError, match=rf"{state}.*different CAs.*remove both") as refusal:
        load(state)
    assert "PRIVATE" not in str(refusal.value)


@pytest.mark.parametrize("name", [KEY_FILE, CERTIFICATE_FILE])
def test_damaged_file_is_refused_and_kept(state: Path, name: str) -> None:
    load(state)
    (state / name).write_bytes(b"")
    with pytest.raises(StateError, match="not a PEM"):
        load(state)
    assert (state / name).read_bytes() == b""


def test_expired_root_is_refused(state: Path) -> None:
    load(state)
    with pytest.raises(StateError, match=r"expired at 20\d\d.*remove both"):
        load(state, NOW + timedelta(days=4000))


def test_file_instead_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a directory")
    with pytest.raises(StateError, match=rf"{tmp_path / 'state'}: File exists"):
        load(tmp_path / "state")


@pytest.mark.parametrize("stolen", [KEY_FILE, CERTIFICATE_FILE])
def test_first_process_to_link_a_file_wins(state: Path, monkeypatch: pytest.MonkeyPatch, stolen: str) -> None:
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
        "from xds.mesh.identity.state_dir import load_or_create_root, load_or_create_token_key",
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


@pytest.mark.real
def test_concurrent_processes_agree_on_one_root(state: Path) -> None:
    printed = race(
        "root = load_or_create_root(state, 'cluster.local', now)\n"
        "leaf = root.issue('spiffe://cluster.local/ns/a/sa/b', now)\n"
        "print(root.certificate_pem.hex())\n",
        state,
    )
    assert printed == {load(state, datetime.now(UTC)).certificate_pem.hex() + "\n"}
    assert {file.name for file in state.iterdir()} == {KEY_FILE, CERTIFICATE_FILE}


@pytest.mark.real
def test_concurrent_processes_agree_on_one_token_key(state: Path) -> None:
    state.mkdir(mode=0o700)
    printed = race("print(load_or_create_token_key(state).to_text().decode(), end='')", state)
    assert printed == {(state / TOKEN_KEY_FILE).read_text()}
    assert {file.name for file in state.iterdir()} == {TOKEN_KEY_FILE}
    assert mode(state / TOKEN_KEY_FILE) == 0o600


def test_token_key_is_created_once_in_an_existing_directory(state: Path) -> None:
    with pytest.raises(StateError, match=f"{state}.*No such file"):
        load_or_create_token_key(state)
    state.mkdir(mode=0o700)
    assert load_or_create_token_key(state) == load_or_create_token_key(state)


def test_unusable_token_key_is_refused_with_a_hint(state: Path) -> None:
    state.mkdir(mode=0o700)
    load_or_create_token_key(state)
    file = state / TOKEN_KEY_FILE
    file.chmod(0o644)
    with pytest.raises(StateError, match=rf"run 'chmod 600 {file}'.*remove it to create a new key"):
        load_or_create_token_key(state)
    file.chmod(0o600)
    file.write_text("something else")
    with pytest.raises(
        StateError, match=rf"{file}: this is not a token key.*invalidates all tokens"
    ) as refusal:
        load_or_create_token_key(state)
    assert "something else" not in str(refusal.value)


def test_roots_are_readable_without_a_key(state: Path) -> None:
    with pytest.raises(StateError, match=r"root-cert\.pem does not exist: xds serve creates it"):
        roots(state)
    mine = load(state)
    (state / KEY_FILE).unlink()
    assert roots(state) == mine.certificate_pem
    other = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    put(state / MORE_ROOTS_FILE, other.certificate_pem + mine.certificate_pem)
    assert roots(state) == mine.certificate_pem + other.certificate_pem
    put(state / MORE_ROOTS_FILE, b"no")
    with pytest.raises(StateError, match="invalid roots"):
        roots(state)


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("before")
    with file.open() as held:
        write_atomically(file, b"after", 0o600)
        assert held.read() == "before"
    assert (file.read_text(), mode(file)) == ("after", 0o600)
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "d", b"", 0o600)
    assert {path.name for path in tmp_path.iterdir()} == {"token", "d"}


def test_additional_roots_file_is_trusted(state: Path) -> None:
    mine = load(state)
    other = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
    put(state / MORE_ROOTS_FILE, other.certificate_pem + mine.certificate_pem)
    assert load(state).roots == (mine.certificate, other.certificate)


def more_roots() -> bytes:
    return Authority.create(PrivateKey.generate(), "cluster.local", NOW).certificate_pem


FILES = (KEY_FILE, CERTIFICATE_FILE, MORE_ROOTS_FILE, TOKEN_KEY_FILE)
STRANGER = 12345
"""A foreign user and group id."""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")


@pytest.fixture
def filled(state: Path) -> Path:
    """A state directory with all files that one may contain."""
    load(state)
    load_or_create_token_key(state)
    put(state / MORE_ROOTS_FILE, more_roots())
    return state


def use(state: Path, name: str) -> None:
    """Call every function that reads the file."""
    if name == TOKEN_KEY_FILE:
        load_or_create_token_key(state)
        return
    load(state)
    if name != KEY_FILE:
        roots(state)


def refusal(what: Callable[[], object]) -> str:
    with pytest.raises(StateError) as refused:
        what()
    return str(refused.value)


@root_only
@pytest.mark.parametrize("name", FILES)
def test_file_of_another_user_is_refused_with_a_hint(filled: Path, name: str) -> None:
    use(filled, name)
    os.chown(filled / name, STRANGER, -1)
    readers = (
        [load_or_create_token_key]
        if name == TOKEN_KEY_FILE
        else [load]
        if name == KEY_FILE
        else [load, roots]
    )
    for reader in readers:
        message = refusal(lambda reader=reader: reader(filled))
        assert f"{filled / name} belongs to user {STRANGER}" in message
        assert f"run 'chown 0 {filled / name}'" in message


@root_only
def test_directory_of_another_user_is_refused_with_a_hint(filled: Path) -> None:
    os.chown(filled, STRANGER, -1)
    for reader in (load, roots, load_or_create_token_key):
        assert f"run 'chown 0 {filled}'" in refusal(lambda reader=reader: reader(filled))


@pytest.mark.parametrize("loose", [0o664, 0o646, 0o666, 0o620])
@pytest.mark.parametrize("name", [CERTIFICATE_FILE, MORE_ROOTS_FILE])
def test_roots_writable_by_others_are_refused_with_a_hint(filled: Path, name: str, loose: int) -> None:
    (filled / name).chmod(loose)
    for reader in (load, roots):
        message = refusal(lambda reader=reader: reader(filled))
        assert f"(mode {loose:04o})" in message
        assert f"run 'chmod go-w {filled / name}'" in message
    (filled / name).chmod(0o644)
    use(filled, name)


@pytest.mark.parametrize("loose", [0o777, 0o1777, 0o702, 0o757])
def test_directory_writable_by_others_is_refused_with_a_hint(filled: Path, loose: int) -> None:
    filled.chmod(loose)
    for reader in (load, roots, load_or_create_token_key):
        message = refusal(lambda reader=reader: reader(filled))
        assert f"(mode {loose:04o})" in message
        assert f"run 'chmod go-w {filled}'" in message
    load(filled / "within")
    assert mode(filled / "within") == 0o700


@pytest.mark.parametrize("fs_group", [0o2770, 0o2775])
def test_volume_with_an_fs_group_is_accepted(filled: Path, fs_group: int) -> None:
    filled.chmod(fs_group)
    for name in FILES:
        use(filled, name)


@root_only
def test_directory_writable_by_a_foreign_group_is_refused(filled: Path) -> None:
    os.chown(filled, -1, STRANGER)
    filled.chmod(0o770)
    assert "is writable by other users (mode 0770)" in refusal(lambda: load(filled))


@root_only
@pytest.mark.parametrize("name", FILES)
@pytest.mark.real
def test_file_created_by_a_group_member_is_refused(filled: Path, name: str) -> None:
    filled.chmod(0o2770)
    script = (
        "import os, sys; name, group, user = sys.argv[1:]; os.setgid(int(group)); os.setuid(int(user)); "
        "os.unlink(name)\nos.write(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600), sys.stdin.buffer.read())"
    )
    argv = [sys.executable, "-c", script, name, str(filled.stat().st_gid), str(STRANGER)]
    subprocess.run(argv, cwd=filled, input=(filled / name).read_bytes(), check=True)
    assert f"belongs to user {STRANGER}" in refusal(lambda: use(filled, name))


@pytest.mark.parametrize("name", [KEY_FILE, TOKEN_KEY_FILE])
def test_symlinked_key_is_refused(filled: Path, name: str) -> None:
    target = (filled / name).rename(filled / "elsewhere")
    (filled / name).symlink_to(target)
    assert f"{filled / name} is a symbolic link" in refusal(lambda: use(filled, name))


@pytest.mark.parametrize("name", FILES)
def test_fifo_is_refused_without_blocking(filled: Path, name: str) -> None:
    (filled / name).unlink()
    os.mkfifo(filled / name, 0o600)
    assert f"{filled / name} is not a regular file" in refusal(lambda: use(filled, name))


@pytest.mark.parametrize("name", [MORE_ROOTS_FILE, TOKEN_KEY_FILE])
def test_checked_file_is_the_file_that_is_read(
    filled: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fstat, inode = os.fstat, (filled / name).stat().st_ino
    attempts = []

    def exchanging(handle: int) -> os.stat_result:
        status = fstat(handle)
        if status.st_ino == inode:
            attempts.append(name)
            write_atomically(filled / name, b"planted", 0o666)
        return status

    monkeypatch.setattr(os, "fstat", exchanging)
    use_once = load_or_create_token_key if name == TOKEN_KEY_FILE else roots
    use_once(filled)
    assert attempts
    assert (filled / name).read_bytes() == b"planted"
    with pytest.raises(StateError, match="other users"):
        use_once(filled)


def test_malformed_additional_roots_are_refused(state: Path) -> None:
    load(state)
    put(state / MORE_ROOTS_FILE, b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(StateError, match="not a PEM certificate"):
        load(state)
