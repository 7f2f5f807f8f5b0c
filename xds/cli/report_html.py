"""A report as one HTML file without scripts. Equal documents give equal files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from xds.cli.html_parts import Bad, Code, Good, Number, bullets, paragraph, table
from xds.cli.report_document import Document
from xds.mesh.model.names import join_names
from xds.mesh.observe.edges import address_words

DOCTYPE = "<!doctype html>"
"""Start of the file."""
_START, _END = '<script type="application/json" id="report">', "</script>"
_MODES = ("MTLS", "TLS", "PLAINTEXT", "REFUSED")
_SECTIONS = (
    ("scope", "Scope and time"),
    ("workloads", "Workloads and modes"),
    ("share", "Observed traffic by mode"),
    ("tls", "Configured TLS"),
    ("certificates", "Certificates"),
    ("access", "Who may call"),
    ("observed", "Who did call"),
    ("exceptions", "Exceptions"),
    ("gaps", "Gaps of observation"),
    ("versions", "Versions"),
    ("not-shown", "What this report does not show"),
    ("digest", "Digest and signature"),
)


def render(document: Document) -> str:
    """Return the HTML file of a report."""
    report = document["report"]
    title = f"Mutual TLS report of {report['scope']['trustDomain']}"
    contents = {
        "scope": _scope(report),
        "workloads": _workloads(report),
        "share": _share(report),
        "tls": _tls(report),
        "certificates": _certificates(report),
        "access": _access(report),
        "observed": _observed(report),
        "exceptions": _exceptions(report),
        "gaps": bullets(report["gaps"], "None is known."),
        "versions": _versions(report),
        "not-shown": bullets(report["notShown"], ""),
        "digest": _digest(document),
    }
    style = files("xds.cli").joinpath("report.css").read_text()
    data = json.dumps(document).replace("<", "\\u003c")
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in _SECTIONS)
    sections = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{number}. {heading}</h2>\n{contents[name]}'
        "</section>"
        for number, (name, heading) in enumerate(_SECTIONS, 1)
    )
    return f"""{DOCTYPE}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{_summary(report)}</header>
