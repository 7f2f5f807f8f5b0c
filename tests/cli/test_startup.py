"""The program starts quickly: its messages have no validators, and still encode to the same bytes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from pydantic import ValidationError
from pydantic.dataclasses import is_pydantic_dataclass

from tests.golden.digests import digests
from xds.cli import startup

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "tests/golden/base/in.yaml"
COUNTS = """
import json, sys
from xds.cli import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
import gc
from envoy_data_plane.message_pool import default_message_pool
from pydantic.dataclasses import is_pydantic_dataclass
from xds.cli.startup import _generate_init
messages = [cls for cls in default_message_pool.type_to_url if cls.__module__ in sys.modules]
counts = {
    "messages": len(messages),
    "validators": sum(map(is_pydantic_dataclass, messages)),
    "initializers": sum(cls.__init__ is not _generate_init for cls in messages),
    "garbage collection": gc.isenabled(),
    "frozen": gc.get_freeze_count() > 0,
}
print(json.dumps(counts), file=sys.stderr)
"""


def run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def in_program(code: str) -> str:
    """Run code in a process that starts as the program does."""
    return run(f"from xds.cli import startup; startup.start(); startup.finish()\n{code}").stdout


@pytest.mark.parametrize("command", ["bootstrap", "translate"])
def test_command_generates_no_validators_and_few_initializers(command: str) -> None:
    done = run(COUNTS, command, "client.ns", "--manifests", MANIFESTS)
    assert json.loads(done.stdout)
    counts = json.loads(done.stderr.splitlines()[-1])
    assert 100 < counts["messages"] < 1_000
    assert counts["validators"] == 0
    assert counts["initializers"] < 100
    assert counts["garbage collection"]
    assert counts["frozen"]


def test_control_plane_imports_only_what_it_needs() -> None:
    """Imports take half of the CPU time of a start with 10,000 pods."""
    code = "import sys, xds.cli.serve, xds.mesh.controlplane.in_cluster; print(*sys.modules)"
    imported = {f"{name}." for name in in_program(code).split()}
    unneeded = (
        *("rich.", "pygments.", "urllib3.", "requests.", "watchfiles."),
        *("kubernetes.client.", "kubernetes.config.", "kubernetes.dynamic.", "kubernetes.utils."),
        *("kubernetes.aio.dynamic.", "kubernetes.aio.stream.", "kubernetes.aio.watch."),
        "kubernetes.aio.client.models.v1",
    )
    # A module of `startup.UNUSED` is listed, but has not imported its own modules.
    delayed = {f"{name}." for name in startup.UNUSED}
    assert not {name for name in imported - delayed if name.startswith(unneeded)}
    assert len(imported) < 1_160


def test_commands_for_a_cluster_do_not_import_the_server() -> None:
    imported = in_program("import sys, xds.cli.cluster; print(*sys.modules)").split()
    assert "xds.mesh.kube.reflector" in imported
    assert not {"grpc", "xds.server"} & {*imported}


@pytest.mark.parametrize("earlier", ["", "import rich.console, rich.pretty, rich.traceback"])
def test_only_structlog_does_without_rich(earlier: str) -> None:
    assert (
        in_program(
            f"{earlier}\n"
            "import structlog.dev, structlog.tracebacks\n"
            "from rich.console import Console\n"
            "assert structlog.dev.rich is structlog.tracebacks.rich is None\n"
            "Console().print('[bold]rich[/bold]')\n"
        )
        == "rich\n"
    )


def test_plain_messages_have_the_bytes_of_validated_ones() -> None:
    code = "import json; from tests.golden.digests import digests; print(json.dumps(digests()))"
    assert json.loads(in_program(code)) == digests()


def test_library_and_tests_keep_validators() -> None:
    assert is_pydantic_dataclass(core.Address)
    with pytest.raises(ValidationError):
        core.SocketAddress(port_value=-1)


def test_program_refuses_wrong_values_when_it_encodes_them() -> None:
    refused = in_program(
        "from envoy_data_plane.envoy.config.core import v3 as core\n"
        "from xds.codec import encode\n"
        "def error(make):\n"
        "    try: return encode(make())\n"
        "    except Exception as error: return type(error).__name__\n"
        "print(error(lambda: core.SocketAddress(port_value=-1)))\n"
        "print(error(lambda: core.SocketAddress(address=7)))\n"
        "print(error(lambda: core.Address(pipe=core.Pipe(), socket_address=core.SocketAddress())))\n"
        "print(error(lambda: core.SocketAddress(prot_value=1)))\n"
    )
    assert refused.split() == ["ValueError", "TypeError", "ValueError", "TypeError"]


def test_messages_behave_as_dataclasses_do() -> None:
    assert in_program(
        "import copy, dataclasses, pickle\n"
        "from envoy_data_plane.envoy.config.core import v3 as core\n"
        "message = core.SocketAddress(address='a', port_value=0)\n"
        "assert core.SocketAddress() == core.SocketAddress.parse(b'')\n"
        "assert core.Metadata().filter_metadata is not core.Metadata().filter_metadata\n"
        "for other in (copy.deepcopy(message), pickle.loads(pickle.dumps(message)),\n"
        "              dataclasses.replace(message), core.SocketAddress.from_dict(message.to_dict())):\n"
        "    assert other == message and other is not message\n"
        "print(repr(message))\n"
    ).strip() == repr(core.SocketAddress(address="a", port_value=0))


def test_other_dataclasses_of_pydantic_keep_validators() -> None:
    assert (
        in_program(
            "import xds.codec\n"
            "from pydantic.dataclasses import dataclass, is_pydantic_dataclass\n"
            "@dataclass\n"
            "class First: x: int\n"
            "@dataclass(frozen=True)\n"
            "class Second: x: int\n"
            "print(is_pydantic_dataclass(First), Second('7'))\n"
        )
        == "True Second(x=7)\n"
    )


def test_start_after_the_messages_were_imported_changes_nothing() -> None:
    finders = list(sys.meta_path)
    startup.start()
    try:
        assert sys.meta_path == finders
    finally:
        gc.enable()


def test_finish_without_start_freezes_nothing() -> None:
    frozen = gc.get_freeze_count()
    startup.finish()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, frozen)
