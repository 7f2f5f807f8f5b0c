"""What a client got back, in curl's words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

UNANSWERED = "000"
"""curl's %{http_code} when no response came: refused, reset, closed or out of time."""

_URI = re.compile(r"URI=spiffe.*sa/[a-z0-9-]*")
"""As Istio's task greps for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response, or the want of one."""

    code: str
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the response, lower case."""
    error: str = ""
    """Why there was none."""

    @classmethod
    def failed(cls, error: BaseException) -> Answer:
        return cls(code=UNANSWERED, error=f"{type(error).__name__}: {error}")

    @property
    def ok(self) -> bool:
        return self.code == "200"

    @property
    def echo(self) -> dict[str, Any]:
        """What an echo application saw of the request: `headers`, `pod`, `protocol`, `peer`, `path`."""
        assert self.ok, f"{self}"
        return json.loads(self.text)  # type: ignore[no-any-return]

    @property
    def pod(self) -> str:
        """Which pod answered."""
        return str(self.echo["pod"])

    @property
    def certificate(self) -> str:
        """The X-Forwarded-Client-Cert header that the application saw; empty if there was none."""
        return str(self.echo["headers"].get("X-Forwarded-Client-Cert", ""))

    @property
    def identity(self) -> str:
        """The client's SPIFFE id as the application saw it; empty if the request came in plaintext."""
        found = _URI.search(self.certificate)
        return found.group().removeprefix("URI=") if found else ""
