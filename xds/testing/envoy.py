"""The real Envoy as a child process, and its admin interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from xds.protocol.session import Variant
from xds.validation import find_envoy

DEFAULT_CLUSTER = "tests"
"""Cluster of a client's node by default."""

START_TIMEOUT = 60.0
"""Maximum time for Envoy to become live, in seconds. It takes a fraction of a second on an idle machine."""

_STOP_TIMEOUT = 10.0
_POLL_INTERVAL = 0.02

OPTIONS = (
    "--disable-hot-restart",
    "--concurrency", "1",
    # A replaced listener closes its connections within seconds.
    "--drain-strategy", "immediate",
    "--drain-time-s", "5",
)  # fmt: skip
"""Default command line options of `EnvoyProcess`."""


def bootstrap(
    node: str,
    *ports: int,
    variant: Variant = Variant.DELTA,
    cluster: str = DEFAULT_CLUSTER,
    admin_port: int = 0,
) -> dict[str, Any]:
    """Return a bootstrap for Envoy that uses xDS servers on the loopback address.

    Args:
        node: ID of the node.
        ports: Ports of the servers. Envoy connects to one of them.
        variant: Variant of the protocol.
        cluster: Cluster of the node. Envoy requires one.
        admin_port: Port of the admin interface; the default is a free port.
    """
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    backoff = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}
    source = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": node, "cluster": cluster},
        "admin": {"address": _address(admin_port)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if variant is Variant.DELTA else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds", "retry_policy": backoff}}],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in ports]}
                        ],
                    },
                    "typed_extension_protocol_options": {
                        http: {
                            "@type": f"type.googleapis.com/{http}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                }
            ]
        },
    }


