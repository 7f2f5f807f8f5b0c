"""Build the servers of other projects and their adapters, into .cache/: `python -m` this module does.

Go builds a server of go-control-plane, and Maven and a JDK one of java-control-plane. The messages of the
adapter are generated from the .proto.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kubernetes.environment.binaries import BuildError, go

_ROOT = Path(__file__).parents[2]
_PROTO = "xds/conformance/v1/adapter.proto"
_GENERATORS = {
    "protoc-gen-go": "google.golang.org/protobuf/cmd/protoc-gen-go",
    "protoc-gen-go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
}
_TIMEOUT = 600.0
"""Maximum time of one command, in seconds."""


def build_go() -> Path:
    """Build the program `server`, and return its folder. Raises BuildError."""
    return _build("gocontrolplane", _compile_go)


def build_java() -> Path:
    """Build `classes`, `lib` and `adapter.binpb`, and return their folder. Raises BuildError."""
    return _build("javacontrolplane", _compile_java)


def has_java() -> bool:
    """Return whether Maven and a JDK are installed."""
    return bool(shutil.which("mvn") and shutil.which("javac"))


def _build(name: str, compile_in: Callable[[Path], None]) -> Path:
    """Build in a folder named after the source, unless it exists."""
    source = Path(__file__).with_name(name)
    sources = [*sorted(source.iterdir()), _ROOT / "protos" / _PROTO, Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = _ROOT / ".cache" / f"{name}-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            shutil.copytree(source, making)
            compile_in(making)
            making.rename(folder)
    return folder


def _compile_go(folder: Path) -> None:
    tool = go()
    if tool is None:
        raise BuildError("needs Go (https://go.dev/dl), which builds a server of go-control-plane")
    for name, package in _GENERATORS.items():
        _run(folder, tool, "build", "-o", name, package)
    _protoc(
        folder,
        *(f"--plugin={folder / name}" for name in _GENERATORS),
        *(f"--{kind}_out={folder}" for kind in ("go", "go-grpc")),
    )
    _run(folder, tool, "build", "-p=2", "-trimpath", "-ldflags=-s -w", "-o", "server", ".")


def _compile_java(folder: Path) -> None:
    if not has_java():
        raise BuildError("needs Maven and a JDK, which build a server of java-control-plane")
    _protoc(folder, "--include_imports", f"--descriptor_set_out={folder / 'adapter.binpb'}")
    _run(folder, "mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib")
    _run(folder, "javac", "-cp", "lib/*", "-d", "classes", "Main.java")


def _protoc(folder: Path, *options: str) -> None:
    _run(folder, sys.executable, "-m", "grpc_tools.protoc", f"-I{_ROOT / 'protos'}", _PROTO, *options)


def _run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false -mod=mod", "CGO_ENABLED": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{' '.join(command[:3])}` has not ended after {_TIMEOUT:g} s") from error
    if done.returncode:
        raise BuildError(f"`{' '.join(command[:3])}` failed:\n{(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    try:
        print(build_go())
    except BuildError as error:
        sys.exit(str(error))
    if has_java():
        try:
            print(build_java())
        except BuildError as error:  # Its test is skipped.
            print(error, file=sys.stderr)
