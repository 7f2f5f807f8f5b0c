"""A user's terminal: bash, kubectl, and a stand-in for istioctl."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.environment.cluster import Cluster

_ISTIOCTL = """\
#!/bin/bash
command="$1 $2"; shift 2
case "$command" in
  "manifest apply")
    # There are no profiles.
    given=()
    while [ $# -gt 0 ]; do [ "$2" = profile=demo ] || given+=("$1" "$2"); shift 2; done
    exec '{python}' -m xds install "${{given[@]}}" ;;
  "kube-inject -f") exec '{python}' -m xds inject -f "$@" ;;
esac
echo "what is to be done for istioctl $command?" >&2
exit 1
"""


@dataclass(frozen=True, slots=True)
class Printed:
    """A command's output and exit status."""

    status: int
    output: str
    error: str


class Terminal:
    """Runs command lines in a folder, as an administrator of a cluster."""

    def __init__(self, cluster: Cluster, tools: Path, folder: Path) -> None:
        """Create the tools in `tools`. Commands run in `folder`."""
        tools.mkdir()
        self._tools, self._folder, self._cluster = tools, folder, cluster
        (tools / "kubectl").symlink_to(cluster.control_plane.kubectl)
        (tools / "istioctl").write_text(_ISTIOCTL.format(python=sys.executable))
        (tools / "istioctl").chmod(0o755)

    async def run(self, commands: str, *, timeout: float = 300) -> Printed:
        """Run commands until they end."""
        kubeconfig = await self._cluster.kubeconfig()
        path = f"{self._tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            commands,
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PATH": path, "HOME": str(self._tools), "KUBECONFIG": str(kubeconfig)},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout):
                output, error = await process.communicate()
        except BaseException:
            os.killpg(process.pid, 9)
            await process.wait()
            raise
        assert process.returncode is not None
        return Printed(process.returncode, output.decode(), error.decode())
