"""The programs that image names stand for, and command lines that run their containers."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kubernetes.agent.fields import expanded
from tests.kubernetes.agent.volumes import Mount
from tests.support.node import etc
from tests.support.places import Namespace
from xds.mesh.kube.api import Json

LAUNCH = Path(__file__).with_name("launch.py")
_PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"(?:.*/)?([^/:@]+)(?:[:@].*)?")
_NAMES = ("hosts", "resolv.conf")
_ROOT, _NOBODY = 0, 65534


def command(container: Json, variables: Mapping[str, str]) -> list[str]:
    """Return the command of a container. Raises ValueError if the image is unknown."""
    name = _NAME.sub(r"\1", container["image"])
    if name == "httpbin":
        return [sys.executable, "-m", "xds.demo.httpbin", "0.0.0.0", "80"]
    if name in {"sleep", "curl", "curl-ssl"}:
        return ["sleep", "infinity"]
    if name == "xds":
        given = [expanded(text, variables) for text in container.get("args", ())]
        entry = [expanded(text, variables) for text in container.get("command", ())] or ["xds"]
        return [sys.executable, "-m", *entry, *given] if entry[0] == "xds" else [*entry, *given]
    raise ValueError(f"no image {container['image']!r}: there are httpbin, sleep, curl and xds")


def launched(
    pod: Json,
    container: Json,
    variables: Mapping[str, str],
    mounts: Sequence[Mount],
    place: Namespace,
    file: Path,
) -> list[str]:
    """Describe a container's process in `file`, and return the command line that starts it.

    The script beside it, FILE.exec, runs any command the same way.
    """
    user, group, groups = identity(pod, container)
    become = ["setpriv", "--pdeathsig", "KILL", f"--reuid={user}", f"--regid={group}"]
    become += [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    security = container.get("securityContext", {})
    capabilities = security.get("capabilities", {})
    kept = [f"+{name.lower()}" for name in capabilities.get("add", ())]
    if user != _ROOT and not _everybody_can_read(Path(sys.executable), LAUNCH):
        # All users can read an image's files, but these may be below a private home directory.
        become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        kept.append("+dac_read_search")
    if "ALL" in capabilities.get("drop", ()):
        become.append(f"--bounding-set={','.join(['-all', *kept])}")
    if security.get("allowPrivilegeEscalation") is False:
        become.append("--no-new-privs")
    config = {
        "become": [*become, "--"],
        "argv": command(container, variables),
        "environment": {"PATH": _PATH, "HOME": "/", "HOSTNAME": pod["metadata"]["name"], **variables},
        "hostname": pod["metadata"]["name"],
        # Last, because a mount below /etc may hide it.
        "mounts": [*mounts, *(Mount(str(etc(place, name)), f"/etc/{name}", False) for name in _NAMES)],
        "read_only": bool(security.get("readOnlyRootFilesystem")),
    }
    file.write_text(json.dumps(config))
    line = place.command(sys.executable, "-I", "-S", str(LAUNCH), str(file))
    script = file.with_suffix(".exec")
    script.write_text(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
    script.chmod(0o755)
    return line


def identity(pod: Json, container: Json) -> tuple[int, int, list[int]]:
    """Return the user, group and supplementary groups of a container."""
    asked = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    user = asked.get("runAsUser", _NOBODY if asked.get("runAsNonRoot") else _ROOT)
    further = [*asked.get("supplementalGroups", ()), *([asked["fsGroup"]] if "fsGroup" in asked else ())]
    return user, asked.get("runAsGroup", user if user in {_ROOT, _NOBODY} else 0), further


def _everybody_can_read(*files: Path) -> bool:
    folders = {parent for file in files for path in (file, file.resolve()) for parent in path.parents}
    return all(folder.stat().st_mode & 0o001 for folder in folders)
