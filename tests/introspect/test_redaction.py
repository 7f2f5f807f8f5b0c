"""Secrets are redacted wherever they are, and everything else is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.golden.cases import CASES, load
from tests.peers import xdsprotos
from xds.codec import message_class, pool, to_dict
from xds.introspect import redaction
from xds.introspect.redaction import REDACTED, redact
from xds.mesh.envoy.translate import translate
from xds.snapshot import CLUSTER, LISTENER, SECRET

PackedMessage = message_class("google.protobuf.Any")
PREFIX = "type.googleapis.com/"
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\n"
SHOWN = "not a secret"
WHERE = ("inline_string", "inline_bytes", "filename")
TLS = "envoy.extensions.transport_sockets.tls.v3"


def fill(message, field: FieldDescriptor, where: str) -> None:
    """Set a field to the key, and create the messages around it."""
    inner = field.message_type
    if inner is None:
        value = KEY.encode() if field.type == FieldDescriptor.TYPE_BYTES else KEY
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)
    elif inner.GetOptions().map_entry:
        entries = getattr(message, field.name)
        if inner.fields_by_name["value"].message_type:
            put(entries[SHOWN], where)
        else:
            entries[SHOWN] = KEY
    elif field.is_repeated:
        put(getattr(message, field.name).add(), where)
    else:
        put(getattr(message, field.name), where)


def put(message, where: str) -> None:
    """Fill a message that is redacted entirely."""
    match message.DESCRIPTOR.name:
        case "DataSource":
            fill(message, message.DESCRIPTOR.fields_by_name[where], where)
        case "Struct":
            message.update({SHOWN: KEY, "list": [KEY, 7, True, None]})
        case "Any":
            struct = message_class("google.protobuf.Struct")()
            put(struct, where)
            message.Pack(struct)
        case "Credential":
            message.key, message.client = KEY, KEY
        case name:
            pytest.fail(f"{name}: say what to put there")


def with_key(name: str, where: str = "inline_string"):
    """Make a message with the key in the field of a full name."""
    owner, _, field = name.rpartition(".")
    message = message_class(owner)()
    fill(message, message.DESCRIPTOR.fields_by_name[field], where)
    return message


def inside(message):
    """Put a message into an Any deep inside a Listener."""
    listener = message_class("envoy.config.listener.v3.Listener")(name=SHOWN)
    socket = listener.filter_chains.add().transport_socket
    wrapper = message_class("envoy.config.core.v3.TypedExtensionConfig")(name=SHOWN)
    wrapper.typed_config.Pack(message)
    socket.typed_config.Pack(wrapper)
    return listener


def test_sensitive_fields_are_exactly_those_of_the_api():
    done = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("marked_fields.py")],
        env=xdsprotos.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == redaction.SENSITIVE_FIELDS


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", sorted(redaction._SECRET_FIELDS))
def test_no_secret_field_is_shown_at_any_depth(name, where):
    message = with_key(name, where)
    for outer in (message, inside(message)):
        body = outer.SerializeToString()
        assert b"MIIEvQ" in body
        shown = redact(PREFIX + outer.DESCRIPTOR.full_name, body)
        assert shown is not None
        assert b"MIIEvQ" not in shown
        assert REDACTED.encode() in shown
        to_dict(outer.DESCRIPTOR.full_name, shown)


def test_secret_message_is_redacted_except_map_keys():
    message = with_key(f"{TLS}.PrivateKeyProvider.typed_config")
    message.provider_name = SHOWN
    shown = to_dict(
        f"{TLS}.PrivateKeyProvider",
        redact(PREFIX + f"{TLS}.PrivateKeyProvider", message.SerializeToString()),
    )
    assert shown == {
        "provider_name": SHOWN,
        "typed_config": {
            "@type": PREFIX + "google.protobuf.Struct",
            "value": {SHOWN: REDACTED, "list": [REDACTED, None, None, None]},
        },
    }


def test_other_fields_of_a_secret_are_kept():
    secret = message_class(f"{TLS}.Secret")(name="default")
    secret.tls_certificate.certificate_chain.inline_string = SHOWN
    secret.tls_certificate.private_key.inline_string = KEY
    shown = to_dict(SECRET, redact(SECRET, secret.SerializeToString()))
    assert shown == {
        "name": "default",
        "tls_certificate": {
            "certificate_chain": {"inline_string": SHOWN},
            "private_key": {"inline_string": REDACTED},
        },
    }


@pytest.mark.parametrize("case", CASES)
def test_resource_without_secrets_is_unchanged(case):
    mesh = load(case)
    for pod in [pod for pod in mesh.pods() if pod.has_sidecar][:2]:
        for resources in translate(mesh, pod).types.values():
            for resource in resources.values():
                assert redact(resource.type_url, resource.body) == resource.body


def test_unknown_contents_are_removed():
    body = with_key(f"{TLS}.TlsCertificate.private_key").SerializeToString()
    assert redact(PREFIX + "somebody.else.v1.Thing", body) is None
    assert redact(CLUSTER, b"\xff") is None

    listener = message_class("envoy.config.listener.v3.Listener")(name=SHOWN)
    listener.metadata.typed_filter_metadata[SHOWN].CopyFrom(
        PackedMessage(type_url=PREFIX + "somebody.else.v1.Thing", value=body)
    )
    listener.metadata.typed_filter_metadata["broken"].CopyFrom(
        PackedMessage(type_url=LISTENER, value=b"\xff")
    )
    shown = redact(LISTENER, listener.SerializeToString())
    assert shown
    assert b"MIIEvQ" not in shown
    assert b"somebody.else" in shown
    assert b"\xff" not in shown

    unknown_field = b"\xfa\x3f" + bytes([len(KEY)]) + KEY.encode()
    packed = PackedMessage(type_url=LISTENER, value=unknown_field)
    for type_url, message in (
        (LISTENER, unknown_field),
        (PREFIX + "google.protobuf.Any", packed.SerializeToString()),
    ):
        shown = redact(type_url, message)
        assert shown is not None
        assert b"MIIEvQ" not in shown


def test_resource_with_an_unexpected_key_is_not_shown():
    cluster = message_class("envoy.config.cluster.v3.Cluster")(name=KEY)
    assert redact(CLUSTER, cluster.SerializeToString()) is None


def test_every_secret_field_exists():
    for name in redaction._SECRET_FIELDS:
        owner, _, field = name.rpartition(".")
        assert field in pool.FindMessageTypeByName(owner).fields_by_name
