"""Filter chains: modes share the bytes of common chains, and policy affects no other part of the listener."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xds.codec import encode, message_class
from xds.mesh.envoy import inbound
from xds.mesh.model.objects import MeshConfig, Mode, Protocol

CONFIG = MeshConfig()


def port(protocol: Protocol, mode: Mode, number: int = 8080) -> inbound.InboundPort:
    return inbound.InboundPort(number, protocol, mode, f"inbound|{number}||")


def named(protocol: Protocol, mode: Mode, *, by_port: bool = True) -> dict[str, bytes]:
    chains = inbound.chains(CONFIG, port(protocol, mode), by_port=by_port)
    assert len({chain.name for chain in chains}) == len(chains)
    return {chain.name.partition(";")[2]: encode(chain) for chain in chains}


MODES = list(Mode)


@pytest.mark.parametrize("by_port", [True, False])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_shared_filter_chain_has_same_bytes(protocol, by_port):
    for one, two in pairwise([*MODES, MODES[0]]):
        a, b = (named(protocol, mode, by_port=by_port) for mode in (one, two))
        assert {name: a[name] for name in a.keys() & b.keys()} == {
            name: b[name] for name in a.keys() & b.keys()
        }


@pytest.mark.parametrize("protocol", list(Protocol))
def test_mtls_chains_survive_strict(protocol):
    permissive, strict = named(protocol, Mode.PERMISSIVE), named(protocol, Mode.STRICT)
    assert {name for name in permissive if name.startswith("mtls")} <= strict.keys()


@pytest.mark.parametrize(
    ("protocol", "mode", "names"),
    [
        (Protocol.HTTP, Mode.STRICT, "mtls tls"),
        (Protocol.HTTP, Mode.PERMISSIVE, "mtls plaintext"),
        (Protocol.HTTP, Mode.DISABLE, "plaintext"),
        (Protocol.HTTP2, Mode.DISABLE, "plaintext"),
        (Protocol.TCP, Mode.STRICT, "mtls tls"),
        (Protocol.TCP, Mode.PERMISSIVE, "mtls plaintext application-tls"),
        (Protocol.TCP, Mode.DISABLE, "plaintext application-tls"),
        (Protocol.AUTO, Mode.STRICT, "mtls-http mtls tls-http tls"),
        (Protocol.AUTO, Mode.PERMISSIVE, "mtls-http mtls plaintext-http plaintext application-tls"),
        (Protocol.AUTO, Mode.DISABLE, "plaintext-http plaintext application-tls"),
    ],
)
def test_chains_of_a_port(protocol, mode, names):
    assert list(named(protocol, mode)) == names.split()


@pytest.mark.parametrize("protocol", list(Protocol))
def test_plaintext_chains_survive_disable_and_permissive(protocol):
    disabled, permissive = named(protocol, Mode.DISABLE), named(protocol, Mode.PERMISSIVE)
    assert disabled == {name: each for name, each in permissive.items() if not name.startswith("mtls")}


@pytest.mark.parametrize("mode", [Mode.PERMISSIVE, Mode.STRICT])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_strict_terminates_all_tls(protocol, mode):
    for chain in inbound.chains(CONFIG, port(protocol, mode), by_port=True):
        terminated = chain.transport_socket is not None
        assert terminated is (mode is Mode.STRICT or chain.name.partition(";")[2].startswith("mtls"))


def test_nothing_outside_the_filter_chains_depends_on_policy():
    listener = message_class("envoy.config.listener.v3.Listener")
    seen = set()
    for mode in MODES:
        body = inbound.redirect_listener(
            CONFIG, (port(Protocol.HTTP, mode), port(Protocol.AUTO, mode, 0)), (4, 6), ()
        ).body
        message = listener.FromString(body)
        del message.filter_chains[:]
        seen.add(message.SerializeToString(deterministic=True))
        bound = listener.FromString(
            inbound.port_listener(CONFIG, ("127.0.0.1",), port(Protocol.TCP, mode), ()).body
        )
        assert bound.listener_filters_timeout.seconds == 1
        assert bound.continue_on_listener_filters_timeout
    assert len(seen) == 1
