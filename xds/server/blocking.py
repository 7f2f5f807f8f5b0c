"""Drop packets of blocked addresses in the kernel, before a connection exists.

A socket filter (SO_ATTACH_FILTER with a classic BPF program) needs no privileges. A new connection inherits
its listener's filter. Later changes of the listener's filter do not affect the connection.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ATTACH_FILTER: Final = 26
"""SO_ATTACH_FILTER, which the socket module lacks."""
_DETACH_FILTER: Final = 27
"""SO_DETACH_FILTER, which the socket module lacks."""
_IP_HEADER: Final = 0x1_0000_0000 - 0x100000
"""SKF_NET_OFF, the offset of the IP header. Plain offsets start at the TCP header."""
_LOAD_WORD, _LOAD_BYTE, _AND, _EQUALS, _JUMP, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x05, 0x06
_ACCEPT: Final = 0xFFFF_FFFF


def network_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Network:
    """Return the unit of per-address limits: an IPv4 address, or an IPv6 /64.

    A single host usually controls a whole /64.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv4Network(address)
    return ipaddress.IPv6Network((int(address) >> 64 << 64, 64))


def block(listener: socket.socket, networks: Iterable[Network]) -> None:
    """Make a listening socket drop packets from these networks, and from no others.

    Args:
        listener: Listening TCP socket.
        networks: Networks as `network_of` returns them. An empty iterable removes the filter.

    Raises:
        OSError: the kernel does not support socket filters.
    """
    networks = tuple(networks)
    if not networks:
        listener.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
        return
    program = _program(networks)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter_)


def _program(networks: Iterable[Network]) -> bytes:
    """Return a BPF program that drops packets from these networks."""
    ipv4 = [_instruction(_LOAD_WORD, _IP_HEADER + 12)]
    ipv6: list[bytes] = []
    for network in networks:
        start = int(network.network_address)
        if isinstance(network, ipaddress.IPv4Network):
            ipv4 += (_instruction(_EQUALS, start, skip_unless_equal=1), _instruction(_RETURN, 0))
        else:
            ipv6 += (
                _instruction(_LOAD_WORD, _IP_HEADER + 8),
                _instruction(_EQUALS, start >> 96, skip_unless_equal=3),
                _instruction(_LOAD_WORD, _IP_HEADER + 12),
                _instruction(_EQUALS, start >> 64 & 0xFFFF_FFFF, skip_unless_equal=1),
                _instruction(_RETURN, 0),
            )
    ipv4.append(_instruction(_RETURN, _ACCEPT))
    ipv6.append(_instruction(_RETURN, _ACCEPT))
    version = (
        _instruction(_LOAD_BYTE, _IP_HEADER),
        _instruction(_AND, 0xF0),
        _instruction(_EQUALS, 0x60, skip_unless_equal=1),
        _instruction(_JUMP, len(ipv4)),
    )
    return b"".join((*version, *ipv4, *ipv6))


def _instruction(code: int, operand: int, *, skip_unless_equal: int = 0) -> bytes:
    """Encode an instruction. A comparison skips `skip_unless_equal` instructions if the values differ."""
    return struct.pack("HBBI", code, 0, skip_unless_equal, operand)
