"""`xds token`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xds.cli import options

if TYPE_CHECKING:
    from xds.cli.token_files import Files, Whom
    from xds.mesh.identity.claims import Caller


def token(
    *,
    pods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="POD.NAMESPACE",
            help="For whom. The token is bound to that pod; several need --out-dir.",
            show_default=False,
        ),
    ] = None,
    state_dir: Annotated[
        Path,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="That of xds serve: the key that signs is there.",
        ),
    ],
    manifests: Annotated[
        Path | None,
        typer.Option(
            "--manifests",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Where the pods are, and say which service account they have.",
            show_default=False,
        ),
    ] = None,
    service_account: Annotated[
        str | None,
        typer.Option(
            "--service-account",
            metavar="NAME",
            help="Without --manifests: the account of the pods; default unless said. Without a pod: "
            "NAMESPACE/NAME, whom a token is for that is bound to no pod, such as that of an --admin-identity.",
            show_default=False,
        ),
    ] = None,
    lifetime: Annotated[
        int,
        typer.Option("--lifetime", metavar="SECONDS", min=10, max=86400, help="How long a token is good."),
    ] = 3600,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="DIR",
            file_okay=False,
            help="Write DIR/POD.NAMESPACE/token and root-cert.pem, instead of printing a token.",
            show_default=False,
        ),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="With --out-dir: stay, and write anew when half of a token's life is over, or when the roots, the key or a "
            "pod's account are others.",
        ),
    ] = False,
) -> None:
    """Give sidecars the tokens by which they prove to xds serve --manifests who they are.

    A token is signed with the key in --state-dir, for one service account, bound to one pod, and good for a short time. What
    kubelet and API server do in a cluster, this does elsewhere.

    With --renew it goes on until SIGTERM or Ctrl-C, and waits for a root that is not there yet.
    """
    named = tuple(dict.fromkeys(pods or ()))
    if renew and out_dir is None:
        options.fail("--renew is for --out-dir: a token that was printed cannot be renewed")
    if manifests and service_account:
        options.fail("--service-account is for pods without --manifests, which say what account a pod has")
    if len(named) > 1 and out_dir is None:
        options.fail("one token can be printed: say with --out-dir where to write several")
    life = timedelta(seconds=lifetime)
    if not named:
        if service_account is None or out_dir:
            options.fail(
                "say for whom: POD.NAMESPACE, or --service-account NAMESPACE/NAME to print one of no pod"
            )
        _print(_unbound(service_account), state_dir, life)
        return
    whom = _in(manifests, named) if manifests else _without_manifests(named, service_account or "default")
    if out_dir is None:
        [caller] = filter(None, whom().values())
        _print(caller, state_dir, life)
    else:
        from xds.cli.token_files import Files  # noqa: PLC0415

        _write(Files(whom, state_dir, out_dir, life), stay=renew)


def _print(caller: Caller, state_dir: Path, lifetime: timedelta) -> None:
    from xds.mesh.identity.state_dir import StateError, load_or_create_token_key  # noqa: PLC0415

    try:
        typer.echo(load_or_create_token_key(state_dir).issue(caller, datetime.now(UTC), lifetime))
    except StateError as error:
        options.fail(f"--state-dir: {error}", 1)


def _write(files: Files, *, stay: bool) -> None:
    from xds.cli import logs  # noqa: PLC0415
    from xds.cli.token_files import renew  # noqa: PLC0415

    if stay:
        logs.configure()
        renew(files)
    elif problems := [outcome.problem for outcome in files.write().values() if outcome.problem]:
        options.fail("; ".join(dict.fromkeys(problems)), 1)


def _unbound(identity: str) -> Caller:
    from xds.mesh.identity.claims import Caller, Credential, Identity  # noqa: PLC0415

    try:
        namespace, account, trust_domain = Identity.parse(identity)
    except ValueError:
        trust_domain = identity
    if trust_domain:
        options.fail(f"--service-account {identity}: without a pod it has to be NAMESPACE/NAME")
    return Caller(namespace=namespace, service_account=account, credential=Credential.TOKEN)


def _without_manifests(named: Iterable[str], account: str) -> Whom:
    from xds.mesh.identity.claims import Caller, Credential  # noqa: PLC0415
    from xds.mesh.parse import names  # noqa: PLC0415

    if wrong := names.subdomain(account):
        options.fail(f"--service-account {account!r} {wrong}")
    callers = {}
    for name in named:
        pod, _, namespace = name.rpartition(".")
        if names.subdomain(pod) or names.label(namespace):
            options.fail(f"{name!r} is not POD.NAMESPACE, such as web-0.shop")
        callers[name] = Caller(
            namespace=namespace, service_account=account, pod=pod, credential=Credential.TOKEN
        )
    return lambda: callers


def _in(manifests: Path, named: Iterable[str]) -> Whom:
    """Return what tells whom the manifests have, whenever it is asked."""
    from xds.cli.token_files import Known  # noqa: PLC0415

    known = Known(manifests)
    try:
        options.show(known.load())
    except OSError as error:
        options.fail(f"{manifests}: {error.strerror}")
    if not known.complete:
        options.fail(options.UNREADABLE)
    for name in named:
        options.find_pod(known.mesh, name)
    return lambda: known.callers(named)
