"""Change the mode of a namespace or workload: plan, confirm, apply and wait. For `xds lock` and `unlock`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from xds.cli import cluster, plan_output
from xds.cli.client_options import ConnectionOptions
from xds.cli.durations import parse_duration
from xds.cli.hop_cells import format_clients
from xds.cli.options import EXIT_UNREACHABLE, OBSERVATION_DISABLED, fail, print_problems
from xds.cli.output import ManifestFormat, to_yaml
from xds.cli.wait import wait_for
from xds.mesh.identity.state_dir import write_atomically
from xds.mesh.kube.kubeconfig import has_cluster
from xds.mesh.kube.mode_policy import (
    ModePolicyError,
    PolicyTarget,
    PreparedPolicy,
    apply,
    find_target,
    prepare,
)
from xds.mesh.model.objects import Mode
from xds.mesh.parse import names
from xds.mesh.v1 import objects_pb2, rollouts_pb2
from xds.mesh.v1 import policies_pb2 as pb

UNLOCK_PERIOD = 86400.0
"""Seconds for which `xds unlock` looks for refused clients."""
_CHECK_TIMEOUT = 30.0
"""Seconds to wait for the control plane's answer what it has read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChangeOptions:
    """The options of both commands."""

    target: Annotated[
        str,
        typer.Argument(
            metavar="NAMESPACE[/WORKLOAD]",
            help="Namespace; or a Deployment, StatefulSet or DaemonSet in it, or one of its pods.",
        ),
    ]
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the effects without changing anything.")
    ] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False
    force_conflicts: Annotated[
        bool,
        typer.Option(
            "--force-conflicts", help="Take over the mode from another field manager, such as kubectl."
        ),
    ] = False
    manifests: Annotated[
        Path | None,
        typer.Option(
            "--manifests",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder that the control plane reads: write the policy to a file in it. Default: apply the "
            "policy to the API server, or print it if there is no kubeconfig.",
        ),
    ] = None
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="Time to wait until the policy is in force, such as 90s or 2m.",
        ),
    ] = "60s"
    output: Annotated[
        ManifestFormat,
        typer.Option(
            "-o", "--output", help="Output format. yaml prints the manifest, and requires --dry-run."
        ),
    ] = "table"
    connection: ConnectionOptions


def lock(options: ModeChangeOptions, observed: float, *, force: bool) -> None:
    """Set STRICT. Exit if it is refused, not confirmed or not in force in time.

    Args:
        options: the options of the command.
        observed: seconds for which no plaintext traffic may have been observed.
        force: whether to go on although clients would break.
    """
    with _Change(options, Mode.STRICT) as change:
        found = change.plan(observed)
        if not found.observation.enabled and not force:
            fail(OBSERVATION_DISABLED, 1)
        with change.messages():
            plan_output.print_table(found)
            _print_ports("Accepts plaintext even when locked:", found.plaintext_ports)
        if not found.observation.strict_ports and not force:
            fail(f"refused: {change.target.ref} would make no port STRICT; --force applies it anyway", 1)
        is_safe = found.observation.safe and not found.breaks
        if change.is_change and not is_safe and not force:
            fail(f"refused to lock {change.target}; --force locks it anyway", 1)
        if change.is_change and not is_safe:
            warning = typer.style(f"WARNING: --force locks {change.target} although it is not safe", fg="red")
            typer.echo(f"xds: {warning}: the clients above will be refused", err=True)
        change.apply("Lock", "locked")


def unlock(options: ModeChangeOptions) -> None:
    """Set PERMISSIVE. Exit if it is not confirmed or not in force in time."""
    with _Change(options, Mode.PERMISSIVE) as change:
        found = change.plan(UNLOCK_PERIOD)
        if change.mode != Mode.STRICT and not found.observation.opened_ports and options.output == "table":
            typer.echo(
                f"nothing to unlock: PERMISSIVE would open no port of {change.target}. Ports that "
                "portLevelMtls or a more specific policy makes STRICT stay STRICT"
            )
            return
        opened = [port for port in found.plaintext_ports if port.was_strict]
        with change.messages():
            _print_ports("Will accept plaintext from all clients:", opened)
            if found.observation.admitted:
                typer.echo("Refused now, and could connect:")
                plan_output.print_traffic(found.observation.admitted, found.observation.time)
        change.apply("Unlock", "unlocked")


