"""`xds explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from xds.cli.explain_output import print_explanation
from xds.cli.mesh_options import MeshOptions
from xds.cli.option_groups import grouped_options
from xds.cli.options import fail
from xds.cli.output import Format, print_document
from xds.mesh.model.authorization import Pattern, PatternKind
from xds.mesh.parse.authorization import is_normalized
from xds.mesh.policy.reach import Result
from xds.mesh.v1 import policies_pb2 as pb

EXAMPLES = """
xds explain sleep.shop httpbin.shop
xds explain sleep httpbin
xds explain sleep.shop httpbin.shop:8000 --manifests mesh/
xds explain sleep.shop httpbin.shop --method GET --path /headers --header x-token=secret
xds explain sleep.shop httpbin.shop --kubernetes -o json
xds explain sleep.shop httpbin.shop --xds-address localhost:15012 --ca-file root-cert.pem --token-file token
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options with an HTTP request."""

    method: Annotated[
        str | None,
        typer.Option("--method", metavar="METHOD", help="HTTP method of the request, such as GET."),
    ] = None
    path: Annotated[
        str | None, typer.Option("--path", metavar="PATH", help="Path of the request. A query is ignored.")
    ] = None
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="HOST", help="Host header of the request, with its port if it has one."
        ),
    ] = None
    headers: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="NAME=VALUE",
            help="Another header of the request. Can be repeated. All that are not given count as absent.",
        ),
    ] = None

    def to_message(self) -> pb.HttpRequest | None:
        """Return the request; None without one of these options. Exits with status 2 if one is invalid."""
        if not (self.method or self.path or self.host or self.headers):
            return None
        path = (self.path or "").partition("?")[0]
        if path and not (path.startswith("/") and is_normalized(Pattern(PatternKind.EXACT, path))):
            fail(f"--path {path}: write the normalized path, which sidecars compare, such as /status/200")
        headers: dict[str, str] = {}
        for header in self.headers or ():
            name, equals, value = header.partition("=")
            name = name.lower()
            if not (name and equals):
                fail(f"--header {header}: write NAME=VALUE")
            if name == "host" or name.startswith(":"):
                fail(f"--header {name}: use --host, --method or --path")
            # As sidecars compare a header that occurs several times.
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        return pb.HttpRequest(method=self.method or "", path=path, host=self.host or "", headers=headers)


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
    http: HttpOptions
    mesh: MeshOptions
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table"


@grouped_options
def explain(options: ExplainOptions) -> None:
    """Print why a client's connections to a service use mutual TLS, use plaintext, or fail.

    For each group of endpoints: what the client sends, what the server accepts, and the objects that decided
    and that they override, with the place where each was read. Also each AuthorizationPolicy of the server,
    whether it matches, and for a denial, the ALLOW rule of which the fewest fields do not match. With
    --method, --path, --host or --header, the policies are evaluated for this request.

    Queries a running control plane, and also prints what it serves now, what the sidecars have ACKed, and
    what a rollout waits for. With --manifests or --kubernetes, prints only what policies require.

    Exit status: 0 every connection works, 1 a connection fails, 2 an unknown name or wrong usage, 3 the
    control plane or the API server cannot be reached.
    """
    request = pb.ExplainRequest(
        client=options.client, service=options.service, http=options.http.to_message()
    )
    with options.mesh.open() as policies:
        found = policies.explain(request)
    if options.output == "table":
        print_explanation(found)
    else:
        print_document(found, options.output)
    if any(group.outcome == Result.FAILS for group in found.groups):
        raise typer.Exit(1)
