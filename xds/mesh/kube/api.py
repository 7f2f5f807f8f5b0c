"""Client for a Kubernetes API server that sends and returns JSON.

The package `kubernetes` handles connections: kubeconfig, in-cluster configuration, credentials and their
renewal. Its models are not used, because decoding into them takes ten times as long.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeAlias
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException

from xds.mesh.kube.decoding import decode_json
from xds.mesh.kube.kubeconfig import kubeconfig_files

Json: TypeAlias = dict[str, Any]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply. It needs the query parameter `fieldManager` and, to take over fields, `force`."""

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_REQUEST_TIMEOUT = 30.0
_CONNECT_TIMEOUT = 5.0
_HEARTBEAT = 30.0
"""Seconds between pings of a WebSocket. It breaks if a ping is not answered within half of that."""


class KubeConfigError(Exception):
    """No kubeconfig or in-cluster configuration is usable. The message explains what is missing."""


class KubeError(Exception):
    """The API server rejected a request, or could not be reached (`status` 0)."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str = "",
        body: Json | None = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, or 0 without a response."""
        self.reason = reason
        """Reason in the Status object: `NotFound`, `AlreadyExists`, `Conflict`, `Expired`, ..."""
        self.body = body or {}
        """The Status object."""
        self.retry_after = retry_after
        """Seconds to wait before a retry, from the header Retry-After; 0 without it."""

    @property
    def is_not_found(self) -> bool:
        """Whether the requested object or kind does not exist."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_namespace_terminating(self) -> bool:
        """Whether creation failed because the namespace is being deleted."""
        causes = (self.body.get("details") or {}).get("causes") or ()
        return self.status == HTTPStatus.FORBIDDEN and any(
            cause.get("reason") == "NamespaceTerminating" for cause in causes
        )


class KubeApi:
    """Connection to an API server. Create it with `connect`, and close it after use."""

    def __init__(
        self,
        configuration: client.Configuration,
        namespace: str,
        *,
        in_cluster: bool = False,
        context: str = "",
        renew: Callable[[], Awaitable[client.Configuration]] | None = None,
    ) -> None:
        # With `trust_env`, each request would look for a proxy in the environment, in a thread.
        has_proxy = bool(getproxies())
        configuration.client_session_kwargs = {
            "raise_for_status": _require_upgrade,
            "trust_env": has_proxy,
            "ws_response_class": _WebSocket,
        }
        # By default, Python 3.13 requires extensions that certificates of EKS and of older MicroK8s clusters
        # lack. kubectl accepts these certificates. The chain, the name and the validity are still verified.
        configuration.disable_strict_ssl_verification = True
        self._configuration = configuration
        self._client = client.ApiClient(configuration)
        self._renew = renew
        self.server: str = configuration.host
        """URL of the server, for messages."""
        self.namespace = namespace
        """Namespace of this pod or of the kubeconfig's context."""
        self.in_cluster = in_cluster
        """Whether this process runs in a pod of the cluster."""
        self.context = context
        """Name of the kubeconfig's context; empty in a cluster."""

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> Self:
        """Load the configuration: from `kubeconfig` or `context`, else in-cluster, else as kubectl does.

        No request is sent yet. Raises KubeConfigError if the configuration is missing or invalid.
        """
        files = kubeconfig_files(kubeconfig)

        async def read() -> tuple[client.Configuration, str, str | None]:
            configuration = client.Configuration()
            configuration.connection_pool_maxsize = 100  # each watch uses one connection
            if kubeconfig is None and context is None and _in_cluster(configuration):
                return configuration, _own_namespace() or "default", None
            _require_any(files)
            loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig) if kubeconfig else None,
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
            current = loader.current_context
            return configuration, current["context"].get("namespace") or "default", current["name"]

        async def renew() -> client.Configuration:
            return (await read())[0]

        try:
            configuration, namespace, name = await read()
        except KubeConfigError:
            raise
        except Exception as error:  # the library raises any type of error for an invalid file
            raise KubeConfigError(_explain(error, files, context)) from error
        return cls(configuration, namespace, in_cluster=name is None, context=name or "", renew=renew)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, path: str, **query: Any) -> Json:
        """Read an object or a list. Raises KubeError."""
        return await self.call("GET", path, query=query)

    async def list_all(self, path: str, **query: Any) -> list[Json]:
        """Read all objects of a list, page by page. Raises KubeError, with status 410 if the list expires."""
        items: list[Json] = []
        continue_token = ""
        while True:
            page = await self.get(
                path, limit=500, **query, **({"continue": continue_token} if continue_token else {})
            )
            items += page.get("items") or ()
            continue_token = page["metadata"].get("continue") or ""
            if not continue_token:
                return items

    async def find(self, path: str) -> Json | None:
        """Read an object, or return None if it does not exist. Raises KubeError for any other error."""
        try:
            return await self.get(path)
        except KubeError as error:
            if error.is_not_found:
                return None
            raise

    async def server_time(self) -> datetime:
        """Return the time of the API server's clock, from a response's header Date. Raises KubeError."""
        client_timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT, sock_connect=_CONNECT_TIMEOUT)
        async with self._request("GET", "/version", {}, client_timeout) as response:
            date = response.headers.get("Date", "")
        try:
            return parsedate_to_datetime(date)
        except ValueError as error:
            raise KubeError(response.status, f"{self.server} sent no valid header Date") from error

    async def create(self, path: str, body: Json, **query: Any) -> Json:
        """Create an object in a collection. Raises KubeError."""
        return await self.call("POST", path, body, query=query)

    async def replace(self, path: str, body: Json, **query: Any) -> Json:
        """Replace an object. Raises KubeError, with status 409 if the resourceVersion is outdated."""
        return await self.call("PUT", path, body, query=query)

    async def patch(self, path: str, body: Any, *, kind: str = MERGE_PATCH, **query: Any) -> Json:
        """Patch an object, with `kind` MERGE_PATCH, JSON_PATCH or APPLY_PATCH. Raises KubeError."""
        return await self.call("PATCH", path, body, query=query, content_type=kind)

    async def delete(self, path: str, **query: Any) -> Json:
        """Delete an object. Raises KubeError."""
        return await self.call("DELETE", path, query=query)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        timeout: float = _REQUEST_TIMEOUT,  # noqa: ASYNC109 - of the HTTP client
        decode: Callable[[bytes], Any] = decode_json,
        accept: str = JSON,
    ) -> Json:
        """Send a request and return the JSON of the response, decoded by `decode`. Raises KubeError."""
        client_timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        async with self._request(
            method, path, query or {}, client_timeout, body=body, content_type=content_type, accept=accept
        ) as response:
            try:
                text = await response.read()
                answer = decode(text) if text else {}
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise _unreachable_error(self.server, error) from error
        if not isinstance(answer, dict):
            raise KubeError(0, f"{self.server} returned JSON that is not an object for {method} {path}")
        return answer

    @asynccontextmanager
    async def stream(self, path: str, *, idle: float, **query: Any) -> AsyncIterator[aiohttp.StreamReader]:
        """Open a streamed response, such as a watch.

        Reads time out after `idle` seconds without data. Raises KubeError.
        """
        client_timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=idle)
        async with self._request("GET", path, query, client_timeout) as response:
            yield response.content

    async def websocket(self, path: str, protocol: str, **query: Any) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket with a subprotocol; the caller closes it. Raises KubeError."""
        used_token = self._token
        try:
            return await self._open_websocket(path, protocol, query)
        except KubeError as error:
            if error.status != HTTPStatus.UNAUTHORIZED or not await self._refresh_token(used_token):
                raise
        return await self._open_websocket(path, protocol, query)

    async def _open_websocket(
        self, path: str, protocol: str, query: Mapping[str, Any]
    ) -> aiohttp.ClientWebSocketResponse:
        rest = self._client.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        try:
            _, url, headers, *_ = await self._client.param_serialize(
                "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
            )
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                socket: aiohttp.ClientWebSocketResponse = await rest.pool_manager.ws_connect(
                    url,
                    protocols=(protocol,),
                    headers=headers,
                    heartbeat=_HEARTBEAT,
                    proxy=rest.proxy,
                    proxy_headers=rest.proxy_headers,
                    server_hostname=self._configuration.tls_server_name,
                )
        except (aiohttp.ClientError, ApiException, TimeoutError, OSError) as error:
            raise _unreachable_error(self.server, error) from error
        return socket

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        client_timeout: aiohttp.ClientTimeout,
        *,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        used_token = self._token
        headers = {"Accept": accept, "Content-Type": content_type}
        response = await self._send(method, path, query, client_timeout, body, headers)
        if response.status == HTTPStatus.UNAUTHORIZED and await self._refresh_token(used_token):
            response.release()
            response = await self._send(method, path, query, client_timeout, body, headers)
        try:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise await _read_error(method, path, response)
            yield response
        except asyncio.CancelledError:
            _abort(response)
            raise
        finally:
            # A streamed response may not end, so its connection cannot be reused.
            _abort(response) if client_timeout.total is None else response.release()

    async def _send(  # noqa: PLR0917
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        client_timeout: aiohttp.ClientTimeout,
        body: Any,
        headers: Mapping[str, str],
    ) -> aiohttp.ClientResponse:
        try:
            call = await self._client.param_serialize(
                method,
                path,
                query_params=[
                    (name, _query_value(value)) for name, value in query.items() if value is not None
                ],
                header_params=dict(headers),
                body=body,
                auth_settings=["BearerToken"],
            )
            result = await self._client.call_api(*call, _request_timeout=client_timeout)
        except (aiohttp.ClientError, ApiException, TimeoutError, OSError) as error:
            raise _unreachable_error(self.server, error) from error
        response: aiohttp.ClientResponse = result.response
        return response

    @property
    def _token(self) -> str | None:
        token: str | None = self._configuration.api_key.get("BearerToken")
        return token

    async def _refresh_token(self, used_token: str | None) -> bool:
        """Reload the credentials unless another request has. Return whether the token has changed."""
        if self._renew and self._token == used_token:
            try:
                renewed = await self._renew()
            except (ConfigException, OSError):
                return False
            self._configuration.api_key.update(renewed.api_key)
            self._configuration.refresh_api_key_hook = renewed.refresh_api_key_hook
        return self._token != used_token


def _require_any(files: list[str]) -> None:
    """Raise KubeConfigError if no file exists. The library would only log that."""
    if not any(Path(file).is_file() for file in files):
        raise KubeConfigError(f"there is no kubeconfig at {', '.join(files)}: set --kubeconfig or KUBECONFIG")


def _explain(error: Exception, files: list[str], context: str | None) -> str:
    """Return why the kubeconfig files cannot be used."""
    names = ", ".join(files)
    if context and f"Expected object with name {context} " in str(error):
        return f"{names} has no context {context}: kubectl config get-contexts lists them"
    if isinstance(error, ConfigException | OSError):
        return f"{names}: {error}"
    return f"{names} is not a valid kubeconfig file"


def _in_cluster(configuration: client.Configuration) -> bool:
    try:
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        return False
    return True


def _own_namespace() -> str:
    return _NAMESPACE.read_text().strip() if _NAMESPACE.exists() else ""


def _query_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unreachable_error(server: str, error: BaseException) -> KubeError:
    return KubeError(0, f"the API server at {server} cannot be reached: {str(error) or type(error).__name__}")


class _WebSocket(aiohttp.ClientWebSocketResponse):
    """A WebSocket that is closed without waiting for the server's end of TLS."""

    async def close(self, *, code: int = aiohttp.WSCloseCode.OK, message: bytes = b"") -> bool:
        connection = self._response.connection
        transport = connection and connection.transport
        try:
            return await super().close(code=code, message=message)
        finally:
            if transport:
                transport.abort()


def _abort(response: aiohttp.ClientResponse) -> None:
    """Close a response's connection without waiting for the server's end of TLS."""
    if response.connection and response.connection.transport:
        response.connection.transport.abort()
    response.close()


async def _require_upgrade(response: aiohttp.ClientResponse) -> None:
    """Raise KubeError if a WebSocket is refused. Otherwise, aiohttp would discard the reason."""
    is_upgrade = "Sec-WebSocket-Key" in response.request_info.headers
    if is_upgrade and response.status != HTTPStatus.SWITCHING_PROTOCOLS:
        raise await _read_error("GET", response.url.path, response)


async def _read_error(method: str, path: str, response: aiohttp.ClientResponse) -> KubeError:
    try:
        body = json.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        body = {}
    body = body if isinstance(body, dict) else {}
    message = body.get("message") or f"{method} {path}: {response.status} {response.reason}"
    retry_after = response.headers.get("Retry-After", "")
    return KubeError(
        response.status,
        str(message),
        reason=str(body.get("reason", "")),
        body=body,
        retry_after=float(retry_after) if retry_after.isdecimal() else 0.0,
    )