class _Change:
    """A change of one policy, in a `with` block. All methods exit with a message on an error."""

    def __init__(self, options: ModeChangeOptions, mode: Mode) -> None:
        namespace, separator, workload = options.target.partition("/")
        if names.label(namespace) or (separator and names.subdomain(workload)):
            fail(f"{options.target!r} is neither NAMESPACE nor NAMESPACE/WORKLOAD")
        if options.output == "yaml" and not options.dry_run:
            fail("-o yaml requires --dry-run")
        parse_duration("--timeout", options.timeout)
        self._options, self._mode = options, mode
        connection = options.connection
        names_cluster = bool(connection.kubeconfig or connection.context or connection.xds_namespace)
        if options.manifests and (names_cluster or options.force_conflicts):
            fail("--manifests cannot be combined with options for a cluster: the policy is written to a file")
        self._has_api_server = not options.manifests and (names_cluster or has_cluster())
        needs_cluster = options.output == "table" or bool(workload)
        # A plan of another cluster's control plane would say nothing about this one.
        self._client = connection.open(reads_cluster=True, in_cluster=needs_cluster and self._has_api_server)
        self.target = PolicyTarget(namespace=namespace, workload=workload)
        self._prepared: PreparedPolicy | None = None
        name = f"peerauthentication-{namespace}-{self.target.ref.name}.yaml"
        self._file = options.manifests / name if options.manifests else None
        self._text = ""
        """Content of the file; empty without one."""
        self._context = ""
        """Context of the cluster that the policy is applied to; empty without a kubeconfig."""

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)

    @property
    def is_change(self) -> bool:
        """Whether the object would change."""
        if self._prepared:
            return self._prepared.is_change
        return self._text != self._manifest(self._mode)

    @property
    def mode(self) -> str:
        """Current mode of the object; empty without one."""
        if self._prepared:
            return self._prepared.mode
        return next((mode.value for mode in Mode if self._text == self._manifest(mode)), "")

    def _manifest(self, mode: Mode) -> str:
        return to_yaml(self.target.manifest(mode))

    def messages(self) -> AbstractContextManager[Any]:
        """Return a context that prints to stderr if stdout is for the manifest."""
        return redirect_stdout(sys.stderr) if self._options.output == "yaml" else nullcontext()

    def plan(self, observed: float) -> pb.PlanResponse:
        """Return the effects of the policy. Exit if it has none."""
        self._read()
        manifest = self._prepared.after if self._prepared else self.target.manifest(self._mode)
        manifest = {**manifest, "metadata": {**manifest["metadata"], "managedFields": []}}
        found = self._client.plan_texts([(str(self.target.ref), to_yaml(manifest))], observed=observed)
        print_problems(map(plan_output.to_problem, (*found.problems, *found.without_effect)))
        if found.nothing_to_compare:
            fail("nothing was checked: the control plane knows no Pod or no Service with a TCP port", 1)
        if self.target.namespace == found.observation.root_namespace and not self.target.workload:
            typer.echo(
                f"xds: {self.target.namespace} is the root namespace: the policy applies to the whole mesh",
                err=True,
            )
        if found.invalid:
            fail(f"cannot plan {self.target.ref}: repair it first", 1)
        return found

    def _read(self) -> None:
        """Find the pods of a workload, and have the API server check the policy."""
        if self._options.output == "yaml" and not self.target.workload:
            return  # The mesh may have no API server.
        if not self._has_api_server:
            self._read_file()
            return
        self.target, prepared = asyncio.run(self._prepare())
        if self._options.output == "table":
            if not self._look_up().has_versions:
                remedy = "add --manifests DIR, the folder it reads"
                fail(f"the control plane reads files, not an API server: {remedy}")
            self._prepared = prepared

    async def _prepare(self) -> tuple[PolicyTarget, PreparedPolicy | None]:
        options, target = self._options, self.target
        async with cluster.connect(options.connection.kubeconfig, options.connection.context) as api:
            self._context = api.context
            try:
                if target.workload:
                    target = await find_target(api, target.namespace, target.workload)
                if options.output == "yaml":
                    return target, None
                return target, await prepare(api, target, self._mode, force=options.force_conflicts)
            except ModePolicyError as error:
                fail(str(error), 1)

    def _read_file(self) -> None:
        """Read the file to write. Exit if the policy cannot be written to the control plane's files."""
        if self.target.workload:
            fail(
                f"{self.target}: only the API server knows the labels of a workload. Lock the namespace, or "
                "write a PeerAuthentication with a selector, and plan it with xds plan -f"
            )
        found = self._look_up()
        if found.has_versions:
            remedy = "leave out --manifests" if self._file else "set --kubeconfig or KUBECONFIG"
            fail(f"the control plane reads an API server: {remedy}")
        try:
            self._text = self._file.read_text() if self._file and self._file.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{self._file}: {error}")
        if self._text and not self.mode:
            fail(f"{self._file} was edited: change the mode there", 1)
        if not self._text and found.state != objects_pb2.WaitResponse.NOT_FOUND:
            fail(f"{self.target.ref} is in the files that the control plane reads: change its mode there", 1)

    def _look_up(self) -> objects_pb2.WaitResponse:
        """Return what the control plane has read of the policy. Exit if it does not respond in time."""
        ref = self.target.ref
        request = objects_pb2.WaitRequest(kind=ref.kind, namespace=ref.namespace, name=ref.name)
        found = next(
            (
                response
                for response in self._client.wait(request, _CHECK_TIMEOUT)
                if response.has_versions or response.state != objects_pb2.WaitResponse.READING
            ),
            None,
        )
        if found is None:
            fail("the control plane did not respond in time", EXIT_UNREACHABLE)
        return found

    def apply(self, verb: str, done: str) -> None:
        """Print the manifest, or ask for confirmation, apply the policy, and wait until it is in force."""
        options, target, prepared, file = self._options, self.target, self._prepared, self._file
        if options.output == "yaml":
            typer.echo(self._manifest(self._mode), nl=False)
            return
        if not (prepared or file):
            typer.echo(f"\n{self._manifest(self._mode)}", nl=False)
        if options.dry_run:
            typer.echo(f"dry run: {target.ref} was not changed")
            return
        if not (prepared or file):
            fail(
                f"{target} is not {done}: the control plane reads files. Add the manifest to them, or let "
                "--manifests DIR write it to a folder that it reads",
                1,
            )
        version = ""
        if self.is_change:
            of = f" in context {self._context}" if self._context else ""
            self._confirm(f"{verb} {target} with {target.ref}{f' in {file}' if file else of}?")
            if prepared:
                version = asyncio.run(self._apply(prepared))
            elif file:
                self._write(file)
        else:
            typer.echo(f"{target.ref} is {self._mode} already")
            if prepared:
                version = str((prepared.before or prepared.after)["metadata"]["resourceVersion"])
        wait_for(self._client, target.ref, version, options.timeout)
        typer.echo(f"{target} is {done}")

    def _write(self, file: Path) -> None:
        try:
            write_atomically(file, self._manifest(self._mode).encode(), 0o644)
        except OSError as error:
            fail(f"{file}: {error.strerror}", 1)
        if not self._text and self._look_up().state == objects_pb2.WaitResponse.NOT_FOUND:
            file.unlink(missing_ok=True)
            fail(f"the control plane does not read {file.parent}: name the folder of xds serve --manifests")

    def _confirm(self, question: str) -> None:
        if self._options.yes:
            return
        if not sys.stdin.isatty():
            fail("stdin is not a terminal, so the change cannot be confirmed: add --yes")
        if not typer.confirm(question, err=True):
            fail("not confirmed: nothing was changed", 1)

    async def _apply(self, prepared: PreparedPolicy) -> str:
        connection = self._options.connection
        async with cluster.connect(connection.kubeconfig, connection.context) as api:
            try:
                return await apply(api, prepared, force=self._options.force_conflicts)
            except ModePolicyError as error:
                fail(str(error), 1)


def _print_ports(title: str, ports: Iterable[pb.PlaintextPort]) -> None:
    """Print ports that accept plaintext, one per line under a title; nothing without ports."""
    lines = [_format_port(port) for port in ports]
    if lines:
        typer.echo("\n".join(["", title, *(f"  {line}" for line in lines)]))


def _format_port(port: pb.PlaintextPort) -> str:
    pods = format_clients(port.pods)
    if not port.port:
        return f"{pods}: no sidecar"
    if port.mode == rollouts_pb2.MODE_UNSPECIFIED:
        return f"port {port.port} of {pods}: excluded from the sidecar"
    return f"port {port.port} of {pods}: {rollouts_pb2.Mode.Name(port.mode)} ({port.decided_by})"
