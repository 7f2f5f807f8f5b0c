"""Build the server of go-control-plane and its adapter with Go, into .cache/.

The adapter's Go code is generated from the .proto by the generators that go.mod names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.kubernetes.environment.binaries import BuildError, go

_ROOT = Path(__file__).parents[2]
_SOURCE = Path(__file__).with_name("gocontrolplane")
_PROTO = "xds/conformance/v1/adapter.proto"
_PACKAGE = "xds.test/conformance"
_GENERATORS = {
    "protoc-gen-go": "google.golang.org/protobuf/cmd/protoc-gen-go",
    "protoc-gen-go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
}


def build() -> Path:
    """Build the server unless it exists and matches the source, and return its path. Raises BuildError."""
    sources = [*sorted(_SOURCE.iterdir()), _ROOT / "protos" / _PROTO]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = _ROOT / ".cache" / f"gocontrolplane-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "gocontrolplane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            shutil.copytree(_SOURCE, making)
            _compile(making)
            making.rename(folder)
    return folder / "server"


def _compile(folder: Path) -> None:
    tool = go()
    if tool is None:
        raise BuildError("needs Go (https://go.dev/dl), which builds a server of go-control-plane")
    for name, package in _GENERATORS.items():
        _run(folder, tool, "build", "-o", name, package)
    generated = folder / "conformance"
    generated.mkdir()
    _run(
        folder,
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{_ROOT / 'protos'}", _PROTO),
        *(f"--plugin={folder / name}" for name in _GENERATORS),
        *(f"--{kind}_out={folder}" for kind in ("go", "go-grpc")),
        *(f"--{kind}_opt=module=xds.test,M{_PROTO}={_PACKAGE}" for kind in ("go", "go-grpc")),
    )
    _run(folder, tool, "build", "-p=2", "-trimpath", "-ldflags=-s -w", "-o", "server", ".")


def _run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false -mod=mod", "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"`{' '.join(command[:3])}` failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
