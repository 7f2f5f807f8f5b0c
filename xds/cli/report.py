"""`xds report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from xds.cli.client_options import ConnectionOptions
from xds.cli.durations import parse_period
from xds.cli.option_groups import grouped_options
from xds.cli.options import fail, file_option
from xds.cli.output import to_value

EXAMPLES = """
xds report > report.html
xds report -n shop -n payments --since 24h -o json > report.json
xds report --sign key.pem > report.html
xds report --verify report.html --key public.pem
"""

ReportFormat = Literal["html", "json"]
"""An output format."""


@grouped_options
def report(
    *,
    namespaces: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NS",
            help="Namespace of the workloads. Can be repeated. Default: all.",
        ),
    ] = None,
    period: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="DURATION",
            help="Include traffic that was last seen in this time, such as 1h or 7d (maximum).",
        ),
    ] = "7d",
    output: Annotated[ReportFormat, typer.Option("-o", "--output", help="Output format.")] = "html",
    sign: Annotated[
        Path | None, file_option("--sign", "Private key (PEM) to sign the report with. It stays here.")
    ] = None,
    verify: Annotated[
        Path | None, file_option("--verify", "Report, as HTML or JSON, to verify instead of printing one.")
    ] = None,
    key: Annotated[Path | None, file_option("--key", "Public key (PEM) of the signer, for --verify.")] = None,
    connection: ConnectionOptions,
) -> None:
    """Print evidence for an auditor: what the running mesh enforces, what was observed, what is not known.

    The report is one HTML file without scripts, or JSON. It contains each workload with the modes of its
    ports and since when sidecars have ACKed them, who may call it and who did, configured TLS, certificates,
    exceptions and the objects that cause them, gaps of observation, versions, and what it does not show.

    Its digest is that of the report's JSON, which the HTML file contains. With --sign, it also has a
    signature: Ed25519, ECDSA (P-256) or RSA. --verify checks both, and that the text of an HTML file is that
    of its JSON. It needs no control plane.

    Exit status: 0 printed or verified, 1 the report was changed, or is not signed with the key, 2 a file is
    no report or no key, or wrong usage, 3 the control plane cannot be reached.
    """
    if verify:
        if sign or namespaces:
            fail("--verify cannot be combined with --sign or --namespace")
        _verify(verify, key)
        return
    if key:
        fail("--key requires --verify; to sign a report, use --sign")
    from xds.cli.report_document import seal  # noqa: PLC0415 - completion does not need it
    from xds.mesh.controlplane.status import duration  # noqa: PLC0415
    from xds.mesh.observe.edges import TRAFFIC_RETENTION  # noqa: PLC0415
    from xds.mesh.v1 import reports_pb2 as pb  # noqa: PLC0415

    seconds = parse_period("--since", period)
    if seconds > TRAFFIC_RETENTION:
        fail(f"--since: traffic is remembered for only {duration(TRAFFIC_RETENTION)}")
    request = pb.CreateReportRequest(namespaces=namespaces)
    request.period.FromMilliseconds(round(seconds * 1000))
    secret = sign.read_bytes() if sign else None
    try:
        seal({}, secret)  # An unusable key is reported before the control plane is asked.
        with connection.open() as client:
            document = seal(to_value(client.report(request)), secret)
    except ValueError as error:
        fail(f"--sign {sign}: {error}")
    if output == "json":
        typer.echo(json.dumps(document, indent=2))
    else:
        from xds.cli.report_html import render  # noqa: PLC0415

        typer.echo(render(document), nl=False)


def _verify(path: Path, key: Path | None) -> None:
    from xds.cli.report_document import verify  # noqa: PLC0415
    from xds.cli.report_html import DOCTYPE, embedded, is_rendering  # noqa: PLC0415

    try:
        text = path.read_bytes().decode()
        is_html = text.startswith(DOCTYPE)
        document = json.loads(embedded(text) if is_html else text)
        is_report = isinstance(document, dict) and isinstance(document.get("report"), dict)
    except ValueError:
        is_report = False
    if not is_report:
        fail(f"{path}: is not the output of xds report")
    try:
        proven = verify(document, key.read_bytes() if key else None)
    except ValueError as error:
        fail(f"{path}: {error}", 1)
    if is_html and not is_rendering(document, text):
        fail(f"{path}: the text is not that of its data: it was changed, or is of another version of xds", 1)
    typer.echo(f"{path}: verified: {proven}")
