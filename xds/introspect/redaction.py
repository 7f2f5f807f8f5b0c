"""Redaction of secrets in resources. As in Envoy's config dump, `[redacted]` replaces each secret.

Envoy's API marks sensitive fields with `udpa.annotations.sensitive`. The generated Python classes lack this
annotation, so the fields are listed here. The contents of a sensitive field are redacted at any depth, also
in an Any.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from xds.codec import message_class

REDACTED = "[redacted]"

_PEM = b"PRIVATE KEY-----"
_ANY = "google.protobuf.Any"

_GOOGLE = "envoy.config.core.v3.GrpcService.GoogleGrpc"
_CALLS = "envoy.extensions.grpc_service.call_credentials"
_TLS = "envoy.extensions.transport_sockets.tls.v3"
_AWS = "envoy.extensions.common.aws.v3"
_REDIS = "envoy.extensions.filters.network.redis_proxy.v3"

SENSITIVE_FIELDS = frozenset(
    {
        f"{_TLS}.GenericSecret.secret",
        f"{_TLS}.GenericSecret.secrets",
        f"{_TLS}.PrivateKeyProvider.typed_config",
        f"{_TLS}.TlsCertificate.password",
        f"{_TLS}.TlsCertificate.pkcs12",
        f"{_TLS}.TlsCertificate.private_key",
        f"{_TLS}.TlsSessionTicketKeys.keys",
        f"{_GOOGLE}.SslCredentials.private_key",
        f"{_AWS}.AssumeRoleWithWebIdentityCredentialProvider.web_identity_token_data_source",
        f"{_AWS}.CredentialsFileCredentialProvider.credentials_data_source",
        f"{_AWS}.IAMRolesAnywhereCredentialProvider.private_key",
        f"{_AWS}.InlineCredentialProvider.secret_access_key",
        f"{_AWS}.InlineCredentialProvider.session_token",
        f"{_REDIS}.RedisProtocolOptions.Credential.auth_password",
        f"{_REDIS}.RedisProtocolOptions.Credential.auth_username",
        f"{_REDIS}.RedisProtocolOptions.auth_password",
        f"{_REDIS}.RedisProtocolOptions.auth_username",
        f"{_REDIS}.RedisProxy.downstream_auth_password",
        f"{_REDIS}.RedisProxy.downstream_auth_passwords",
        f"{_REDIS}.RedisProxy.downstream_auth_username",
        "envoy.config.grpc_credential.v3.FileBasedMetadataConfig.secret_data",
        "envoy.config.trace.v3.ClientConfig.backend_token",
        "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth.credentials",
        "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute.credentials",
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuth.users",
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute.users",
        "envoy.extensions.filters.http.ext_authz.v3.CheckSettings.context_extensions",
        f"{_CALLS}.file_based_metadata.v3.FileBasedMetadataCallCredentials.secret_data",
        "envoy.api.v2.auth.GenericSecret.secret",
        "envoy.api.v2.auth.PrivateKeyProvider.config",
        "envoy.api.v2.auth.PrivateKeyProvider.typed_config",
        "envoy.api.v2.auth.TlsCertificate.password",
        "envoy.api.v2.auth.TlsCertificate.private_key",
        "envoy.api.v2.auth.TlsSessionTicketKeys.keys",
        "envoy.api.v2.core.GrpcService.GoogleGrpc.SslCredentials.private_key",
        "envoy.config.filter.network.redis_proxy.v2.RedisProtocolOptions.auth_password",
        "envoy.config.filter.network.redis_proxy.v2.RedisProxy.downstream_auth_password",
        "envoy.config.grpc_credential.v2alpha.FileBasedMetadataConfig.secret_data",
    }
)
"""Fields that Envoy's API marks as sensitive. API v2 is included, because an Any may contain its messages."""

_SECRET_FIELDS = SENSITIVE_FIELDS | {
    f"{_GOOGLE}.CallCredentials.access_token",
    f"{_GOOGLE}.CallCredentials.google_refresh_token",
    f"{_GOOGLE}.CallCredentials.ServiceAccountJWTAccessCredentials.json_key",
    "envoy.config.trace.v3.LightstepConfig.access_token",
}
"""All fields to redact, including secrets that Envoy's API does not mark."""


def redact(type_url: str, body: bytes) -> bytes | None:
    """Return an encoded resource without its secrets; None if the result might still contain secrets.

    The result is None if the type is unknown, or if a private key in PEM remains, for example in a string.
    Unknown fields, and the contents of an Any with an unknown type, are removed.
    """
    redacted = _redact_encoded(type_url, body, all_fields=False)
    return None if redacted is None or _PEM in redacted else redacted


def _redact_encoded(type_url: str, body: bytes, *, all_fields: bool) -> bytes | None:
    """Redact the secrets of an encoded message, or all its fields.

    Return None if the message cannot be decoded.
    """
    try:
        message = message_class(type_url.rpartition("/")[2]).FromString(body)
    except (KeyError, DecodeError):
        return None
    message.DiscardUnknownFields()
    _redact(message, all_fields=all_fields)
    return message.SerializeToString(deterministic=True)


def _redact(message: Any, *, all_fields: bool) -> None:
    if message.DESCRIPTOR.full_name == _ANY:
        message.value = _redact_encoded(message.type_url, message.value, all_fields=all_fields) or b""
        return
    for field, value in message.ListFields():
        is_secret = all_fields or field.full_name in _SECRET_FIELDS
        inner = field.message_type
        if not inner:
            if is_secret:
                _blank(message, field, value)
        elif not is_secret and not _may_have_secrets(inner):
            continue
        elif inner.GetOptions().map_entry:
            _redact_map(value, inner.fields_by_name["value"], all_fields=is_secret)
        elif field.is_repeated:
            for item in value:
                _redact(item, all_fields=is_secret)
        else:
            _redact(value, all_fields=is_secret)


def _redact_map(entries: Any, values: FieldDescriptor, *, all_fields: bool) -> None:
    """Redact the values of a map, and keep its keys."""
    for key in list(entries):
        if values.message_type:
            _redact(entries[key], all_fields=all_fields)
        elif all_fields:
            entries[key] = _placeholder(values) or values.default_value


def _blank(message: Any, field: FieldDescriptor, value: Any) -> None:
    placeholder = _placeholder(field)
    if placeholder is None:
        message.ClearField(field.name)
    elif field.is_repeated:
        value[:] = [placeholder] * len(value)
    else:
        setattr(message, field.name, placeholder)


def _placeholder(field: FieldDescriptor) -> str | bytes | None:
    """Return the replacement for a secret in a field; None if the field's type allows none."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return REDACTED
    return REDACTED.encode() if field.type == FieldDescriptor.TYPE_BYTES else None


@cache
def _may_have_secrets(descriptor: Descriptor) -> bool:
    """Whether a message of this type can contain a secret, at any depth. An Any can contain anything."""
    seen, unvisited = {descriptor.full_name}, [descriptor]
    while unvisited:
        current = unvisited.pop()
        if current.full_name == _ANY or any(field.full_name in _SECRET_FIELDS for field in current.fields):
            return True
        for field in current.fields:
            inner = field.message_type
            if inner and inner.full_name not in seen:
                seen.add(inner.full_name)
                unvisited.append(inner)
    return False
