"""A port-forward to the control plane in a cluster, for commands that are not asynchronous."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from threading import Event, Thread

import typer

from xds.cli.options import Address, ClusterReference
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.kube.install import NAMESPACE
from xds.mesh.kube.port_forward import Forwarder, PortForwardError, find_pod

CLOSE_TIMEOUT = 5.0
"""Seconds to wait for connections to close."""


class PortForward:
    """Leads a Unix socket or a local port to a port of a ready pod, in a thread, until it is closed."""

    def __init__(self, cluster: ClusterReference, port: int, *, local: Address | None = None) -> None:
        """Connect to the pod.

        Args:
            cluster: the cluster, and the namespace of the control plane in it.
            port: port on the loopback address of the pod.
            local: address to listen on, or another port if it is in use; errors of connections are then
                printed. None for a Unix socket that other users of this machine cannot open.

        Raises:
            PortForwardError: no pod can be reached. The message explains why, and what to do.
            KubeConfigError: the kubeconfig is missing or invalid.
        """
        self.pod = ""
        """The pod: NAMESPACE/NAME."""
        self.context = ""
        """Context of the kubeconfig; empty in a cluster."""
        self.target = ""
        """Address of the local end, as gRPC expects it."""
        self.error = ""
        """Why a connection failed most recently; empty if none failed."""
        self.lost = Event()
        """Set when the pod cannot be reached any more."""
        self._cluster, self._port, self._local = cluster, port, local
        self._opened: Future[None] = Future()
        # Ctrl-C while it opens ends the program, and a daemon with it.
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        self._opened.result()

    def __str__(self) -> str:
        return f"pod {self.pod}"

    def close(self) -> None:
        """Close all connections."""
        assert self._task  # noqa: S101 - set by the thread
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            if not self._opened.done():
                self._opened.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        namespace = self._cluster.namespace or NAMESPACE
        async with await KubeApi.connect(self._cluster.kubeconfig, self._cluster.context) as api:
            try:
                name = await find_pod(api, namespace)
                forwarder = Forwarder(api, namespace, name, self._port, self._report)
                await forwarder.open()
            except KubeError as error:
                raise PortForwardError(_explain(error, namespace)) from error
            self.pod, self.context = f"{namespace}/{name}", api.context
            with tempfile.TemporaryDirectory(prefix="xds-") as folder:
                server = await self._listen(forwarder, Path(folder))
                self._opened.set_result(None)
                try:
                    await asyncio.Event().wait()
                finally:
                    server.close()

    async def _listen(self, forwarder: Forwarder, folder: Path) -> asyncio.Server:
        if self._local is None:
            path = folder / "forward.sock"
            self.target = f"unix:{path}"
            return await asyncio.start_unix_server(forwarder.relay, path)
        try:
            server = await asyncio.start_server(forwarder.relay, *self._local)
        except OSError:
            server = await asyncio.start_server(forwarder.relay, self._local.host, 0)
        self.target = str(Address(*server.sockets[0].getsockname()[:2]))
        return server

    def _report(self, reason: str, is_lost: bool) -> None:
        self.error = f"the port-forward to {self} failed: {reason}"
        if is_lost:
            self.lost.set()
        elif self._local:
            typer.echo(f"xds: {self.error}", err=True)


def _explain(error: KubeError, namespace: str) -> str:
    """Return why the API server refused a request, and which permissions are needed."""
    if not error.status:
        return str(error)
    message = str(error).rstrip(": ")  # no reason follows if `create` is missing
    needs = (
        f" (required in namespace {namespace}: list on pods, and get and create on pods/portforward)"
        if error.status == HTTPStatus.FORBIDDEN
        else ""
    )
    return f"the API server refused a port-forward: {message}{needs}"
