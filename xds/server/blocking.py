"""Let the kernel drop what some addresses send to a listening socket: nothing is accepted that would have to be refused.

A filter of a socket (SO_ATTACH_FILTER, a BPF program of some instructions) needs no privileges. A connection inherits the filter of
its listener as it is when the connection is made, so those that exist are not affected by what is blocked later.
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
_DETACH_FILTER: Final = 27
"""SO_ATTACH_FILTER and SO_DETACH_FILTER, which the socket module does not have."""
_IP_HEADER: Final = 0x1_0000_0000 - 0x100000
"""SKF_NET_OFF: where the IP header begins; a TCP socket's filter sees the TCP header first."""
_LOAD_WORD, _LOAD_BYTE, _AND, _EQUALS, _JUMP, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x05, 0x06
_ACCEPT: Final = 0xFFFF_FFFF


def network_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Network:
    """Return what limits treat as one address: an IPv4 address, or a /64 of IPv6, as each host has one."""
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv4Network(address)
    return ipaddress.IPv6Network((int(address) >> 64 << 64, 64))


def block(listener: socket.socket, networks: Iterable[Network]) -> None:
    """Make a listening socket drop all that comes from these networks, as `network_of` returns them, and from no others.

    OSError: the kernel has no such filters.
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
    """Encode an instruction; `otherwise`: how many of the next ones a comparison skips that is not true."""
    return struct.pack("HBBI", code, 0, skip_unless_equal, operand)
