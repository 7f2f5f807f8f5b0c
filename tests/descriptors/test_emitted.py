"""Everything that we send, from the golden meshes: betterproto2's own encoder means the same by it, to the last Any inside."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.message import Message

from tests.descriptors.test_encoding import USED
from tests.golden.cases import CASES, load
from xds.descriptors import encode, full_name, message_class
from xds.envoy.bootstrap import TokenFile, bootstrap
from xds.identity.ca import Authority
from xds.identity.keys import PrivateKey
from xds.identity.secrets import roots_secret
from xds.translate import translate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Authority.create(PrivateKey.generate(), "cluster.local", datetime.now(UTC)).root_pem

Emitted = set[tuple[str, bytes]]
"""Full name and encoded message."""


@cache
def emitted() -> Emitted:
    found: Emitted = set()
    for case in CASES:
        mesh = load(case.values[0])
        for pod in (pod for pod in mesh.pods() if pod.has_sidecar):
            bodies = [
                (resource.type_url, resource.body)
                for resources in translate(mesh, pod, (roots_secret([ROOT]),)).types.values()
                for resource in resources.values()
            ]
            if pod.address:
                files = TokenFile(token="/token", roots="/roots.pem")
                for credential in (None, files):
                    message = bootstrap(pod, "127.0.0.1", 15010, credential=credential)
                    bodies.append((full_name(type(message)), encode(message)))
            for url, body in bodies:
                name = url.rpartition("/")[2]
                if (name, body) not in found:
                    found.add((name, body))
                    found.update(packed(message_class(name).FromString(body)))
    return found


def packed(message: Message) -> Iterator[tuple[str, bytes]]:
    """Every Any in a message, and in what it holds."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        name = message.type_url.rpartition("/")[2]
        yield name, message.value
        yield from packed(message_class(name).FromString(message.value))
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if field.is_repeated else (value,)
        for each in values:
            yield from packed(each)


def python_class(name: str) -> Any:
    return default_message_pool.url_to_type[f"type.googleapis.com/{name}"]


def test_every_type_that_is_emitted_is_among_those_that_random_messages_are_tried_of():
    assert {name for name, _ in emitted()} <= {full_name(cls) for cls in USED}


def test_what_is_emitted_means_the_same_as_with_betterproto2():
    for name, body in emitted():
        message = python_class(name).parse(body)
        assert encode(message) == body, name
        protobuf = message_class(name)
        assert protobuf.FromString(bytes(message)) == protobuf.FromString(body), name
    assert len(emitted()) > 200
