"""A namespace with a Service whose endpoints change."""

from __future__ import annotations

from collections.abc import Iterable

from tests.kubernetes.environment.cluster import Cluster


class Shop:
    """A namespace with a Service, and pods that come and go behind it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self.namespace = namespace
        self.service = f"outbound|80||web.{namespace}.svc.cluster.local"

    async def open(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/services"
        ports = [{"name": "http", "port": 80, "targetPort": 8080}]
        await self._cluster.api.create(
            path, {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
        )
        await self.add(101, app="client")

    async def add(self, *numbers: int, app: str = "web") -> None:
        """Run pods, and wait until the cluster has endpoints for them."""
        for number in numbers:
            await self.create(f"{app}-{number}", app)
            await self._cluster.run_pod(self.namespace, f"{app}-{number}", address(number))
        if app == "web":
            await self._until(lambda found: found >= addresses(numbers))

    async def create(self, name: str, app: str) -> None:
        """Create a pod that does not run yet."""
        pod = {
            "metadata": {"name": name, "labels": {"app": app, "security.istio.io/tlsMode": "istio"}},
            "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]},
        }
        await self._cluster.api.create(f"/api/v1/namespaces/{self.namespace}/pods", pod)

    async def remove(self, *numbers: int) -> None:
        """Delete pods, and wait until the cluster has no endpoints for them."""
        for number in numbers:
            path = f"/api/v1/namespaces/{self.namespace}/pods/web-{number}"
            await self._cluster.api.delete(path, gracePeriodSeconds=0)
        await self._until(lambda found: not found & addresses(numbers))

    async def _until(self, right) -> None:
        await self._cluster.until(
            f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices",
            lambda slices: right(
                {
                    address
                    for item in slices["items"]
                    for endpoint in item["endpoints"] or ()
                    if endpoint["conditions"]["ready"]
                    for address in endpoint["addresses"]
                }
            ),
        )


def address(number: int) -> str:
    return f"10.244.{number // 250}.{number % 250 + 1}"


def addresses(numbers: Iterable[int]) -> set[str]:
    return {address(number) for number in numbers}
