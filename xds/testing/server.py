"""A server for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xds.server import XdsServer
from xds.store import Store
from xds.testing.messages import Conversation
from xds.testing.recording import Recorder


class RecordingServer(XdsServer):
    """An `XdsServer` with a store, which records the conversations with its clients.

    Args:
        store: Store to serve.
        address: Address of the plaintext port. The default is a free port.
        options: Other arguments of `XdsServer`.
    """

    def __init__(self, store: Store, address: str = "127.0.0.1:0", **options: Any) -> None:
        self._recorder = Recorder()
        options["interceptors"] = (self._recorder, *options.get("interceptors", ()))
        super().__init__(store, address, **{"grace": 0.2} | options)
        self.store = store
        """Resources that the server serves."""

    @property
    def address(self) -> str:
        """Address of the plaintext port, after `start`."""
        return f"127.0.0.1:{self.port}"

    @property
    def conversations(self) -> Mapping[str, Conversation]:
        """Conversations by node ID."""
        return self._recorder.conversations
