"""Lists of ports, networks and interfaces, and the traffic annotations of pods."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tests.support import manifests
from xds.mesh.model.objects import Pod
from xds.mesh.model.redirection import REDIRECT_ALL, REDIRECT_NONE, Redirection
from xds.mesh.parse import parse
from xds.mesh.parse.redirection import (
    MAX_LIST_LENGTH,
    TRAFFIC_PREFIX,
    networks_with_host_bits,
    parse_interfaces,
    parse_networks,
    parse_ports,
)


@pytest.mark.parametrize(
    ("text", "expected"), [("*", None), ("", ()), (" ", ()), ("80", (80,)), ("80, 81,80,", (80, 81))]
)
def test_ports(text, expected):
    assert parse_ports(text) == expected


@pytest.mark.parametrize("text", ["x", "0", "65536", "80-90", "80;81", "-1", "80,*"])
def test_invalid_port_is_an_error(text):
    with pytest.raises(ValueError, match=r"is not a port: write comma-separated numbers"):
        parse_ports(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", None),
        ("", ()),
        ("10.0.0.0/8,fd00::/8", (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ("10.96.0.2/24,10.96.0.0/24,fd00::1/8", (ip_network("10.96.0.0/24"), ip_network("fd00::/8"))),
        ("10.96.0.2", (ip_network("10.96.0.2/32"),)),
    ],
)
def test_networks(text, expected):
    assert parse_networks(text) == expected


@pytest.mark.parametrize("text", ["x", "10.0.0.0/33", "10.0.0.0/8 -j ACCEPT"])
def test_invalid_network_is_an_error(text):
    with pytest.raises(ValueError, match="write comma-separated networks"):
        parse_networks(text)


def test_networks_with_host_bits_are_named():
    text = "10.0.0.0/8, 10.96.0.2/24, 10.96.0.2, fd00::1/8, fd00::1"
    assert networks_with_host_bits(text) == ("10.96.0.2/24", "fd00::1/8")
    assert networks_with_host_bits("*") == ()


def test_interfaces():
    assert parse_interfaces("docker0, eth0.100") == ("docker0", "eth0.100")


@pytest.mark.parametrize("text", ["a b", "x" * 16, "-j", "eth0\nCOMMIT"])
def test_invalid_interface_is_an_error(text):
    with pytest.raises(ValueError, match="is not the name of a network interface"):
        parse_interfaces(text)


def redirection(**annotations: str) -> Redirection:
    named = {TRAFFIC_PREFIX + name: text for name, text in annotations.items() if name != "mode"}
    if "mode" in annotations:
        named["sidecar.istio.io/interceptionMode"] = annotations["mode"]
    [parsed] = parse(manifests.pod("a", "x", "10.0.0.1", annotations=named), str)
    assert isinstance(parsed.fact, Pod)
    return parsed.fact.redirection


NETWORK = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, REDIRECT_ALL),
        ({"includeInboundPorts": "*", "includeOutboundIPRanges": "*"}, REDIRECT_ALL),
        ({"includeInboundPorts": "80, 81"}, Redirection(inbound_ports=(80, 81))),
        ({"includeInboundPorts": ""}, Redirection(inbound_ports=())),
        ({"excludeInboundPorts": "80"}, Redirection(exclude_inbound_ports=(80,))),
        ({"includeOutboundIPRanges": "10.0.0.0/8"}, Redirection(networks=(NETWORK,))),
        ({"excludeOutboundIPRanges": "10.0.0.0/8"}, Redirection(exclude_networks=(NETWORK,))),
        ({"includeOutboundPorts": "80"}, Redirection(outbound_ports=(80,))),
        ({"excludeOutboundPorts": "80"}, Redirection(exclude_outbound_ports=(80,))),
        ({"excludeInboundPorts": "*", "includeInboundPorts": "x"}, REDIRECT_ALL),
        ({"excludeInboundPorts": "80," * MAX_LIST_LENGTH}, REDIRECT_ALL),
        ({"excludeInboundPorts": "80", "mode": "NONE"}, REDIRECT_ALL),
        ({"excludeInterfaces": "net1, veth+, eth0.100"}, REDIRECT_ALL),
        *(({"excludeInterfaces": names}, REDIRECT_NONE) for names in ("eth0", "net1,+", "e+", "eth0+")),
    ],
)
def test_redirection_of_a_pod(annotations, expected):
    assert redirection(**annotations) == expected


@pytest.mark.parametrize(
    ("redirection", "address", "expected"),
    [
        (REDIRECT_ALL, "10.0.0.1", True),
        (Redirection(networks=(NETWORK,)), "10.0.0.1", True),
        (Redirection(networks=(NETWORK,)), "192.0.2.1", False),
        (Redirection(networks=(NETWORK,)), "fd00::1", False),
        (Redirection(networks=(NETWORK,)), "unknown", True),
        (Redirection(networks=()), "unknown", False),
        (Redirection(networks=(), outbound_ports=(80,)), "10.0.0.1", True),
        (Redirection(exclude_networks=(NETWORK,), outbound_ports=(80,)), "10.0.0.1", False),
        (Redirection(exclude_networks=(NETWORK,)), "unknown", True),
        (Redirection(exclude_outbound_ports=(80,), outbound_ports=(80,)), "10.0.0.1", False),
        (Redirection(exclude_outbound_ports=(81,)), "10.0.0.1", True),
    ],
)
def test_redirected_destinations(redirection, address, expected):
    assert redirection.redirects_outbound(address, 80) is expected


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        (REDIRECT_ALL, True),
        (Redirection(inbound_ports=(80,)), True),
        (Redirection(inbound_ports=(81,)), False),
        (Redirection(exclude_inbound_ports=(80,)), False),
        (Redirection(inbound_ports=(80,), exclude_inbound_ports=(80,)), False),
    ],
)
def test_redirected_ports(redirection, expected):
    assert redirection.redirects_inbound(80) is expected
