"""Find or build the programs of a Kubernetes control plane; `python -m` this module builds them.

They are looked for in the folder KUBEBUILDER_ASSETS, the convention of envtest, and then below .cache/, where
the build puts them. No package registry has them, so Go builds them from source: one program, see go/main.go,
under five names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NODE_NAMES = ("kube-scheduler", "kubelet", "kube-proxy")
"""The programs that run pods."""
OPTIONAL = ("kube-controller-manager", *NODE_NAMES)
"""The programs that envtest's archives lack."""
NAMES = ("etcd", "kube-apiserver", "kubectl", *OPTIONAL)
REQUIRED = "XDS_REQUIRE_KUBERNETES"
"""Environment variable: on a machine with Go, missing programs fail tests instead of skipping them."""

_SOURCE = Path(__file__).with_name("go")
_CACHE = Path(__file__).parents[3] / ".cache"
_ONE = "kubernetes"
_BUILT_FROM = "built-from.sha256"
_PACKAGES_AT_ONCE = 2
"""Maximum number of parallel compilations. Each may need a gigabyte of memory."""


def version() -> str:
    """Return the version that this source builds."""
    match = re.search(r"^\s*k8s\.io/kubernetes v(\S+)$", (_SOURCE / "go.mod").read_text(), re.MULTILINE)
    assert match, "go.mod requires k8s.io/kubernetes"
    return match[1]


def find() -> dict[str, Path]:
    """Return the available programs; empty if a required one is missing."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    folder = Path(assets) if assets else _built()
    programs = {name: folder / name for name in NAMES if os.access(folder / name, os.X_OK)}
    return programs if all(name in programs or name in OPTIONAL for name in NAMES) else {}


def why_none() -> str:
    """Return what is missing and how to get it; empty if nothing is missing."""
    if find():
        return ""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        missing = [name for name in NAMES if name not in OPTIONAL and not (Path(assets) / name).exists()]
        return f"KUBEBUILDER_ASSETS={assets} has no {', '.join(missing)}"
    return (
        f"needs {', '.join(NAMES)}: `make kubernetes` builds them with Go in about 5 minutes, "
        "or KUBEBUILDER_ASSETS names a folder that has them (setup-envtest)"
    )


def go() -> str | None:
    """Return the Go tool, also if it is installed outside PATH."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")


class BuildError(Exception):
    """The programs could not be built. The message has the output."""


def build() -> None:
    """Build the programs, all at once, unless they exist and match this source. Raises BuildError."""
    with _alone():
        if _is_current(_built()):
            return
        tool = go()
        assert tool, "the caller has looked"
        making, outdated = (_CACHE / f"{_built().name}.{state}" for state in ("making", "outdated"))
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        try:
            _compile(tool, making)
            for name in NAMES:
                (making / name).symlink_to(_ONE)
            (making / _BUILT_FROM).write_text(_fingerprint())
            if _built().exists():
                _built().rename(outdated)
            making.rename(_built())
        finally:
            shutil.rmtree(making, ignore_errors=True)
            shutil.rmtree(outdated, ignore_errors=True)


def _compile(tool: str, into: Path) -> None:
    """Compile in a copy of the source: Go writes go.sum there."""
    source = into / "source"
    shutil.copytree(_SOURCE, source)
    number = version()
    major, minor, _ = number.split(".", 2)
    version_package = "k8s.io/component-base/version"
    values = {
        f"{version_package}.gitVersion": f"v{number}",
        f"{version_package}.gitMajor": major,
        f"{version_package}.gitMinor": minor,
    }
    linking = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])
    command = [tool, "build", "-v", "-trimpath", "-ldflags", linking, "-o", str(into / _ONE), "."]
    # git ignores the folder, so Go cannot determine a version.
    flags = f"-mod=mod -buildvcs=false -p={_PACKAGES_AT_ONCE}"
    with subprocess.Popen(
        command,
        cwd=source,
        env={**os.environ, "GOFLAGS": flags, "CGO_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout
        last = _follow(process.stdout)
    if process.returncode:
        raise BuildError(f"`{' '.join(command[:2])}` ended with status {process.returncode}:\n{last}")
    shutil.rmtree(source)


def _follow(lines: Iterator[str]) -> str:
    """Show the progress of a build, and return the end of its output."""
    output: list[str] = []
    packages, spoke = 0, time.monotonic()
    for line in lines:
        output = [*output[-40:], line]
        packages += not line.startswith("go: ")
        if time.monotonic() - spoke > 20:
            spoke = time.monotonic()
            print(f"  {packages} packages compiled; now {line.strip()}", flush=True)
    return "".join(output)


def _built() -> Path:
    return _CACHE / f"kubernetes-{version()}"


def _is_current(folder: Path) -> bool:
    built_from = folder / _BUILT_FROM
    complete = all(os.access(folder / name, os.X_OK) for name in NAMES)
    return complete and built_from.exists() and built_from.read_text() == _fingerprint()


def _fingerprint() -> str:
    """Return a hash of this source and its build options."""
    parts = [Path(__file__), *sorted(path for path in _SOURCE.iterdir() if path.suffix in {".go", ".mod"})]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in parts)).hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for another build to end."""
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build missing programs, if possible; return an exit status."""
    if os.environ.get("KUBEBUILDER_ASSETS"):
        if reason := why_none():
            print(reason, file=sys.stderr)
            return 1
        return 0
    if not _is_current(_built()):
        if go() is None:
            print("Kubernetes is not built, because Go is not installed (https://go.dev/dl):")
            print(f"tests that need it will be skipped. {why_none()}.")
            return 0
        print(
            f"Building Kubernetes {version()} for the tests: the first time takes about 5 minutes", flush=True
        )
    try:
        build()
    except BuildError as error:
        print(f"Kubernetes {version()} could not be built. {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
