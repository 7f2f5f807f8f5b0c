"""The programs in docs/reference/library.md, and in pages of the library without a real Envoy, run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from envoy_data_plane.envoy.config.cluster.v3 import ClusterLbPolicy
from envoy_data_plane.envoy.config.route.v3 import VirtualHost
from envoy_data_plane.envoy.service.runtime.v3 import Runtime

from tests.library import messages
from tests.library.programs import TIMEOUT
from xds import builders, names, resources
from xds.codec import encode
from xds.server import XdsServer
from xds.store import Store
from xds.testing import EnvoyClient

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference" / "library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL)


LOG = """
import logging, structlog, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s %(proxy)s")
from xds.server import discovery
{shown}
discovery.log.info("unimportant", proxy="a")
try:
    secret = "s3cret"
    secret / 0
except TypeError:
    discovery.log.error("it broke", proxy="a", exc_info=True)
"""


def test_logging_can_be_configured_as_shown():
    """With the traceback, without local variables."""
    as_json, as_records = (block for block in BLOCKS if block.startswith("structlog.configure("))
    said = [
        subprocess.run(
            [sys.executable, "-c", LOG.format(shown=block)], capture_output=True, text=True, check=True
        )
        for block in (as_json, as_records)
    ]
    (line,) = said[0].stderr.splitlines()
    assert json.loads(line).items() >= {"event": "it broke", "level": "error", "proxy": "a"}.items()
    assert said[1].stderr.startswith("xds.server.discovery ERROR it broke a\nTraceback")
    for each in said:
        assert (each.stdout, each.stderr.count("TypeError: unsupported operand")) == ("", 1)
        assert "s3cret" not in each.stderr


def test_builders_are_documented_and_their_example_works():
    page = (ROOT / "docs" / "reference" / "builders.md").read_text()
    assert set(re.findall(r"^::: xds\.builders\.(\w+)$", page, re.MULTILINE)) == set(builders.__all__)
    variables = vars(builders) | {
        "store": Store(),
        "chain": b"c",
        "key": b"k",
        "ClusterLbPolicy": ClusterLbPolicy,
    }
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, variables)
    assert len(variables["store"].view("a").of(resources.CLUSTER)) == 3


def test_generated_reference_has_no_modules():
    """A module with the name of a function would show all its functions, also private ones."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    package = loader.load("xds", try_relative_path=False)
    loader.resolve_aliases()
    pages = ((ROOT / "docs" / "reference" / page).read_text() for page in ("api.md", "builders.md"))
    names = [name for page in pages for name in re.findall(r"^::: xds\.([\w.]+)$", page, re.MULTILINE)]
    assert len(names) > 70
    assert [name for name in names if package[name].is_module] == []


def test_deprecations_can_be_errors_as_documented(tmp_path):
    """Other packages, which also raise such warnings, still work."""
    test = """
import warnings, pytest, xds.builders
def test_it():
    warnings.warn("other", DeprecationWarning)
    with pytest.raises(xds.XdsDeprecationWarning):
        warnings.warn("use that", xds.XdsDeprecationWarning)
"""
    (tmp_path / "test_it.py").write_text(test)
    (options,) = re.findall(r"`pytest (-W [^`]+)`", REFERENCE)
    subprocess.run([sys.executable, "-m", "pytest", *options.split()], cwd=tmp_path, check=True)


def test_documented_federation_works():
    (block,) = (block for block in BLOCKS if "xdstp" in block)
    store = Store()
    exec(block, vars(builders) | vars(resources) | vars(names) | {"store": store})
    types = store.view("client").types
    (listener,) = types[resources.LISTENER].values()
    assert listener.refs[0][1] in types[resources.ROUTE]
    (cluster,) = types[resources.CLUSTER].values()
    assert cluster.refs[0][1] in types[resources.ENDPOINT]


