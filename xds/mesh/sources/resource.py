"""What is watched of an API server, and how patiently."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple


class Pace(NamedTuple):
    """How patient a reflector is, in seconds, and how much it asks for at once."""

    first: float = 0.25
    """The shortest wait after something went wrong; it doubles each time."""
    most: float = 10.0
    longest_wait: float = 15.0
    """For which the server may ask us to wait (Retry-After); longer waits are cut to this."""
    idle: float = 90.0
    """Without a word from the server, after which a watch is taken for dead; bookmarks come once a minute."""
    renew: float = 300.0
    """After which the server is to end a watch, so that servers share the work; between one and two of these."""
    answer: float = 60.0
    """For a whole page of a list."""
    page: int = 500
    """How many objects are asked for in one page."""

    def after(self, failures: int) -> float:
        """How long to wait after so many failures: never all at the same time."""
        return float(min(self.most, self.first * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0))  # noqa: S311

    def unhurried(self) -> Pace:
        """Return the pace for what nothing waits for, and what most clusters do not have."""
        return self._replace(first=4 * self.first, most=6 * self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is to be watched."""

    kind: str
    plural: str
    versions: tuple[str, ...] = ("v1",)
    """Those that can be read; the last one is asked for if it is served."""
    group: str = ""
    custom: bool = False
    """Whether a CustomResourceDefinition is needed for it, which may be missing."""
    namespace: str = ""
    """Only objects of this namespace."""
    name: str = ""
    """Only this object."""

    @property
    def title(self) -> str:
        """Its name, as kubectl takes it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def api_version(self, version: str) -> str:
        """Return the apiVersion of its objects."""
        return f"{self.group}/{version}" if self.group else version

    def path(self, version: str) -> str:
        """Return where it is."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return (
            f"{root}/namespaces/{self.namespace}/{self.plural}" if self.namespace else f"{root}/{self.plural}"
        )

    @property
    def rule(self) -> str:
        """What RBAC must grant, as YAML on one line."""
        only = f'resourceNames: ["{self.name}"], ' if self.name else ""
        return f'{{apiGroups: ["{self.group}"], resources: ["{self.plural}"], {only}verbs: ["get", "list", "watch"]}}'
