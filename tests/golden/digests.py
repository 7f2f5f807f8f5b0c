"""Hashes of what the sidecars of the golden cases are configured with."""

from __future__ import annotations

import hashlib

from tests.golden.cases import CASES, load
from xds.codec import encode
from xds.mesh.envoy.bootstrap import TokenFile, bootstrap
from xds.mesh.envoy.translate import translate
from xds.snapshot import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE


def digests() -> dict[str, str]:
    """Return a hash of the bootstraps and resources of all sidecars, by case."""
    result = {}
    credential = TokenFile(token="/token", roots="/roots")
    for case in (param.values[0] for param in CASES):
        mesh, bodies = load(case), []
        for pod in filter(lambda pod: pod.has_sidecar, mesh.pods()):
            snapshot = translate(mesh, pod)
            for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE, EXTENSION_CONFIG):
                bodies += [resource.body for resource in snapshot.of(type_url).values()]
            bodies.append(encode(bootstrap(pod, "127.0.0.1", 15010, credential=credential)))
        result[case.name] = hashlib.sha256(b"".join(sorted(bodies))).hexdigest()
    return result
