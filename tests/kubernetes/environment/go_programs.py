"""Programs that no package registry has: built with Go from their modules into .cache/."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.environment.binaries import BuildError, go

CACHE = Path(__file__).parents[3] / ".cache"
_PACKAGES_AT_ONCE = 2
"""Maximum number of parallel compilations. Each may need a gigabyte of memory."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A program of a Go module."""

    name: str
    module: str
    version: str
    package: str
    """Path of the program in the module."""
    version_variable: str = ""
    """Variable of the module that contains the version, if the linker must set it."""

    @property
    def path(self) -> Path:
        """Where the program is, once it has been built."""
        return CACHE / f"{self.name}-{self.version}" / self.name

    def build(self) -> Path:
        """Build the program if it is missing, and return its path. Raises BuildError."""
        if self.path.exists():
            return self.path
        CACHE.mkdir(exist_ok=True)
        with (CACHE / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                self._compile()
        return self.path

    def _compile(self) -> None:
        if (tool := go()) is None:
            raise BuildError(f"needs Go (https://go.dev/dl), which builds {self.name} {self.version}")
        print(f"Building {self.name} {self.version}: a few minutes at most", file=sys.stderr, flush=True)
        making = CACHE / f"{self.path.parent.name}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        # `go install` fails if a go.mod has exclude directives.
        (making / "go.mod").write_text(f"module xds.test\ngo 1.24.0\nrequire {self.module} {self.version}\n")
        linking = "-s -w" + (f" -X {self.version_variable}={self.version}" if self.version_variable else "")
        done = subprocess.run(
            [
                *(tool, "build", f"-p={_PACKAGES_AT_ONCE}", "-trimpath", "-ldflags", linking),
                *("-o", self.name, f"{self.module}/{self.package}".rstrip("/")),
            ],
            cwd=making,
            env={**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"{self.name} {self.version} could not be built:\n{done.stderr[-2000:]}")
        making.rename(self.path.parent)


HELM = GoProgram("helm", "helm.sh/helm/v4", "v4.3.2", "cmd/helm")
_CONTAINERD, _CONTAINERD_VERSION = "github.com/containerd/containerd/v2", "v2.4.2"
CONTAINERD = GoProgram("containerd", _CONTAINERD, _CONTAINERD_VERSION, "cmd/containerd")
CTR = GoProgram("ctr", _CONTAINERD, _CONTAINERD_VERSION, "cmd/ctr")
SHIM = GoProgram("containerd-shim-runc-v2", _CONTAINERD, _CONTAINERD_VERSION, "cmd/containerd-shim-runc-v2")
COREDNS = GoProgram("coredns", "github.com/coredns/coredns", "v1.14.2", "")
NODE_PROGRAMS = (CONTAINERD, CTR, SHIM, COREDNS)
"""The programs of nodes that are not Kubernetes' own."""
ACTIONLINT = GoProgram("actionlint", "github.com/rhysd/actionlint", "v1.7.12", "cmd/actionlint")


def main() -> int:
    """Build the named programs, unless Go is missing, and print their paths. Return an exit status."""
    programs = {program.name: program for program in (HELM, ACTIONLINT, *NODE_PROGRAMS)}
    try:
        for name in sys.argv[1:]:
            if go() or programs[name].path.exists():
                print(programs[name].build())
            else:
                print(f"{name} is not built, because Go is not installed", file=sys.stderr)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
