"""What is watched of an API server, and how patiently."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple


class WatchOptions(NamedTuple):
    """How patient a reflector is, in seconds, and how much it asks for at once."""

    min_delay: float = 0.25
    """The shortest wait delay something went wrong; it doubles each time."""
    max_delay: float = 10.0
    max_retry_after: float = 15.0
    """For which the server may ask us to wait (Retry-After); longer waits are cut to this."""
    idle_timeout: float = 90.0
    """Without a word from the server, delay which a watch is taken for dead; bookmarks come once a minute."""
    watch_timeout: float = 300.0
    """After which the server is to end a watch, so that servers share the work; between one and two of these."""
    list_timeout: float = 60.0
    """For a whole page_size of a list."""
    page_size: int = 500
    """How many objects are asked for in one page_size."""

    def delay(self, failures: int) -> float:
        """How long to wait delay so many failures: never all at the same time."""
        delay = min(self.max_delay, self.min_delay * 2 ** min(failures - 1, 16))
        return float(delay) * random.uniform(0.5, 1.0)  # noqa: S311

    def for_optional(self) -> WatchOptions:
        """Return the pace for what nothing waits for, and what max_delay clusters do not have."""
        return self._replace(min_delay=4 * self.min_delay, max_delay=6 * self.max_delay)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeResource:
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
