"""Names of resources in federated xDS: `xdstp://AUTHORITY/TYPE/PATH?PARAMETERS`.

Servers and clients compare names as strings. Clients therefore send each name in one canonical form, which
`xdstp` makes: encoded, and with sorted parameters.

    xdstp(LISTENER, "svc", authority="mesh.example")     # one listener
    xdstp(LISTENER, "edge/*", authority="mesh.example")  # a collection: all listeners edge/NAME
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from xds.snapshot import TYPE_PREFIX

SCHEME = "xdstp://"

# The characters that gRPC does not encode.
_IN_PATH = "!$&'()*+,;=:@/"
_IN_PARAMETER = "!$'()*+,;:@/?"


@dataclass(frozen=True, slots=True, kw_only=True)
class XdstpName:
    """The parts of an xdstp name, decoded. `str` returns the name in its canonical form."""

    authority: str = ""
    """Authority that is responsible for the resource. A client's bootstrap names the servers of each."""
    type_url: str
    """Type URL of the resource."""
    path: str
    """Name of the resource among those of its type; ends in `/*` for a collection."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Context parameters. Names with different parameters are different resources."""

    def __str__(self) -> str:
        return xdstp(self.type_url, self.path, authority=self.authority, parameters=self.parameters)

    @classmethod
    def parse(cls, name: str) -> XdstpName:
        """Return the parts of a name.

        Raises:
            ValueError: The name does not have the form `xdstp://AUTHORITY/TYPE/PATH?PARAMETERS`.
        """
        before, _, query = name.removeprefix(SCHEME).partition("?")
        authority, _, rest = before.partition("/")
        message, _, encoded_path = rest.partition("/")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        if not name.startswith(SCHEME) or not message or not encoded_path or "#" in name:
            raise ValueError(
                f"not an xdstp name: {name!r}; the form is xdstp://AUTHORITY/TYPE/PATH?PARAMETERS"
            )
        return cls(
            authority=unquote(authority),
            type_url=TYPE_PREFIX + message,
            path=unquote(encoded_path),
            parameters={unquote(key): unquote(value) for key, _, value in pairs},
        )


def xdstp(
    type_url: str,
    path: str,
    *,
    authority: str = "",
    parameters: Mapping[str, str] | None = None,
) -> str:
    """Return a name in its canonical form, as clients send it.

    Args:
        type_url: Type URL of the resource.
        path: Name of the resource among those of its type. For a collection, end it in `/*`.
        authority: Authority that is responsible for the resource.
        parameters: Context parameters, such as `{"zone": "eu"}`.

    Raises:
        ValueError: `type_url` is not a type URL, or `path` is empty.
    """
    if not type_url.startswith(TYPE_PREFIX) or not path:
        raise ValueError(f"an xdstp name needs a type URL and a path, not {type_url!r} and {path!r}")
    query = "&".join(
        f"{quote(key, safe=_IN_PARAMETER)}={quote(value, safe=_IN_PARAMETER)}"
        for key, value in sorted((parameters or {}).items())
    )
    before = f"{quote(authority, safe=':')}/{type_url.removeprefix(TYPE_PREFIX)}/{quote(path, safe=_IN_PATH)}"
    return SCHEME + before + (f"?{query}" if query else "")


def of_type(name: str, type_url: str) -> str:
    """Return the name of a resource of another type that belongs to this one, such as a cluster's assignment.

    Only the type of an xdstp name changes. Any other name is returned unchanged.
    """
    if not name.startswith(SCHEME):
        return name
    parts = XdstpName.parse(name)
    return xdstp(type_url, parts.path, authority=parts.authority, parameters=parts.parameters)


def is_elsewhere(name: str, referrer: str) -> bool:
    """Whether a name belongs to another authority than the name of the resource that refers to it.

    A client requests it from that authority's servers, so on another stream.
    """
    if not (name.startswith(SCHEME) and referrer.startswith(SCHEME)):
        return False
    return XdstpName.parse(name).authority != XdstpName.parse(referrer).authority


def check_name(type_url: str, name: str) -> None:
    """Raise ValueError for an xdstp name that no client sends for a type. Accept any other name."""
    if not name.startswith(SCHEME):
        return
    parts = XdstpName.parse(name)
    kind = type_url.rpartition(".")[2]
    if parts.type_url != type_url:
        raise ValueError(f"{kind} {name}: the name is one of type {parts.type_url.removeprefix(TYPE_PREFIX)}")
    if str(parts) != name:
        raise ValueError(f"{kind} {name}: clients send this name as {parts}")