<nav aria-label="Sections"><ol>{links}</ol></nav>
<main>
{sections}
</main>
{_START}{data}{_END}
</body>
</html>
"""


def embedded(text: str) -> str:
    """Return the JSON in an HTML file. Raises ValueError if there is none."""
    start = text.index(_START) + len(_START)
    return text[start : text.index(_END, start)]


def is_rendering(document: Document, text: str) -> bool:
    """Whether an HTML file is that of a document, which may have any content."""
    try:
        return render(document) == text
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False


# --- sections ---------------------------------------------------------------------------------------------


def _summary(report: Document) -> str:
    workloads = report["workloads"]
    pods, sidecars = (sum(each[name] for each in workloads) for name in ("pods", "sidecars"))
    counts = _counts(edge for each in workloads for edge in each["observed"])
    return paragraph(
        f"Created {_time(report['scope']['created'])}. {len(workloads)} workloads; {sidecars} of {pods} pods "
        f"have a sidecar. Requests with mutual TLS since {_time(report['scope']['countedSince'])}: "
        f"{_percent(counts)}. "
        f"Exceptions: {len(report['exceptions'])}. Gaps of observation: {len(report['gaps'])}."
    )


def _scope(report: Document) -> str:
    scope = report["scope"]
    observed = (
        f"last seen since {_time(scope['since'])}; requests counted since {_time(scope['countedSince'])}"
    )
    rows = [
        ("Trust domain", scope["trustDomain"]),
        ("Root namespace", scope["rootNamespace"]),
        ("Namespaces", ", ".join(scope["namespaces"]) or "all"),
        ("Created", _time(scope["created"])),
        (
            "Observed traffic",
            observed if scope["observationEnabled"] else "not known: observation is disabled",
        ),
        ("Replica of the control plane", scope["replica"] or "not named"),
    ]
    return table("What this report is about, by the clock of the control plane.", ("Subject", "Value"), rows)


def _workloads(report: Document) -> str:
    rows = [
        (
            _name(each),
            f"{each['sidecars']} of {each['pods']} pods, {each['connected']} connected",
            *_port_cells(port),
        )
        for each in report["workloads"]
        for port in each["ports"] or [None]
    ]
    titles = ("Workload", "Sidecars", "Port", "Mode", "Decided by", "ACKed by", "Since")
    note = (
        "Mode STRICT accepts only mutual TLS, PERMISSIVE also plaintext, DISABLE only plaintext. ACKed by: "
        "sidecars that have ACKed the listener which this replica serves. At least since: "
        "the time of that ACK. The mode may have been the same before; the control plane does not know it."
    )
    return paragraph(note) + table("Modes of the ports of pods with a sidecar.", titles, rows)


def _port_cells(port: Mapping[str, Any] | None) -> Iterator[str]:
    if port is None:
        yield from ("all", Bad("no sidecar"), "", "", "")
        return
    yield _port(port)
    if port["mode"] == "MODE_UNSPECIFIED":
        yield from (Bad("not intercepted"), "annotations of the pods", "", "")
        return
    changing = f" (rollout to {port['desiredMode']})" if port["mode"] != port["desiredMode"] else ""
    yield (Good if port["mode"] == "STRICT" else Bad)(f"{port['mode']}{changing}")
    yield _object(port["decidedBy"])
    yield f"{port['acked']} of {port['pods']}"
    if "since" not in port:
        yield f"not known: {port['unknownSince']}"
    else:
        yield ("" if port["sinceChange"] else "at least since ") + _time(port["since"])


def _share(report: Document) -> str:
    rows = []
    for each in report["workloads"]:
        counts = _counts(each["observed"])
        times = [
            max((edge["lastSeen"] for edge in each["observed"] if edge["mode"] in modes), default="")
            for modes in (_MODES, ("PLAINTEXT",))
        ]
        seen = (_time(last, "not in the period") for last in times)
        rows.append((_name(each), *(Number(counts[mode]) for mode in _MODES), _percent(counts), *seen))
    titles = (
        "Workload",
        "Mutual TLS",
        "Other TLS",
        "Plaintext",
        "Refused",
        "Share of mutual TLS",
        "Last seen",
        "Plaintext last seen",
    )
    note = (
        f"HTTP requests, or connections of other protocols, since {_time(report['scope']['countedSince'])}. "
        "A Service of several workloads counts for each. Other TLS: as DestinationRules configure it. "
        "Refused: plaintext connections that sidecars closed, which are not part of the share."
    )
    return paragraph(note) + table("Requests by mode.", titles, rows)


def _tls(report: Document) -> str:
    rows = [
        (
            ", ".join(each["envoyVersions"]),
            Number(each["sidecars"]),
            f"{each['minVersion']} to {each['maxVersion']}{', FIPS 140-3' if each['fips'] else ''}",
            ", ".join(each["cipherSuites"]) or "Envoy's default",
            ", ".join(each["curves"]),
            Good("preferred") if each["postQuantum"] else Bad("no"),
        )
        for each in report["tls"]
    ]
    titles = ("Envoy", "Sidecars", "TLS versions", "Cipher suites of TLS 1.2", "Key exchange", "Post-quantum")
    note = "What sidecars are configured for, not what each connection negotiated: see section 11."
    return paragraph(note) + table("TLS between sidecars of this replica.", titles, rows)


def _certificates(report: Document) -> str:
    found = report["certificates"]
    lifetime = found.get("lifetime")
    facts = [
        ("Issuer of workloads' certificates", found["issuer"]),
        (
            "Longest lifetime",
            f"{int(lifetime.rstrip('s')) / 3600:g} h" if lifetime else "not known: the issuer decides",
        ),
        ("Renewal", found["renewal"]),
        ("Keys", found["key"]),
        ("Issued by this replica since its start", found["issued"]),
        ("Current, as this replica knows", found["known"]),
    ]
    authorities = [
        (
            each["subject"],
            each["role"],
            each["issuer"],
            f"{each['key']}; {each['signature']}",
            _time(each["notBefore"]),
            _time(each["notAfter"]),
            Code(each["serial"]),
            Code(each["fingerprint"]),
        )
        for each in found["authorities"]
    ]
    workloads = [
        (
            identity,
            _name(each),
            f"{each['certificates']['known']} of {each['sidecars']}",
            _time(each["certificates"].get("firstExpiry"), "not known"),
            _time(each["certificates"].get("lastExpiry"), "not known"),
            _time(each["certificates"].get("firstRenewal"), "the sidecar or kubelet renews it"),
        )
        for each in report["workloads"]
        for identity in each["certificates"]["identities"]
    ]
    titles = (
        "Subject",
        "Role",
        "Issuer",
        "Key and signature",
        "Not before",
        "Not after",
        "Serial",
        "SHA-256",
    )
    names = ("Identity", "Workload", "Known", "First expiry", "Last expiry", "First renewal")
    return (
        table("How workloads get certificates.", ("Subject", "Value"), facts)
        + table("CA certificates that sidecars trust.", titles, authorities)
        + table(
            "Certificates of workloads. A workload's numbers are those of all its identities.",
            names,
            workloads,
        )
    )


def _access(report: Document) -> str:
    rows = [
        (_name(each), _port(port), allowed["send"], _clients(allowed), allowed["why"])
        for each in report["workloads"]
        for port in each["ports"]
        for allowed in port["allowed"]
    ]
    note = (
        "Clients that could exist and that sidecars accept, as modes and AuthorizationPolicies require. A "
        "port that is missing accepts no client. Pods without a sidecar accept any client that reaches them."
    )
    titles = ("Workload", "Port", "Sends", "Clients", "Why")
    return paragraph(note) + table("Allowed clients of each port.", titles, rows)


def _observed(report: Document) -> str:
    rows = [
        (
            _name(each),
            _client(edge),
            edge["service"],
            (Good if edge["mode"] == "MTLS" else Bad)(edge["mode"].lower()),
            Number(edge["requests"]),
            _time(edge["firstSeen"]),
            _time(edge["lastSeen"]),
        )
        for each in report["workloads"]
        for edge in each["observed"]
    ]
    titles = ("Workload", "Client", "Service", "Mode", "Requests", "First seen", "Last seen")
    note = (
        "Clients with mutual TLS are service accounts. AuthorizationPolicies may have denied some requests."
    )
    return paragraph(note) + table("Observed clients of each workload.", titles, rows)


def _exceptions(report: Document) -> str:
    rows = [
        (
            each["subject"],
            each["kind"],
            each["what"],
            _object(each["owner"]) if "owner" in each else "",
            each["managedBy"] or "not labelled",
        )
        for each in report["exceptions"]
    ]
    titles = ("Subject", "Kind", "What", "Owner", "Managed by")
    return table("What mutual TLS does not protect, or what is not enforced.", titles, rows)


def _versions(report: Document) -> str:
    rows = [(each["part"], each["version"], each["count"] or "this replica") for each in report["versions"]]
    return table("Versions of the parts of the mesh.", ("Part", "Version", "Sidecars"), rows)


def _digest(document: Document) -> str:
    signature = document.get("signature")
    rows = [("Digest of the report's data", Code(document["digest"]))]
    if signature:
        rows += [
            ("Algorithm", signature["algorithm"]),
            ("Signature", Code(signature["value"])),
            ("Public key", Code(signature["publicKey"])),
        ]
    note = (
        "The digest is that of the JSON in this file, with sorted keys and without spaces. "
        "<code>xds report --verify FILE --key PUBLIC.pem</code> checks it, the signature and this text."
    )
    what = "Without a signature, the digest only shows accidental changes." if not signature else ""
    return f"<p>{note} {what}</p>\n{table('Digest and signature.', ('Subject', 'Value'), rows)}"


# --- texts of cells ---------------------------------------------------------------------------------------


def _name(workload: Mapping[str, Any]) -> str:
    return f"{workload['name']}.{workload['namespace']}"


def _port(port: Mapping[str, Any]) -> str:
    return str(port["port"] or "all others")


def _object(message: Mapping[str, Any]) -> str:
    name = "/".join(filter(None, (message["namespace"], message["name"])))
    return f"{message['kind']} {name}" + (f" ({message['place']})" if message["place"] else "")


def _client(edge: Mapping[str, Any]) -> str:
    if edge["clientNamespace"]:
        return f"{edge['clientNamespace']}/{edge['client']}"
    return f"{edge['client']} ({address_words(edge['client'])})"


def _clients(allowed: Mapping[str, Any]) -> str:
    accounts, more = allowed["accounts"], allowed["moreAccounts"]
    return join_names([*accounts, *[""] * more], len(accounts)) if accounts else allowed["clients"]


def _counts(edges: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts = dict.fromkeys(_MODES, 0)
    for edge in edges:
        counts[edge["mode"]] += int(edge["requests"])
    return counts


def _percent(counts: Mapping[str, int]) -> str:
    total = sum(counts.values()) - counts["REFUSED"]
    if not total:
        return "not known: no request was observed"
    # Never round up to 100 %.
    return f"{int(1000 * counts['MTLS'] / total) / 10:g} %"


def _time(text: str | None, unknown: str = "") -> str:
    """Return a timestamp of JSON in minutes."""
    return f"{text[:10]} {text[11:16]} UTC" if text else unknown
