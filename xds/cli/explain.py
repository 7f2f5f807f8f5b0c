"""`xds explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from xds.cli.explain_output import print_explanation
from xds.cli.mesh_options import MeshOptions
from xds.cli.option_groups import grouped_options
from xds.cli.output import Format, print_document
from xds.mesh.policy.reach import Result

EXAMPLES = """
xds explain sleep.shop httpbin.shop
xds explain sleep httpbin
xds explain sleep.shop httpbin.shop:8000 --manifests mesh/
xds explain sleep.shop httpbin.shop --kubernetes -o json
xds explain sleep.shop httpbin.shop --xds-address localhost:15012 --ca-file root-cert.pem --token-file token
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """The arguments and options."""

    client: Annotated[
        str,
        typer.Argument(metavar="CLIENT", help="Client pod: POD.NAMESPACE, or a prefix of it."),
    ]
    service: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE",
            help="Service to call: SERVICE.NAMESPACE (or a prefix of it), with :PORT for the number or name "
            "of a port. Default: all ports.",
        ),
    ]
    mesh: MeshOptions
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE


@grouped_options
def explain(options: ExplainOptions) -> None:
    """Print why a client's connections to a service use mutual TLS, use plaintext, or fail.

    For each group of endpoints: what the client sends, what the server accepts, and the objects that decided
    and that they override, with the place where each was read.

    Queries a running control plane, and also prints what it serves now, what the sidecars have ACKed, and
    what a rollout waits for. With --manifests or --kubernetes, prints only what policies require.

    Exit status: 0 every connection works, 1 a connection fails, 2 an unknown name or wrong usage, 3 the
    control plane or the API server cannot be reached.
    """
    with options.mesh.open() as policies:
        found = policies.explain(options.client, options.service)
    if options.output is Format.TABLE:
        print_explanation(found)
    else:
        print_document(found, options.output)
    if any(group.outcome == Result.FAILS for group in found.groups):
        raise typer.Exit(1)
