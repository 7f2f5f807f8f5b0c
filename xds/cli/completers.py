"""Names that the shell completes: pods, services, namespaces and proxies.

An argument or option is completed by its metavar: `POD.NS` stands for a pod in every command.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from xds.cli.client_options import XDS_ADDRESS
from xds.mesh.model.names import natural_key

if TYPE_CHECKING:
    from xds.mesh.model.mesh import Mesh
    from xds.mesh.v1 import proxies_pb2

_Result = TypeVar("_Result")

TIMEOUT = 2.0
"""Seconds to wait for the control plane. The user's shell is blocked meanwhile."""


def join_assignments(words: list[str], current: int) -> tuple[list[str], int]:
    """Undo bash's splitting of --option=value into three words.

    Args:
        words: the words of the command line.
        current: the index of the word to complete.

    Returns:
        The joined words, and the index of the word to complete among them.
    """
    joined: list[str] = []
    index = 0
    for number, word in enumerate(words):
        is_value = bool(joined) and joined[-1].startswith("--") and joined[-1].endswith("=")
        is_sign = word == "=" and bool(joined) and joined[-1].startswith("--")
        if is_value or is_sign:
            joined[-1] += word
        else:
            joined.append(word)
        if number == current:
            index = len(joined) - 1
    return joined, index


def add_completers(command: Any) -> None:
    """Complete the parameters of a command whose metavar stands for a name."""
    for param in command.params:
        if completer := _COMPLETERS.get(param.metavar):
            param._custom_shell_complete = completer  # as typer's `autocompletion` does


def _pods(context: typer.Context, _: Any, incomplete: str) -> list[str]:
    mesh = _read_mesh(context)
    names = [f"{pod.name}.{pod.namespace}" for pod in mesh.pods()] if mesh else _proxies(context)
    return _matching(names, incomplete)


def _services(context: typer.Context, _: Any, incomplete: str) -> list[str]:
    mesh = _read_mesh(context)
    names = [f"{service.name}.{service.namespace}" for service in mesh.services()] if mesh else []
    return _matching(names, incomplete)


def _namespaces(context: typer.Context, _: Any, incomplete: str) -> list[str]:
    if mesh := _read_mesh(context):
        names = [item.namespace for items in (mesh.pods(), mesh.services()) for item in items]
    else:
        names = [name.rpartition(".")[2] for name in _proxies(context)]
    return _matching(names, incomplete)


_COMPLETERS: dict[str | None, Callable[[typer.Context, Any, str], list[str]]] = {
    "POD.NAMESPACE": _pods,
    "POD.NS": _pods,
    "POD.NS|NS/ACCOUNT": _pods,
    "CLIENT": _pods,
    "PROXY": _pods,
    "SERVICE.NS": _services,
    "SERVICE.NS[:PORT]": _services,
    "SERVICE": _services,
    "NS": _namespaces,
}


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)}, key=natural_key)


def _read_mesh(context: typer.Context) -> Mesh | None:
    """Return the mesh in the files and folders of --manifests; None if there is none, or it is unreadable.

    Stdin is the user's terminal, and building a kustomization at each key takes too long.
    """
    from xds.cli.manifests import read_mesh  # noqa: PLC0415 - few completions need it
    from xds.cli.options import STDIN  # noqa: PLC0415
    from xds.mesh.sources.kustomize import is_kustomization  # noqa: PLC0415

    manifests = [
        name
        for name in context.params.get("manifests") or ()
        if name != STDIN and not is_kustomization(Path(name))
    ]
    return _quietly(lambda: read_mesh(manifests)[0]) if manifests else None


def _proxies(context: typer.Context) -> list[str]:
    """Return the proxies of the running control plane; none if it cannot be reached."""
    from xds.cli import admin_client  # noqa: PLC0415 - few completions need it
    from xds.cli.client_credentials import ClientCredentials  # noqa: PLC0415
    from xds.cli.options import parse_address  # noqa: PLC0415
    from xds.mesh.controlplane.status import proxy_name  # noqa: PLC0415

    def ask() -> proxies_pb2.ListProxiesResponse:
        params = context.params
        credentials = ClientCredentials(
            roots=params.get("ca_file"),
            token=params.get("token_file"),
            certificate=params.get("cert_file"),
            key=params.get("key_file"),
        )
        text = params["xds_address"] or os.environ.get("XDS_ADDRESS") or str(XDS_ADDRESS)
        address = parse_address("--xds-address", text)
        with admin_client.AdminClient(address, credentials, timeout=TIMEOUT) as client:
            return client.list_proxies({}, unsynced=False)

    # A port-forward takes too long.
    in_cluster = context.params.get("context") or context.params.get("kubeconfig")
    response = _quietly(ask) if "xds_address" in context.params and not in_cluster else None
    if response is None:
        return []
    absent = [f"{sidecar.pod}.{sidecar.namespace}" for sidecar in response.not_connected.pods]
    return [*(proxy_name(proxy.node_id) for proxy in response.proxies), *absent]


def _quietly(function: Callable[[], _Result]) -> _Result | None:
    """Call a function that prints an error and exits; return None instead."""
    try:
        with redirect_stderr(io.StringIO()):
            return function()
    except (typer.Exit, typer.BadParameter):
        return None
