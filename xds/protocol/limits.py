"""How much one client may have the server remember, and the accounts of who uses how much of it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass


class RequestError(ValueError):
    """A request that no client should send; its stream ends with INVALID_ARGUMENT."""


class LimitError(RequestError):
    """A client asks for more than its limits allow; the stream ends with RESOURCE_EXHAUSTED."""


_ADVICE = ": subscribe to all resources with '*', or raise the server's limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one client may have the server remember; its streams share `names`, `size` and `streams`."""

    names: int = 100_000
    """Names that a client may keep: names it subscribes to, resources it reports to have from an earlier stream, and
    removed names it has not acknowledged.

    A sidecar that reconnects in a mesh of 10,000 clusters needs 31,000, and twice that during a hot restart. Each takes
    up to 370 bytes and some microseconds of the event loop.
    """
    size: int = 8 * 1024 * 1024
    """Bytes of these names and of the versions that come with them. 100,000 names of a mesh have 7 MiB."""
    request_size: int = 8 * 1024 * 1024
    """Bytes of the largest request that is read.

    A client that reconnects names everything that it has in one request. In the delta variant that takes 164 bytes for each
    cluster's endpoints, so this is enough for 50,000 clusters.
    """
    name_length: int = 1024
    """Characters of one name. The longest name in a mesh has about 300: three DNS labels and the cluster domain."""
    unknown_types: int = 8
    """Types that a stream may ask for although the server does not know them: a newer client may know a few more."""
    streams: int = 16
    """Streams and fetches that a client may have open at the same time.

    Envoy opens one for ADS and one for SDS; a hot restart doubles them, and a stream that reconnects may overlap with
    the one that it replaces.
    """

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"Limits({name}={getattr(self, name)}): a limit is at least 0")

    def check(self, names: int, size: int, what: str) -> None:
        """Raise LimitError if these are more than `names` or `size`; `what` has them, for the error."""
        if names > self.names:
            raise LimitError(
                f"{what} {names:,} names, and the limit is {self.names:,} names per client{_ADVICE}"
            )
        if size > self.size:
            raise LimitError(
                f"{what} names of {size:,} bytes, and the limit is {self.size:,} bytes per client{_ADVICE}"
            )

    def check_count(self, what: str, count: int) -> None:
        """Raise LimitError if one list of a request has too many names."""
        self.check(count, 0, f"{what} has")

    def check_length(self, what: str, names: Iterable[str]) -> None:
        """Raise LimitError if a name in one list of a request is too long."""
        longest = max(map(len, names), default=0)
        if longest > self.name_length:
            raise LimitError(
                f"{what}: a name of {longest:,} characters, and the limit is {self.name_length:,} characters per name"
            )


DEFAULT_LIMITS = Limits()


def size_of(strings: Collection[str]) -> int:
    """Return how many bytes strings take at most, without what Python adds for each."""
    size = sum(map(len, strings))
    if not all(map(str.isascii, strings)):
        size += 3 * sum(len(string) for string in strings if not string.isascii())
    return size


class _Account:
    """What the streams of one client use together."""

    __slots__ = ("names", "size", "streams")

    def __init__(self) -> None:
        self.names = self.size = self.streams = 0


class Budgets:
    """What each client uses of its limits. A client without streams leaves nothing behind."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._accounts: dict[Hashable, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, client: Hashable) -> Reservation:
        """Count another stream of a client. LimitError: it has too many."""
        account = self._accounts.get(client)
        if (account.streams if account else 0) >= self.limits.streams:
            raise LimitError(
                f"the limit is {self.limits.streams:,} streams per client at the same time: close one, or raise the "
                "server's limit"
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
    """What one stream uses of its client's budget, until it is closed."""

    __slots__ = ("_budgets", "_client", "_names", "_size")

    def __init__(self, budgets: Budgets, client: Hashable) -> None:
        self._budgets = budgets
        self._client = client
        self._names = self._size = 0
        budgets._add(client, 0, 0, 1)

    def use(self, names: int, size: int) -> None:
        """Set what the stream uses now. LimitError: the client's streams together use too much, and this one must end."""
        account = self._budgets._add(self._client, names - self._names, size - self._size, 0)
        self._names, self._size = names, size
        self._budgets.limits.check(account.names, account.size, "the streams of this client have")

    def move(self, client: Hashable) -> None:
        """Charge another client for the stream from now on, whatever that one uses already."""
        self.close()
        self._client = client
        self._budgets._add(client, self._names, self._size, 1)

    def close(self) -> None:
        """Give back what the stream used."""
        self._budgets._add(self._client, -self._names, -self._size, -1)
