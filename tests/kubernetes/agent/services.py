"""DNS names of Services, and the addresses that kube-proxy balances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.kubernetes.agent.watching import Key
from xds.mesh.kube.api import Json

Target = tuple[str, int]
"""(address, port)."""
API_SERVER = Key("default", "kubernetes")
DOMAIN = "svc.cluster.local"


class Services:
    """A snapshot of Services and EndpointSlices."""

    def __init__(self, services: Mapping[Key, Json], slices: Iterable[Json], api_server: Target) -> None:
        """Route the Service `kubernetes` to `api_server`, which is in no EndpointSlice."""
        self._services = services
        self._api_server = api_server
        self._slices: dict[Key, list[Json]] = {}
        for endpoint_slice in slices:
            name = endpoint_slice["metadata"].get("labels", {}).get("kubernetes.io/service-name")
            self._slices.setdefault(Key(endpoint_slice["metadata"]["namespace"], name), []).append(
                endpoint_slice
            )

    def virtual(self) -> dict[Target, list[Target]]:
        """Return the ready endpoints behind each Service's address and port."""
        return {
            (address, port["port"]): self._behind(key, port.get("name", ""))
            for key, service in self._services.items()
            if (address := service["spec"].get("clusterIP", "None")) != "None"
            for port in service["spec"].get("ports", ())
            if port.get("protocol", "TCP") == "TCP"
        }

    def records(self) -> dict[str, list[str]]:
        """Return the addresses of each name."""
        found: dict[str, list[str]] = {}
        for key, service in self._services.items():
            address = service["spec"].get("clusterIP", "None")
            found[f"{key.name}.{key.namespace}.{DOMAIN}"] = (
                self._addresses(key) if address == "None" else [address]
            )
        return found

    def _behind(self, key: Key, port: str) -> list[Target]:
        if key == API_SERVER:
            return [self._api_server]
        return [
            (address, known["port"])
            for endpoint_slice in self._slices.get(key, ())
            for known in endpoint_slice.get("ports") or ()
            if known.get("name", "") == port
            for address in _ready(endpoint_slice)
        ]

    def _addresses(self, key: Key) -> list[str]:
        return sorted(
            {address for endpoint_slice in self._slices.get(key, ()) for address in _ready(endpoint_slice)}
        )


def _ready(endpoint_slice: Json) -> Iterable[str]:
    for endpoint in endpoint_slice.get("endpoints") or ():
        if endpoint.get("conditions", {}).get("ready", True):
            yield from endpoint["addresses"]
