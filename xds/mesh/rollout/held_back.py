"""Resources that validation holds back from a proxy. For rollouts, the proxy has rejected them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, Resource

CLIENT_TYPES = (CLUSTER, ENDPOINT)
"""Types of the resources that tell a client what to send."""


class HeldBack:
    """Resources of which a proxy may use an earlier version, although it has ACKed all that it was sent."""

    def __init__(self) -> None:
        self._current: Mapping[Resource, str] = {}
        """Resources that the proxy is not sent, with the reasons."""
        self._repaired: dict[Resource, str] = {}
        """Resources that were held back, of types of which the proxy has not answered the latest version."""

    def update(self, resources: Mapping[Resource, str]) -> None:
        """Replace the resources that are held back, with the reasons."""
        self._repaired |= {each: why for each, why in self._current.items() if each not in resources}
        self._current = resources

    def forget_answered(self, has_answered: Callable[[str], bool]) -> None:
        """Forget repaired resources of the types whose latest version the proxy has ACKed or NACKed."""
        for resource in tuple(self._repaired):
            if has_answered(resource.type_url):
                del self._repaired[resource]

    @property
    def cluster_errors(self) -> dict[str, str]:
        """The reasons for clusters and endpoints, by cluster name."""
        return {each.name: why for each, why in self._reasons.items() if each.type_url in CLIENT_TYPES}

    @property
    def listener_error(self) -> str:
        """The reason for an inbound listener; empty if none is held back."""
        # Only inbound listeners have a tag: the modes that they accept.
        reasons = self._reasons.items()
        return next((why for each, why in reasons if each.type_url == LISTENER and each.tag), "")

    @property
    def _reasons(self) -> Mapping[Resource, str]:
        return {**self._repaired, **self._current} if self._repaired else self._current
