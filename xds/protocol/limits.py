"""Limits on what one client can make the server store, and the accounting of each client's use."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass


class RequestError(ValueError):
    """A request is malformed. The server ends the stream with INVALID_ARGUMENT."""


class LimitError(RequestError):
    """A client exceeds one of its limits. The server ends the stream with RESOURCE_EXHAUSTED."""


_ADVICE = ": subscribe to all resources with '*', or raise the server's limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on what one client can make the server store. Its streams share `names`, `size` and `streams`.

    Raises:
        ValueError: A limit is negative.
    """

    names: int = 100_000
    """Maximum number of names that the server stores for a client.

    These are subscribed names, resources reported from an earlier stream, and removed names that the client
    has not ACKed. In a mesh of 10,000 clusters, a sidecar that reconnects needs 31,000 names, and twice as
    many during a hot restart. Each name takes up to 370 bytes, and a few microseconds of the event loop.
    """
    size: int = 8 * 1024 * 1024
    """Maximum size of these names and the versions sent with them, in bytes.

    In a mesh, 100,000 names take 7 MiB.
    """
    request_size: int = 8 * 1024 * 1024
    """Maximum size of one request, in bytes.

    A client that reconnects lists all its resources in one request. In the delta variant, each cluster's
    assignment takes 164 bytes, so the default is sufficient for 50,000 clusters.
    """
    name_length: int = 1024
    """Maximum length of one name, in characters. The longest name of a mesh has about 300 characters."""
    unknown_types: int = 8
    """Maximum number of types on one stream that the server does not know.

    Newer clients may know a few more types.
    """
    streams: int = 16
    """Maximum number of streams and fetches that a client has open at the same time.

    Envoy opens one stream for ADS and one for SDS. A hot restart doubles them, and a stream that reconnects
    may overlap with the stream that it replaces.
    """

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"Limits({name}={getattr(self, name)}): a limit must be at least 0")

    def check(self, names: int, size: int, subject: str) -> None:
        """Raise LimitError if names are too many or too large. The message begins with `subject`."""
        if names > self.names:
            raise LimitError(
                f"{subject} {names:,} names, and the limit is {self.names:,} names per client{_ADVICE}"
            )
        if size > self.size:
            raise LimitError(
                f"{subject} names of {size:,} bytes, and the limit is {self.size:,} bytes per client{_ADVICE}"
            )

    def check_count(self, field: str, count: int) -> None:
        """Raise LimitError if a field of a request has too many names."""
        self.check(count, 0, f"{field} has")

    def check_length(self, field: str, names: Iterable[str]) -> None:
        """Raise LimitError if a name in a field of a request is too long."""
        longest = max(map(len, names), default=0)
        if longest > self.name_length:
            raise LimitError(
                f"{field} has a name of {longest:,} characters,"
                f" and the limit is {self.name_length:,} characters per name"
            )


DEFAULT_LIMITS = Limits()
"""Limits that apply unless the server sets others."""


def size_of(strings: Collection[str]) -> int:
    """Return an upper bound for the size of strings in bytes, without Python's overhead per string."""
    size = sum(map(len, strings))
    if not all(map(str.isascii, strings)):
        size += 3 * sum(len(string) for string in strings if not string.isascii())
    return size


class _Account:
    """Combined usage of all streams of one client."""

    __slots__ = ("names", "size", "streams")

    def __init__(self) -> None:
        self.names = self.size = self.streams = 0


class Budgets:
    """Tracks each client's usage of the limits. A client without streams takes no memory."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._accounts: dict[Hashable, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, client: Hashable) -> Reservation:
        """Reserve a stream for a client. Raise LimitError if the client has too many."""
        account = self._accounts.get(client)
        if (account.streams if account else 0) >= self.limits.streams:
            raise LimitError(
                f"the limit is {self.limits.streams:,} streams per client at the same time:"
                " close one, or raise the server's limit"
            )
        return Reservation(self, client)

    def _add(self, client: Hashable, names: int, size: int, streams: int) -> _Account:
        account = self._accounts.setdefault(client, _Account())
        account.names += names
        account.size += size
        account.streams += streams
        if not account.streams:
            del self._accounts[client]
        return account


class Reservation:
    """One stream's share of its client's budget, until `close`."""

    __slots__ = ("_budgets", "_client", "_must_check", "_names", "_size")

    def __init__(self, budgets: Budgets, client: Hashable) -> None:
        self._budgets = budgets
        self._client = client
        self._names = self._size = 0
        self._must_check = False
        budgets._add(client, 0, 0, 1)

    def use(self, names: int, size: int) -> None:
        """Set the current usage of the stream.

        Raises:
            LimitError: The client's streams together exceed a limit. This stream must end.
        """
        if names == self._names and size == self._size and not self._must_check:
            return
        account = self._budgets._add(self._client, names - self._names, size - self._size, 0)
        self._names, self._size, self._must_check = names, size, True
        self._budgets.limits.check(account.names, account.size, "the streams of this client have")
        self._must_check = False

    def move(self, client: Hashable) -> None:
        """Charge the stream to another client from now on, even if that client exceeds a limit."""
        self.close()
        self._client, self._must_check = client, True
        self._budgets._add(client, self._names, self._size, 1)

    def close(self) -> None:
        """Release the stream's share."""
        self._budgets._add(self._client, -self._names, -self._size, -1)
