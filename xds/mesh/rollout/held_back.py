"""Resources that validation holds back from a proxy. For rollouts, the proxy has rejected them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, Resource, ResourceKey

CLIENT_TYPES = (CLUSTER, ENDPOINT)
"""Types of the resources that tell a client what to send."""


class HeldBack:
    """Resources of which a proxy may use an earlier version, although it has ACKed all that it was sent."""

    def __init__(self) -> None:
        self._current: Mapping[ResourceKey, str] = {}
        """Resources that the proxy is not sent, with the reasons."""
        self._repaired: dict[ResourceKey, str] = {}
        """Resources that were held back, of types of which the proxy has not answered the latest version."""

    def update(self, resources: Mapping[Resource, str]) -> None:
        """Replace the resources that are held back, with the reasons."""
        current = {
            (each.type_url, each.name): why for each, why in resources.items() if _matters_to_rollouts(each)
        }
        self._repaired |= {key: why for key, why in self._current.items() if key not in current}
        self._current = current

    def forget_answered(self, has_answered: Callable[[str], bool]) -> None:
        """Forget repaired resources of the types whose latest version the proxy has ACKed or NACKed."""
        for key in tuple(self._repaired):
            if has_answered(key[0]):
                del self._repaired[key]

    @property
    def cluster_errors(self) -> dict[str, str]:
        """The reasons for clusters and endpoints, by cluster name."""
        return {name: why for (type_url, name), why in self._reasons.items() if type_url in CLIENT_TYPES}

    @property
    def listener_error(self) -> str:
        """The reason for an inbound listener; empty if none is held back."""
        return next((why for (type_url, _), why in self._reasons.items() if type_url == LISTENER), "")

    @property
    def _reasons(self) -> Mapping[ResourceKey, str]:
        return {**self._repaired, **self._current} if self._repaired else self._current


def _matters_to_rollouts(resource: Resource) -> bool:
    # Only inbound listeners have a tag: the modes that they accept.
    return resource.type_url in CLIENT_TYPES or (resource.type_url == LISTENER and bool(resource.tag))
