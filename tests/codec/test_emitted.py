"""All messages of the golden meshes: betterproto2's own encoder gives equal messages."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any

import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.message import Message

from tests.codec.served_types import SERVED_TYPES
from tests.golden.cases import CASES, load
from xds.codec import encode, full_name, message_class
from xds.mesh import envoy, identity
from xds.mesh.envoy.bootstrap import TokenFile, bootstrap
from xds.mesh.envoy.features import ALL_FEATURES
from xds.mesh.envoy.translate import translate
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import certificate_secret, file_secret, roots_secret
from xds.mesh.sidecar.environment import read
from xds.mesh.sidecar.settings import CREDENTIAL_BUNDLE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOW = datetime.now(UTC)
AUTHORITY = Authority.create(PrivateKey.generate(), "cluster.local", NOW)
ISSUED = certificate_secret(AUTHORITY.issue("spiffe://cluster.local/ns/shop/sa/web", NOW))
SECRETS = (roots_secret([AUTHORITY.root_pem]), ISSUED)
POD = {"POD_NAME": "web-0", "POD_NAMESPACE": "shop", "INSTANCE_IP": "10.1.2.3"}
PROBES = {
    "/app-health/web/livez": {"httpGet": {"port": 80, "httpHeaders": [{"name": "X-Probe", "value": "1"}]}},
    "/app-health/web/readyz": {"httpGet": {"port": 443, "scheme": "HTTPS"}},
    "/app-health/web/startupz": {"tcpSocket": {"port": 80}},
    "/app-health/other/livez": {"grpc": {"port": 81, "service": "shop"}},
}

Emitted = set[tuple[str, bytes]]
"""Full name and encoded message."""


def whole() -> Iterator[tuple[str, bytes]]:
    """Resources and bootstraps of all sidecars."""
    for case in CASES:
        mesh = load(case.values[0])
        for pod in (pod for pod in mesh.pods() if pod.has_sidecar):
            for own_key in (False, True):
                features = ALL_FEATURES._replace(own_key=own_key)
                for resources in translate(mesh, pod, SECRETS, features).types.values():
                    for resource in resources.values():
                        yield resource.type_url.rpartition("/")[2], resource.body
            for credential in (None, TokenFile(token="/token", roots="/roots.pem")) if pod.address else ():
                message = bootstrap(pod, "127.0.0.1", 15010, credential=credential)
                yield full_name(type(message)), encode(message)
    moved = {"XDS_APP_PROBES": json.dumps(PROBES), "XDS_APP_METRICS": '{"port": 9090}'}
    file = file_secret(CREDENTIAL_BUNDLE)
    yield file.type_url.rpartition("/")[2], file.body
    sidecar, problems = read({**POD, **moved, "XDS_KEY_DIR": "/run/xds/key"})
    assert not problems
    message = sidecar.bootstrap()
    yield full_name(type(message)), encode(message)


@cache
def emitted() -> Emitted:
    found: Emitted = set()
    for each in whole():
        if each not in found:
            found.add(each)
            found.update(packed(each))
    return found


def packed(of: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield each Any in a message, at any depth."""
    for message in inside(message_class(of[0]).FromString(of[1])):
        if message.DESCRIPTOR.full_name == "google.protobuf.Any":
            name = message.type_url.rpartition("/")[2]
            yield name, message.value
            yield from packed((name, message.value))


def inside(message: Message) -> Iterator[Message]:
    """Yield a message and all messages in it, except those in an Any."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if field.is_repeated else (value,)
        for each in values:
            yield from inside(each)


def python_class(name: str) -> Any:
    return default_message_pool.url_to_type[f"type.googleapis.com/{name}"]


def test_all_emitted_types_are_tested_with_random_messages():
    assert {name for name, _ in emitted()} <= {full_name(cls) for cls in SERVED_TYPES}


def named() -> set[str]:
    """Return all message classes of Envoy that the modules of xds.mesh.envoy import."""
    modules = [
        import_module(each.name)
        for package in (envoy, identity)
        for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return {full_name(each) for each in classes if each in default_message_pool.type_to_url}


def test_golden_meshes_use_all_imported_messages():
    there = {
        each.DESCRIPTOR.full_name
        for name, body in emitted()
        for each in inside(message_class(name).FromString(body))
    }
    assert named() - there == set()
    assert len(named()) > 90


def test_emitted_messages_equal_those_of_betterproto2():
    for name, body in emitted():
        message = python_class(name).parse(body)
        assert encode(message) == body, name
        protobuf = message_class(name)
        assert protobuf.FromString(bytes(message)) == protobuf.FromString(body), name
    assert len(emitted()) > 200
