"""istiod with measurements from outside: `python benchmarks/istiod.py PROGRAM KUBECONFIG`."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from typing import Any

from control import cpu_seconds, read_command, respond
from manifests import ROOT_NAMESPACE
from probe import memory, reset_peak

from xds.demo.stage import free_ports

_ENVIRONMENT = {
    "POD_NAMESPACE": ROOT_NAMESPACE,
    "PILOT_MAX_REQUESTS_PER_SECOND": "100000",  # By default, it accepts 25 streams a second on two cores.
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
}
_TIMEOUT = 60.0
"""Time for istiod to be ready, in seconds."""
_POLL = 0.01
"""Interval of the checks until then, in seconds."""


def main() -> None:
    """Run istiod until stdin is closed, or until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Otherwise, istiod would go on.
    program, kubeconfig = sys.argv[1:]
    ports = free_ports(5)
    flags = ("grpcAddr", "httpAddr", "httpsAddr", "secureGRPCAddr", "monitoringAddr")
    addresses = [f"--{flag}=127.0.0.1:{port}" for flag, port in zip(flags, ports, strict=True)]
    with tempfile.TemporaryDirectory() as folder:  # It reads and writes files of its working directory.
        started = time.monotonic()
        istiod = subprocess.Popen(
            [program, "discovery", f"--kubeconfig={kubeconfig}", "--ctrlz_port=0", *addresses],
            cwd=folder,
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        try:
            _wait_until_ready(istiod, ports[1])
            ready = {"started": started, "ready": time.monotonic()}
            respond({"ports": (ports[0], ports[3]), **ready, **_sample(istiod.pid)})
            while True:
                read_command(lambda command: respond(_handle(command["do"], istiod.pid)))
        finally:
            istiod.kill()
            istiod.wait()


def _handle(command: str, pid: int) -> dict[str, Any]:
    return _sample(pid) if command == "sample" else {"idle": True}  # Only its bytes tell when it is idle.


def _sample(pid: int) -> dict[str, Any]:
    sample = {
        "changed": 0.0,
        "cpu": cpu_seconds(pid),
        "rss": memory("VmRSS", pid),
        "peak": memory("VmHWM", pid),
        "block": 0.0,
        "culprit": "not measured",
        "collecting": 0.0,
        "encoded": {},
    }
    reset_peak(pid)
    return sample


def _wait_until_ready(istiod: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _TIMEOUT
    while istiod.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/ready")
            is_ready = connection.getresponse().status == HTTPStatus.OK
            connection.close()
            if is_ready:
                return
        time.sleep(_POLL)
    raise SystemExit(f"istiod was not ready within {_TIMEOUT:.0f} s, or exited")


if __name__ == "__main__":
    main()