def test_documented_calls_work():
    variables = vars(resources) | {
        "cluster": messages.eds_cluster("web"),
        "listener": messages.listener("web", "default"),
        "route": messages.routes("default"),
        "assignments": [messages.assignment("web")],
        "virtual_host": VirtualHost(name="web", domains=["web.example"]),
        "runtime": Runtime(name="flags"),
        "data": encode(messages.eds_cluster("web")),
        "store": Store(),
    }
    shown = [block for block in BLOCKS if block.startswith(("resource(", "store.set(cluster", "with store"))]
    assert len(shown) == 3
    for block in shown:
        exec(block, variables)
    view = variables["store"].view("ingress-1", "edge")
    assert {(type_url, *of) for type_url, of in view.types.items() if of} == {
        (resources.CLUSTER, "web"),
        (resources.ENDPOINT, "web"),
        (resources.LISTENER, "web"),
        (resources.ROUTE, "default"),
    }


def test_both_kinds_of_messages_make_the_same_resource():
    made = []
    for block in BLOCKS:
        if "import" in block and "\nweb = resource(" in block:
            exec(block, variables := {"resource": resources.resource})
            made.append(variables["web"])
    betterproto, protobuf = made
    assert betterproto == protobuf
    assert betterproto.refs == ((resources.ENDPOINT, "web"),)


async def test_guide_for_other_control_planes_works():
    """In its order: a store that computes per node, a `Proxies`, and resources from dicts."""
    page = (ROOT / "docs" / "how-to" / "move-a-control-plane.md").read_text()
    guide: dict[str, Any] = {}
    for block in re.findall(r"```python.*?\n(.*?)```", page, re.DOTALL):
        exec(block, guide)
    rendered = {
        "@type": resources.CLUSTER,
        "name": "app",
        "type": "EDS",
        "connect_timeout": "5s",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
    }
    made = guide["from_dict"](rendered)
    assert made.refs == ((resources.ENDPOINT, "app"),)
    async with EnvoyClient(guide["PerStream"](lambda _: [made])) as client:
        await client.wait_for(lambda: "app" in client.clusters)

    store = guide["PerNode"]()
    async with (
        EnvoyClient(store, node="a", cluster="edge") as edge,
        EnvoyClient(store, node="b", cluster="core") as core,
    ):
        await core.wait_for(lambda: "10.0.0.2" in str(core.clusters.get("app")))
        await edge.wait_for(lambda: "10.0.0.1" in str(edge.clusters.get("app")))
        guide["ADDRESSES"]["edge"] = ["10.0.0.3:80"]
        store.refresh()
        await edge.wait_for(lambda: "10.0.0.3" in str(edge.clusters["app"]))
        assert core.conversation.count("< CDS app") == 1


CALL = """
import grpc
{connect}
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
HealthStub(channel).Check(HealthCheckRequest(), timeout=30, wait_for_ready=True)
"""


async def test_grpc_is_configured_as_documented():
    """Its client gets what the page serves, by the bootstrap and the target that the page shows."""
    page = (ROOT / "docs" / "how-to" / "configure-proxyless-grpc.md").read_text()
    serve, connect = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    plain, federated = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    (target,) = re.findall(r"The target `(xds://mesh\.example/\w+)`", page)
    store = Store()
    exec(serve, vars(builders) | {"store": store})
    federated_listener = names.xdstp(resources.LISTENER, "svc", authority="mesh.example")
    store.set(builders.api_listener(federated_listener, routes="svc-routes"))
    async with XdsServer(store, "127.0.0.1:0") as server:
        # XdsServer also serves gRPC's health service.
        for name in ("v1", "v2"):
            store.set(builders.endpoints(name, [f"127.0.0.1:{server.port}"]))
        for code, more in ((connect, {}), (f'channel = grpc.insecure_channel("{target}")', federated)):
            bootstrap = json.dumps(plain | more).replace("127.0.0.1:18000", f"127.0.0.1:{server.port}")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CALL.format(connect=code), env={"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap}
            )
            assert await asyncio.wait_for(process.wait(), TIMEOUT) == 0
