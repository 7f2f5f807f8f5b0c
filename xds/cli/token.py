"""`xds token`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from xds.cli import logs
from xds.cli.manifests import UNREADABLE
from xds.cli.options import fail, print_problems
from xds.cli.token_files import CallerLookup, ManifestPods, TokenFiles
from xds.cli.token_files import renew as renew_files
from xds.mesh.identity.claims import Caller, CredentialKind, IdentityPattern
from xds.mesh.identity.state_dir import StateError, load_or_create_token_key
from xds.mesh.model.names import pod_named
from xds.mesh.model.objects import ENTRY
from xds.mesh.parse import names

EXAMPLES = """
xds token httpbin-1.shop --state-dir state/
xds token httpbin-1.shop sleep.shop --state-dir state/ --manifests mesh/ --out-dir tokens/ --renew
xds token --service-account ops/admin --state-dir state/
"""


def token(
    *,
    pods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="POD.NAMESPACE",
            help="Pod that the token is bound to, or we/NAME.NAMESPACE for a WorkloadEntry. Several pods "
            "require --out-dir.",
        ),
    ] = None,
    state_dir: Annotated[
        Path,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="State directory of xds serve, which contains the key that signs tokens.",
        ),
    ],
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--manifests",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of manifests that define the pods and their service accounts. Can be repeated.",
        ),
    ] = None,
    service_account: Annotated[
        str | None,
        typer.Option(
            "--service-account",
            metavar="NAME",
            help="Service account of the pods. Cannot be combined with --manifests. Without a pod, it must "
            "be NAMESPACE/NAME, and the token is bound to no pod, as for an --admin-identity. Default: "
            "default.",
        ),
    ] = None,
    lifetime: Annotated[
        int,
        typer.Option(
            "--lifetime", metavar="SECONDS", min=10, max=86400, help="Lifetime of a token, in seconds."
        ),
    ] = 3600,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="DIR",
            file_okay=False,
            help="Folder to write DIR/POD.NAMESPACE/token and DIR/POD.NAMESPACE/root-cert.pem to. Default: "
            "print the token.",
        ),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Keep running. Renew the files at half their lifetime, and when the roots, the signing key "
            "or a pod's service account change. Requires --out-dir.",
        ),
    ] = False,
) -> None:
    """Issue tokens that sidecars outside Kubernetes use to authenticate to xds serve --manifests.

    A token identifies a service account and is bound to a pod. In a Kubernetes cluster, the API server and
    the kubelet provide such tokens instead.

    With --renew, the command runs until SIGTERM or Ctrl-C. If there is no root certificate yet, it waits.
    """
    pod_names = tuple(dict.fromkeys(pods or ()))
    if renew and out_dir is None:
        fail("--renew requires --out-dir: a printed token cannot be renewed")
    if manifests and service_account:
        fail("--service-account cannot be combined with --manifests, which set each pod's service account")
    if len(pod_names) > 1 and out_dir is None:
        fail("only one token can be printed: add --out-dir to write tokens for several pods")
    duration = timedelta(seconds=lifetime)
    if not pod_names:
        if service_account is None or out_dir:
            fail(
                "set POD.NAMESPACE, or use --service-account NAMESPACE/NAME to print a token that is bound "
                "to no pod"
            )
        _print(_unbound_caller(service_account), state_dir, duration)
        return
    lookup = (
        _lookup_in_manifests(manifests, pod_names)
        if manifests
        else _lookup_without_manifests(pod_names, service_account or "default")
    )
    if out_dir is None:
        [caller] = filter(None, lookup().values())
        _print(caller, state_dir, duration)
    else:
        _write(TokenFiles(lookup, state_dir, out_dir, duration), renew=renew)


def _print(caller: Caller, state_dir: Path, lifetime: timedelta) -> None:
    try:
        typer.echo(load_or_create_token_key(state_dir).issue(caller, datetime.now(UTC), lifetime))
    except StateError as error:
        fail(f"--state-dir: {error}", 1)


def _write(files: TokenFiles, *, renew: bool) -> None:
    if renew:
        logs.configure()
        renew_files(files)
    elif problems := [result.problem for result in files.write().values() if result.problem]:
        fail("; ".join(dict.fromkeys(problems)), 1)


def _unbound_caller(identity: str) -> Caller:
    try:
        namespace, account, trust_domain = IdentityPattern.parse(identity)
    except ValueError:
        trust_domain = identity
    if trust_domain:
        fail(f"--service-account {identity}: must be NAMESPACE/NAME if no pod is set")
    return Caller(namespace=namespace, service_account=account, credential=CredentialKind.TOKEN)


def _lookup_without_manifests(pod_names: Iterable[str], account: str) -> CallerLookup:
    if problem := names.subdomain(account):
        fail(f"--service-account {account!r} {problem}")
    callers = {}
    for name in pod_names:
        pod, _, namespace = name.rpartition(".")
        if names.subdomain(pod.removeprefix(f"{ENTRY}/")) or names.label(namespace):
            fail(f"{name!r} is not POD.NAMESPACE, such as web-0.shop or {ENTRY}/vm-0.shop")
        callers[name] = Caller(
            namespace=namespace, service_account=account, pod=pod, credential=CredentialKind.TOKEN
        )
    return lambda: callers


def _lookup_in_manifests(manifests: Sequence[Path], pod_names: Iterable[str]) -> CallerLookup:
    """Return a lookup that reads the manifests again at each call."""
    pods = ManifestPods(manifests)
    try:
        print_problems(pods.load())
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    if not pods.complete:
        fail(UNREADABLE)
    for name in pod_names:
        pod_named(pods.mesh, name)
    return lambda: pods.callers(pod_names)
