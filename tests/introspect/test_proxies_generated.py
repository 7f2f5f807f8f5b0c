"""The code that is generated from protos/ fits the protobuf runtime and the definitions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from xds.mesh.v1 import described, proxies_pb2

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "xds" / "mesh" / "v1"


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_oldest_allowed_protobuf_runs_generated_code() -> None:
    """Generated code rejects a runtime that is older than its compiler."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [allowed] = [each for each in project["dependencies"] if each.startswith("protobuf")]
    oldest = version(allowed.removeprefix("protobuf>="))
    compiler = re.search(
        r"^# Protobuf Python Version: (.+)$", (GENERATED / "proxies_pb2.py").read_text(), re.MULTILINE
    )
    assert compiler
    assert oldest >= version(compiler[1])


def test_the_comments_are_those_of_the_definition() -> None:
    file = described(proxies_pb2.DESCRIPTOR.name)
    assert file
    comments = {location.leading_comments.strip() for location in file.source_code_info.location}
    assert "What a type waits for." in comments
    assert described("google/protobuf/timestamp.proto") is None
    file.ClearField("source_code_info")
    plain = type(file).FromString(proxies_pb2.DESCRIPTOR.serialized_pb)
    for each in (file, plain):
        clear_json_names(each)
    assert file == plain


def clear_json_names(file) -> None:
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            field.ClearField("json_name")


def test_generated_code_matches_the_definitions(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="needs protoc: pip install --group check")
    (tmp_path / "xds/mesh/v1").mkdir(parents=True)
    arguments = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "--include_source_info"]
    arguments.append(f"--descriptor_set_out={tmp_path}/xds/mesh/v1/descriptors.binpb")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *arguments),
            *sorted(f"xds/mesh/v1/{path.name}" for path in (ROOT / "protos/xds/mesh/v1").glob("*.proto")),
        ],
        cwd=ROOT,
        check=True,
    )
    made = {path.name: path.read_bytes() for path in (tmp_path / "xds/mesh/v1").iterdir()}
    kept = {
        path.name: path.read_bytes()
        for path in GENERATED.iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert made == kept
