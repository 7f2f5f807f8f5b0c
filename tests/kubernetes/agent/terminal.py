"""A user's terminal: bash, a kubectl whose `exec` works without a kubelet, and stand-ins for istioctl."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.agent.agent import Agent

_KUBECTL = """\
#!/bin/bash
[ "$1" = exec ] || exec '{kubectl}' "$@"
shift
namespace=default
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; break ;;
    -c) container=$2; shift 2 ;;
    -n) namespace=$2; shift 2 ;;
    -n*) namespace=${{1#-n}}; shift ;;
    *) pod=$1; shift ;;
  esac
done
'{pods}'/"$namespace.$pod/$container.exec" "$@"
status=$?
[ $status = 0 ] || echo "command terminated with exit code $status" >&2
exit $status
"""
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
    """Runs command lines in a folder, as an administrator of an agent's cluster."""

    def __init__(self, agent: Agent, tools: Path, folder: Path) -> None:
        """Create the tools in `tools`. Commands run in `folder`."""
        tools.mkdir()
        self._tools, self._folder, self._cluster = tools, folder, agent.cluster
        kubectl = _KUBECTL.format(kubectl=agent.cluster.control_plane.kubectl, pods=agent.folder)
        istioctl = _ISTIOCTL.format(python=sys.executable)
        for name, text in {"kubectl": kubectl, "istioctl": istioctl}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)

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
