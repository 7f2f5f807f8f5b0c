"""Resource types to watch on an API server, and the timing of the watches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple


class WatchOptions(NamedTuple):
    """Timeouts, retry delays and page size of a reflector. Times are in seconds."""

    min_delay: float = 0.25
    """Delay before the first retry. It doubles with each consecutive failure."""
    max_delay: float = 10.0
    """Upper limit of the retry delay."""
    max_retry_after: float = 15.0
    """Upper limit of a delay that the server requests with Retry-After."""
    idle_timeout: float = 90.0
    """Time without data after which a watch counts as broken. The server sends bookmarks every minute."""
    watch_timeout: float = 300.0
    """Minimum lifetime requested for a watch, to spread load over servers. Jitter at most doubles it."""
    list_timeout: float = 60.0
    """Timeout of the request for one page of a list."""
    page_size: int = 500
    """Number of objects in one page of a list."""

    def delay(self, failures: int) -> float:
        """Return the retry delay after a number of consecutive failures, with jitter."""
        delay = min(self.max_delay, self.min_delay * 2 ** min(failures - 1, 16))
        return float(delay) * random.uniform(0.5, 1.0)  # noqa: S311

    def for_optional(self) -> WatchOptions:
        """Return the options for optional kinds, with longer retry delays. Most clusters lack them."""
        return self._replace(min_delay=4 * self.min_delay, max_delay=6 * self.max_delay)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeResource:
    """A resource type to watch."""

    kind: str
    """Kind of the objects."""
    plural: str
    """Plural name, as in URLs."""
    versions: tuple[str, ...] = ("v1",)
    """Versions that can be parsed. The last one that the server serves is used."""
    group: str = ""
    """API group; empty for the core group."""
    custom: bool = False
    """Whether the kind may be missing, or only served in other versions, as a CustomResourceDefinition's."""
    optional: bool = False
    """Whether a kind that the server does not serve counts as one without objects."""
    namespace: str = ""
    """Namespace to watch; empty for all."""
    name: str = ""
    """Name of the only object to watch; empty for all."""
    fields: str = ""
    """Field selector of the objects to watch, without `name`; empty for all."""
    labels: str = ""
    """Label selector of the objects to watch; empty for all."""
    used: type[Any] | None = None
    """TypedDict of the fields to decode in a list; None for all."""

    @property
    def title(self) -> str:
        """Full name for kubectl, such as `policies.authentication.istio.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def api_version(self, version: str) -> str:
        """Return the apiVersion of the objects."""
        return f"{self.group}/{version}" if self.group else version

    def path(self, version: str) -> str:
        """Return the URL path of the collection."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return (
            f"{root}/namespaces/{self.namespace}/{self.plural}" if self.namespace else f"{root}/{self.plural}"
        )

    @property
    def selectors(self) -> dict[str, str | None]:
        """Query parameters that select the objects to watch."""
        return {
            "fieldSelector": f"metadata.name={self.name}" if self.name else self.fields or None,
            "labelSelector": self.labels or None,
        }

    def grant(self, *verbs: str, role: str = "the ClusterRole") -> str:
        """Return how to grant verbs in a role of RBAC; without any, those of a watch."""
        granted = ", ".join(f'"{verb}"' for verb in verbs or ("get", "list", "watch"))
        names = f'resourceNames: ["{self.name}"], ' if self.name else ""
        resources = f'apiGroups: ["{self.group}"], resources: ["{self.plural}"]'
        role = f"a Role in namespace {self.namespace}" if self.namespace else role
        return f"add to the rules of {role}: - {{{resources}, {names}verbs: [{granted}]}}"
