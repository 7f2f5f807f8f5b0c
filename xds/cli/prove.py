"""`xds prove`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from xds.cli.manifests import read_source, read_texts
from xds.cli.option_groups import grouped_options
from xds.cli.options import STDIN, SourceOptions, fail, print_not_considered, print_problems
from xds.cli.output import Format, print_document
from xds.cli.tables import Table
from xds.mesh.model.assertions import Assertion
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.names import UnknownNameError, join_names
from xds.mesh.model.objects import Problem
from xds.mesh.parse.assertions import parse_assertions
from xds.mesh.policy.access_changes import AccessChange
from xds.mesh.policy.prove import MAX_COUNTEREXAMPLES, Counterexample, Proof, Verdict, unknown_clients
from xds.mesh.policy.prove import prove as prove_assertion
from xds.mesh.sources.documents import read_documents

EXAMPLES = """
xds prove -f assertions.yaml --manifests mesh/
xds prove -f assertions.yaml --kubernetes
xds prove -f assertions.yaml --manifests mesh/ -o json
kustomize build overlays/prod | xds prove -f assertions.yaml --manifests -
"""

MAX_SERVERS = 3
"""Maximum number of servers that a row names."""
_STYLES = {Verdict.HOLDS: "green", Verdict.FAILS: "red", Verdict.UNKNOWN: "yellow"}


@grouped_options
def prove(
    *,
    filenames: Annotated[
        list[str],
        typer.Option("--filename", "-f", metavar="FILE", help="File with assertions. Can be repeated."),
    ],
    source: SourceOptions,
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = "table",
) -> None:
    """Prove assertions about who may connect to which servers, or print counterexamples.

    An assertion says that only some clients can connect to its servers (only), that some cannot (deny), that
    none can in plaintext (encrypted), or that all ports are in mode STRICT (strict). All clients that could
    exist are considered: known and new service accounts in known and new namespaces, and plaintext, which any
    client can send. Only the sidecars of servers count, because a client can bypass its own. Connections that
    are allowed only for some requests count as allowed.

    An assertion is not known if no counterexample was found, but not everything was considered, such as
    objects of unknown kinds or the pods of a Service without any.

    Exit status: 0 all assertions hold, 1 one fails or is not known, 2 an assertion is invalid or names what
    does not exist, or wrong usage, 3 the API server cannot be reached.
    """
    if STDIN in filenames and STDIN in (source.manifests or ()):
        fail("stdin (-) can be either --manifests or -f, not both")
    assertions = _read_assertions(filenames)
    mesh, read = read_source(source)
    print_problems(read.problems)
    proofs = _prove(mesh, assertions, is_complete=not read.not_considered)
    if output == "table":
        _print_table(proofs)
        print_not_considered(read.not_considered, err=False)
    else:
        print_document(
            {"assertions": [*map(_value, proofs)], "notConsidered": [*read.not_considered]}, output
        )
    if any(proof.verdict is not Verdict.HOLDS for proof in proofs):
        raise typer.Exit(1)


def _read_assertions(filenames: Sequence[str]) -> list[Assertion]:
    """Return the assertions of files. Exits with status 2 if one is invalid."""
    found: dict[str, Assertion] = {}
    problems: list[Problem] = []
    for file in read_texts(filenames):
        for document in read_documents(file.text, file.name):
            if isinstance(document, Problem):
                problems.append(document)
                continue
            assertions, invalid = parse_assertions(document.value, document.locate, document.flaws)
            problems += invalid
            for each in assertions:
                if (other := found.setdefault(each.name, each)) is not each and each.name:
                    what = f"an assertion named {each.name!r} is already at {other.origin}"
                    problems.append(Problem(where=each.origin, what=what))
    print_problems(problems)
    if problems or not found:
        fail("cannot prove anything: " + ("repair the assertions first" if problems else "no assertion"))
    return [*found.values()]


def _prove(mesh: Mesh, assertions: Sequence[Assertion], *, is_complete: bool) -> list[Proof]:
    """Prove assertions. Exits with status 2 if one names what does not exist."""
    proofs, errors = [], []
    for assertion in assertions:
        try:
            notices = unknown_clients(mesh, assertion)
            print_problems(Problem(where=assertion.origin, what=what, notice=True) for what in notices)
            proofs.append(prove_assertion(mesh, assertion, is_complete=is_complete))
        except UnknownNameError as error:
            what = f"{assertion.name}: {error}"
            errors.append(Problem(where=assertion.origin, what=what))
    print_problems(errors)
    if errors:
        fail("cannot prove anything: an assertion names what does not exist")
    return proofs


def _print_table(proofs: Sequence[Proof]) -> None:
    table = Table("ASSERTION", "VERDICT", "CLIENTS", "MODE", "SERVERS", "REASON")
    for proof in proofs:
        verdict = Text(proof.verdict, _STYLES[proof.verdict])
        for cells in _rows(proof):
            table.add_row(proof.assertion.name, verdict, *cells)
    table.show()
    held = sum(proof.verdict is Verdict.HOLDS for proof in proofs)
    typer.echo(f"\n{held} of {len(proofs)} assertions hold")


def _rows(proof: Proof) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each counterexample, or of what is not known."""
    for each in proof.counterexamples:
        servers = join_names(each.servers, MAX_SERVERS)
        yield str(each.clients), each.clients.mode, servers, each.why
    if proof.is_truncated:
        yield "-", "-", "-", f"not all servers were examined after {MAX_COUNTEREXAMPLES} counterexamples"
    if proof.verdict is Verdict.UNKNOWN:
        yield "-", "-", "-", ", ".join(proof.unknown) or "see Not considered"
    elif not proof.counterexamples:
        yield "-", "-", "-", "-"


def _value(proof: Proof) -> dict[str, Any]:
    return {
        "name": proof.assertion.name,
        "place": proof.assertion.origin,
        "claim": str(proof.assertion.claim),
        "verdict": str(proof.verdict),
        "counterexamples": [
            {**connections_value(each), "decidedBy": [*map(str, each.decided_by)]}
            for each in proof.counterexamples
        ],
        "truncated": proof.is_truncated,
        "notKnown": [*proof.unknown],
    }


def connections_value(found: Counterexample | AccessChange) -> dict[str, Any]:
    """Return the clients, the servers and the reason of connections, for JSON and YAML."""
    return {
        "accounts": [*found.clients.accounts],
        "moreAccounts": found.clients.more_accounts,
        "identity": found.clients.identity,
        "mode": str(found.clients.mode),
        "servers": [*found.servers],
        "reason": found.why,
    }