class EnvoyAdmin:
    """An Envoy's admin interface.

    Args:
        address: Host and port, such as `127.0.0.1:9901`.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    async def request(self, path: str, method: str = "GET") -> str:
        """Send a request, and return the body of the answer.

        Raises:
            AssertionError: The status is not 200.
            ConnectionError: There is no answer.
        """
        import aiohttp  # noqa: PLC0415 - of the extra `testing`; EnvoyClient does without it

        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, f"http://{self.address}{path}") as answer,
            ):
                text = await answer.text()
        except aiohttp.ClientError as error:
            raise ConnectionError(f"admin {path}: {type(error).__name__}: {error}") from error
        if answer.status != 200:
            raise AssertionError(f"admin {path}: {answer.status} {text}")
        return text

    async def get(self, path: str) -> str:
        """Return the body of an answer."""
        return await self.request(path)

    async def json(self, path: str) -> Any:
        """Return an answer in JSON, decoded."""
        return json.loads(await self.request(path))

    async def post(self, path: str) -> None:
        """Send a POST request."""
        await self.request(path, "POST")

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Return the counters and gauges whose name contains a match of a regular expression."""
        lines = (await self.get("/stats")).splitlines()
        pairs = (line.rpartition(": ") for line in lines)
        return {
            name: int(value) for name, _, value in pairs if value.isdecimal() and re.search(pattern, name)
        }

    async def stat(self, name: str) -> int:
        """Return one counter or gauge; 0 if Envoy has not created it yet."""
        return (await self.stats(f"^{re.escape(name)}$")).get(name, 0)

    async def total(self, pattern: str) -> int:
        """Return the sum of the counters and gauges whose name contains a match of a regular expression."""
        return sum((await self.stats(pattern)).values())

    async def config(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the active configuration with endpoints: all dumps, or those whose type ends in `kind`."""
        dumps = (await self.json("/config_dump?include_eds"))["configs"]
        return [dump for dump in dumps if dump["@type"].endswith(kind)]

    async def ready(self) -> bool:
        """Whether Envoy is live."""
        return (await self.get("/ready")).strip() == "LIVE"

    async def drain(self) -> None:
        """Start to drain the listeners, as in a pod that is being deleted."""
        await self.post("/drain_listeners?graceful")


class EnvoyProcess:
    """A real Envoy, which runs inside an `async with` block and is live at its start.

    Leaving the block fails if Envoy has died, or has rejected any configuration.

    Args:
        name: Name of the files with its bootstrap and its log.
        bootstrap: Bootstrap, such as from the function `bootstrap`.
        directory: Directory for the files.
        options: Command line options.
        may_reject: Whether Envoy may reject configuration.
    """

    def __init__(
        self,
        name: str,
        bootstrap: Mapping[str, Any],
        directory: Path,
        *,
        options: Sequence[str] = OPTIONS,
        may_reject: bool = False,
    ) -> None:
        self.name = name
        """Name of its files. A slash becomes a hyphen."""
        self.bootstrap = bootstrap
        """Its bootstrap."""
        file_name = name.replace("/", "-")
        self.log = directory / f"{file_name}.log"
        """File with its log."""
        self._options = options
        self._may_reject = may_reject
        at = bootstrap["admin"]["address"]["socket_address"]
        self._has_free_port = at["port_value"] == 0
        self._admin_file = directory / f"{file_name}.admin"
        self.admin = self._make_admin(at["address"], at["port_value"])
        """Its admin interface. With port 0 in the bootstrap, the address is known when Envoy runs."""

    @property
    def pid(self) -> int:
        """ID of the process."""
        return self._process.pid

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the process (SIGSTOP) inside the block. Its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        binary_path = find_envoy()
        self.log.with_suffix(".json").write_text(json.dumps(self.bootstrap, indent=2))
        self._admin_file.unlink(missing_ok=True)
        with ExitStack() as files:
            binary = os.open(binary_path, os.O_RDONLY)
            files.callback(os.close, binary)
            log = files.enter_context(self.log.open("wb"))
            # By descriptor: another user may have no access to the directories that lead to the binary.
            argv = self._argv(f"/proc/self/fd/{binary}")
            self._process = await asyncio.create_subprocess_exec(
                *argv, pass_fds=[binary], stdout=log, stderr=log, cwd="/"
            )
        try:
            await self._wait_until_live()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if (status := self._process.returncode) is not None:
                    raise AssertionError(f"{self.name} ended with status {status}\n{self.tail()}")
                if not self._may_reject:
                    rejected = {name: count for name, count in (await self.rejections()).items() if count}
                    if rejected:
                        raise AssertionError(f"{self.name} rejected configuration: {rejected}\n{self.tail()}")
        finally:
            await self._end()

    async def ended(self) -> int:
        """Wait until the process has ended, and return its exit status."""
        return await self._process.wait()

    async def rejections(self) -> dict[str, int]:
        """Return the counters of rejected configuration."""
        return await self.admin.stats(r"\.update_rejected$")

    def tail(self, lines: int = 20) -> str:
        """Return the end of Envoy's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _is_live(self) -> bool:
        return await self.admin.ready()

    def _make_admin(self, host: str, port: int) -> EnvoyAdmin:
        return EnvoyAdmin(f"{host}:{port}")

    def _argv(self, binary: str) -> list[str]:
        port_file = ["--admin-address-path", str(self._admin_file)] if self._has_free_port else []
        return [binary, *self._options, *port_file, "--config-yaml", json.dumps(self.bootstrap)]

    async def _wait_until_live(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if (status := self._process.returncode) is not None:
                raise RuntimeError(f"{self.name} ended with status {status}\n{self.tail()}")
            try:
                if self._has_free_port:
                    self.admin.address = self._admin_file.read_text().strip()
                # Envoy creates the file before it writes the address.
                if self.admin.address and await self._is_live():
                    return
                problem = "it is not ready"
            except (AssertionError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() > deadline:
                text = f"{self.name} is not live within {START_TIMEOUT} s: {problem}\n{self.tail()}"
                raise AssertionError(text)
            await asyncio.sleep(_POLL_INTERVAL)

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=_STOP_TIMEOUT)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
