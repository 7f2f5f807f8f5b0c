"""Habits of the command line: suggestions, versions, colors."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import WEB, write_folder, xds
from tests.cli.serve_process import ServeProcess, serving
from tests.support.loopback import free_port
from xds.cli.client_credentials import ClientCredentials
from xds.mesh.model.names import natural_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, all=WEB)


def run(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xds", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)


def address(process: ServeProcess) -> str:
    return f"127.0.0.1:{process.xds}"


# --- versions ---


def test_version_prints_client_and_server(folder: Path) -> None:
    with serving(folder) as process:
        result = xds("version", "--xds-address", address(process), "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    versions = json.loads(result.stdout)
    assert versions == {"client": "0.1.0", "server": "0.1.0"}


def test_version_without_a_server_exits_with_3() -> None:
    result = xds("version", "--xds-address", f"127.0.0.1:{free_port()}")
    assert result.exit_code == 3
    assert result.stdout == "client: 0.1.0\n"
    assert "cannot connect to a control plane" in result.stderr
    result = xds("version", "--client")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "client: 0.1.0\n", "")


def test_environment_variable_sets_the_address(folder: Path) -> None:
    with serving(folder) as process:
        result = run("version", XDS_ADDRESS=address(process))
        assert result.returncode == 0
        assert "server: 0.1.0" in result.stdout
        other = f"127.0.0.1:{free_port()}"
        assert run("version", "--xds-address", other, XDS_ADDRESS=address(process)).returncode == 3


# --- words, colors and order ---


@pytest.mark.parametrize(
    ("typo", "hint"),
    [("stats", " (did you mean status?)"), ("trnslate", " (did you mean translate?)"), ("qqq", "")],
)
def test_mistyped_command_gets_a_suggestion(typo: str, hint: str) -> None:
    result = xds(typo)
    assert result.exit_code == 2
    assert f"unknown command '{typo}'{hint}\n" in result.stderr


def test_every_command_ends_its_help_with_examples() -> None:
    for command in re.findall(r"^  ([a-z][a-z-]*)  ", xds("--help").stdout, re.MULTILINE):
        end = xds(command, "--help").stdout.rpartition("Examples:\n")[2]
        assert f"xds {command}" in end, command


def test_all_namespaces_excludes_a_namespace() -> None:
    result = xds("status", "-A", "-n", "shop")
    assert (result.exit_code, result.stderr) == (
        2,
        "xds: --namespace and --all-namespaces cannot be combined\n",
    )


def on_terminal(*words: object, **env: str) -> str:
    """Return what a command prints on a terminal."""
    other_end, end = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-m", "xds", *map(str, words)],
        stdout=end,
        stderr=end,
        env={**environment, "TERM": "xterm", **env},
        check=False,
    )
    os.close(end)
    shown = b""
    try:
        while part := os.read(other_end, 1 << 16):
            shown += part
    except OSError:  # the end of a terminal
        pass
    os.close(other_end)
    return shown.decode()


def test_no_color_disables_color_on_a_terminal(folder: Path) -> None:
    (folder / "bad.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{}]}\n"
    )
    words = ("reach", "--manifests", folder)
    assert "\x1b[" in on_terminal(*words)
    shown = on_terminal(*words, NO_COLOR="1")
    assert "problem" in shown
    assert "web.shop:80" in shown
    assert not [part for part in shown.split("\x1b[")[1:] if part[0] == "3"], "bold is no color"


def test_names_are_sorted_by_number(folder: Path) -> None:
    result = xds("reach", "--manifests", folder, "--to", "web.shop", "--expand", "-o", "json")
    clients = list(dict.fromkeys(row["client"] for row in json.loads(result.stdout)))
    assert clients == ["web-1.shop", "web-2.shop", "web-10.shop"]


def test_natural_key_orders_numbers_by_value() -> None:
    names = ["", "1", "a", "a1", "a1b", "a2", "a02c", "a10", "a10.b2", "a10.b10", "b", "9" * 5000]
    expected = ["", "1", "9" * 5000, "a", "a1", "a1b", "a2", "a02c", "a10", "a10.b2", "a10.b10", "b"]
    random.shuffle(names)
    assert sorted(names, key=natural_key) == expected


# --- errors and help in plain words ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reach", "-o", "xml"), "'xml' is not one of 'table', 'wide', 'json'"),
        (("serve", "--rollout-timeout", "abc"), "'--rollout-timeout': must be a valid number"),
        (("serve", "--rollout-timeout", "-5"), "'--rollout-timeout': must be at least 0"),
        (("init", "--envoy-port", "99999"), "must be at most 65535"),
        (("install", "--only", "foo"), "'--only': 'foo' is not one of 'crds'"),
        (("reach", "--manifests", "/none"), "/none: no such file or folder"),
        (("completion", "tcsh"), "Invalid value for 'SHELL': 'tcsh' is not one of"),
    ],
)
def test_invalid_value_is_explained_in_plain_words(words: tuple[str, ...], message: str) -> None:
    result = xds(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not re.search(r"Value error|Input should|unable to parse", result.stderr)


def test_help_has_no_type_names_of_python() -> None:
    for command in re.findall(r"^  ([a-z][a-z-]*)  ", xds("--help").stdout, re.MULTILINE):
        text = xds(command, "--help").stdout.partition("Examples:")[0]
        assert not re.search(r"<\w|\{|\b(str|int|float|RANGE)\b|list\[|<=x|x>=", text), command
    assert "Usage: xds translate [OPTIONS] POD.NAMESPACE\n" in xds("translate", "--help").stdout
    assert re.search(
        r"--envoy-port NUMBER .*\[default: 15001; 1 to\s+65535\]", xds("init", "--help").stdout, re.DOTALL
    )


def test_unreachable_control_plane_is_explained_in_one_line(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    result = run("status", "--xds-address", place)
    assert result.returncode == 3
    assert result.stderr == (
        f"xds: cannot connect to a control plane at {place}: start `xds serve`, or set --xds-address to its "
        "xDS address, or --context to find it in a cluster (connection refused)\n"
    )
    (tmp_path / "root.pem").write_text("nothing")
    result = run("status", "--xds-address", place, "--ca-file", tmp_path / "root.pem")
    error = f"xds: --ca-file {tmp_path}/root.pem contains no certificate in PEM format\n"
    assert (result.returncode, result.stderr) == (2, error)


@pytest.mark.parametrize(
    "option", ["--xds-address", "--admin-address", "--rest-address", "--xds-tls-address"]
)
def test_address_in_use_names_the_option_to_change(folder: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        place = f"127.0.0.1:{occupied.getsockname()[1]}"
        addresses = {"--xds-address": "127.0.0.1:0", "--admin-address": "127.0.0.1:0", option: place}
        words = [word for pair in addresses.items() for word in pair]
        result = run("serve", "--manifests", folder, "--state-dir", folder.parent / "state", *words)
    assert result.returncode == 1
    assert f"cannot listen on {place}: address already in use (choose another with {option}" in result.stderr
    assert not re.search(r"Errno|add_port|GRPC_VERBOSITY|Traceback", result.stderr)


def test_check_validates_its_options_before_the_cluster(tmp_path: Path) -> None:
    absent = str(tmp_path / "config")
    (tmp_path / "root.pem").write_text("nothing")
    words = ("check", "--xds-address", "127.0.0.1:1", "--ca-file", tmp_path / "root.pem")
    result = run(*words, KUBECONFIG=absent)
    error = f"xds: --ca-file {tmp_path}/root.pem contains no certificate in PEM format\n"
    assert (result.returncode, result.stderr) == (2, error)
    result = run("check", "--xds-address", "nonsense", KUBECONFIG=absent)
    assert result.returncode == 2
    assert "is not HOST:PORT" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("reach",),
        ("plan", "--delete", "PeerAuthentication/shop/default"),
        ("translate", "web-1.shop"),
        ("explain", "web-1.shop", "web.shop"),
        ("describe", "pod", "web-1.shop"),
    ],
    ids=lambda words: words[0],
)
def test_unreachable_api_server_exits_with_3(words: tuple[str, ...], tmp_path: Path) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    config = tmp_path / "config"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {}}],\n"
        "contexts: [{name: c, context: {cluster: k, user: u}}],\n"
        f"clusters: [{{name: k, cluster: {{server: '{server}'}}}}]}}\n"
    )
    result = xds(*words, "--kubernetes", "--kubeconfig", config)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"xds: the API server at {server} cannot be reached: ")
    assert "Exit status:" in (text := xds(words[0], "--help").stdout)
    assert "3 the" in text


def test_credentials_are_repeated_in_a_suggested_command() -> None:
    credentials = ClientCredentials(roots=Path("root cert.pem"), token=Path("token"))
    assert credentials.to_options() == " --ca-file 'root cert.pem' --token-file token"
    assert ClientCredentials().to_options() == ""


def test_missing_kubeconfig_is_explained(tmp_path: Path) -> None:
    config = tmp_path / "config"
    result = run("check", KUBECONFIG=str(config))
    error = f"xds: there is no kubeconfig at {config}: set --kubeconfig or KUBECONFIG\n"
    assert (result.returncode, result.stderr) == (2, error)
    config.write_text("text")
    result = run("check", KUBECONFIG=str(config))
    error = f"xds: {config} is not a valid kubeconfig file\n"
    assert (result.returncode, result.stderr) == (2, error)
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: '', contexts: [], clusters: [], users: []}"
    )
    result = run("check", "--context", "x", KUBECONFIG=str(config))
    error = f"xds: {config} has no context x: kubectl config get-contexts lists them\n"
    assert (result.returncode, result.stderr) == (2, error)
