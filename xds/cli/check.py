"""`xds check`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from xds.cli import cluster
from xds.cli.client_options import REQUIRE_ADDRESS, ConnectionOptions, CredentialOptions
from xds.cli.cluster_checks import ClusterChecks, list_names
from xds.cli.findings import Check, CheckFailedError, CheckResult, CheckSkippedError, Finding, run_checks
from xds.cli.option_groups import grouped_options
from xds.cli.options import Context, Kubeconfig, fail, parse_address
from xds.cli.output import Format, print_document
from xds.cli.tables import Table
from xds.mesh.controlplane.status import proxy_name, settled
from xds.mesh.kube.install import NAMESPACE
from xds.mesh.model.objects import printable

EXAMPLES = """
xds check --pre
xds check
xds check --xds-address 127.0.0.1:15012 --ca-file root-cert.pem --token-file token
xds check -o json
"""

_MARKS = {
    CheckResult.PASS: Text("✓ pass", "green"),
    CheckResult.FAIL: Text("✗ fail", "red"),
    CheckResult.SKIP: Text("- skip", "yellow"),
}


@grouped_options
def check(
    *,
    pre: Annotated[
        bool, typer.Option("--pre", help="Check whether the control plane can be installed.")
    ] = False,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", metavar="NAME", help="Namespace of the control plane.")
    ] = NAMESPACE,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    xds_address: Annotated[
        str | None,
        typer.Option(
            "--xds-address",
            metavar="HOST:PORT",
            envvar="XDS_ADDRESS",
            help="xDS address of the control plane. Default: a port-forward to its pod.",
        ),
    ] = None,
    files: CredentialOptions,
) -> None:
    """Check a cluster before the installation (--pre), or an installed control plane and its sidecars.

    Checks the API server, its version and clock, the custom resources, permissions, the CA, the webhook,
    replicas and sidecars. What cannot be checked is skipped, with the reason.

    Exit status: 0 no check failed, 1 a check failed, 2 wrong usage, 3 the API server cannot be reached.
    """
    if xds_address:  # wrong usage must not end the command after the checks of the cluster
        parse_address("--xds-address", xds_address)
        files.to_credentials().load()
        connection = ConnectionOptions(xds_address=xds_address, files=files)
    elif files.is_empty:
        connection = ConnectionOptions(
            kubeconfig=kubeconfig, context=context, xds_namespace=namespace, files=files
        )
    else:
        fail(REQUIRE_ADDRESS)

    async def check_sidecars() -> str:
        return _check_sidecars(connection)

    sidecars = () if pre else (Check("sidecars in sync", check_sidecars),)
    findings = asyncio.run(_check_cluster(kubeconfig, context, namespace, sidecars, pre=pre))
    _print(findings, output)
    if any(finding.result is CheckResult.FAIL for finding in findings):
        raise typer.Exit(1)


async def _check_cluster(
    kubeconfig: Path | None, context: str | None, namespace: str, others: Iterable[Check], *, pre: bool
) -> list[Finding]:
    async with cluster.connect(kubeconfig, context) as api:
        checks = ClusterChecks(api, namespace)
        return await run_checks(
            [*(checks.before_installation() if pre else checks.of_installation()), *others]
        )


def _check_sidecars(connection: ConnectionOptions) -> str:
    def skip(message: str) -> NoReturn:
        hint = "check --xds-address, --ca-file and the credentials" if connection.xds_address else ""
        raise CheckSkippedError(message, hint)

    with connection.open(skip) as client:
        response = client.list_proxies({}, unsynced=False)
    lagging = [proxy_name(proxy.node_id) for proxy in response.proxies if not settled(proxy)]
    absent = response.not_connected
    if not absent.may_be_on_other_replica:
        lagging += [f"{sidecar.pod}.{sidecar.namespace}" for sidecar in absent.pods]
    if lagging:
        hint = f"run xds status{connection.to_options()}"
        raise CheckFailedError(f"not in sync: {list_names(lagging)}", hint)
    if not response.proxies:
        raise CheckSkippedError(f"no sidecar is connected to {client.address}", "check another replica")
    unknown = f"; {absent.total} others may be connected to other replicas" if absent.total else ""
    return f"{len(response.proxies)} connected to {client.address} are in sync{unknown}"


def _print(findings: list[Finding], output: Format) -> None:
    if output != "table":
        rows = [
            {
                "name": finding.name,
                "result": str(finding.result),
                "detail": finding.detail,
                "hint": finding.hint,
            }
            for finding in findings
        ]
        print_document(rows, output)
        return
    table = Table("RESULT", "CHECK", "DETAIL")
    for finding in findings:
        hint = f" ({finding.hint})" if finding.hint else ""
        table.add_row(_MARKS[finding.result], finding.name, printable(finding.detail + hint))
    table.show()
    counts = Counter(finding.result for finding in findings)
    passed, failed, skipped = (counts[result] for result in CheckResult)
    typer.echo(f"\n{passed} passed, {failed} failed, {skipped} skipped")
