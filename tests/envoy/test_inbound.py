"""Filter chains: modes share the bytes of common chains, and policy affects no other part of the listener."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from xds.codec import encode, message_class
from xds.mesh.envoy import inbound
from xds.mesh.model.authorization import Attribute, Condition, Pattern, Rule
from xds.mesh.model.objects import MeshConfig, Mode, Protocol, Ref
from xds.mesh.policy.authorization import NamedRule, Rules

CONFIG = MeshConfig()
ONLY_CLIENT = Rule(sources=((Condition(Attribute.PRINCIPAL, (Pattern.parse("*/sa/client"),)),),))
POLICY = Ref("AuthorizationPolicy", "ns", "rules")
RULES = Rules(allow=(NamedRule("ns[ns]-policy[rules]-rule[0]", POLICY, ONLY_CLIENT),), policies=(POLICY,))
NO_RULES = Rules()
GUARDS = {"no rule": NO_RULES, "rules": RULES}
guarded = pytest.mark.parametrize("rules", GUARDS.values(), ids=GUARDS)


def port(protocol: Protocol, mode: Mode, number: int = 8080) -> inbound.InboundPort:
    return inbound.InboundPort(number, protocol, mode, f"inbound|{number}||")


def named(
    protocol: Protocol, mode: Mode, rules: Rules = NO_RULES, *, by_port: bool = True
) -> dict[str, bytes]:
    chains = inbound.chains(CONFIG, port(protocol, mode), rules, by_port=by_port)
    assert len({chain.name for chain in chains}) == len(chains)
    return {chain.name.partition(";")[2]: encode(chain) for chain in chains}


MODES = list(Mode)


@guarded
@pytest.mark.parametrize("by_port", [True, False])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_shared_filter_chain_has_same_bytes(protocol, by_port, rules):
    for one, two in pairwise([*MODES, MODES[0]]):
        a, b = (named(protocol, mode, rules, by_port=by_port) for mode in (one, two))
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


@guarded
@pytest.mark.parametrize("protocol", list(Protocol))
def test_plaintext_chains_survive_disable_and_permissive(protocol, rules):
    disabled, permissive = (named(protocol, mode, rules) for mode in (Mode.DISABLE, Mode.PERMISSIVE))
    assert disabled == {name: each for name, each in permissive.items() if not name.startswith("mtls")}


@pytest.mark.parametrize("mode", [Mode.PERMISSIVE, Mode.STRICT])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_strict_terminates_all_tls(protocol, mode):
    for chain in inbound.chains(CONFIG, port(protocol, mode), NO_RULES, by_port=True):
        terminated = chain.transport_socket is not None
        assert terminated is (mode is Mode.STRICT or chain.name.partition(";")[2].startswith("mtls"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_chain_that_reaches_the_application_is_guarded(protocol, mode):
    for chain in inbound.chains(CONFIG, port(protocol, mode), RULES, by_port=True):
        *guards, last = (each.name for each in chain.filters)
        if last == "envoy.filters.network.http_connection_manager":
            manager = message_class(
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            )
            guards = [
                each.name for each in manager.FromString(chain.filters[-1].typed_config.value).http_filters
            ]
            assert guards[-3:-1] == ["authorization-deny", "authorization-allow"]
        else:
            assert (guards, last) == (["authorization-allow"], "envoy.filters.network.tcp_proxy")


@pytest.mark.parametrize(("protocol", "mode"), [*product(Protocol, MODES)])
def test_rules_change_only_the_chains_that_are_not_http(protocol, mode):
    """The rules of HTTP are separate resources: open connections stay."""
    none, some = (named(protocol, mode, rules) for rules in (Rules(), RULES))
    assert none.keys() == some.keys()
    tcp = {name for name in none if none[name] != some[name]}
    assert tcp == {name for name, each in some.items() if b"envoy.filters.network.tcp_proxy" in each}


@guarded
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("observe", [True, False])
@pytest.mark.parametrize("observe_denials", [True, False])
def test_chains_with_rules_report_what_they_deny(protocol, rules, observe, observe_denials):
    """An Envoy that does not know the filter of the log would reject the listener."""
    config = MeshConfig(observe=observe, observe_denials=observe_denials)
    for mode in Mode:
        for chain in inbound.chains(config, port(protocol, mode), rules, by_port=True):
            logs = encode(chain).count(b"log2\x06denied")
            is_http = b"authorization-deny" in encode(chain)
            assert logs == (observe and observe_denials and (is_http or rules is RULES)), chain.name


def test_nothing_outside_the_filter_chains_depends_on_policy():
    listener = message_class("envoy.config.listener.v3.Listener")
    seen = set()
    for mode, rules in product(MODES, GUARDS.values()):
        body = inbound.redirect_listener(
            CONFIG, (port(Protocol.HTTP, mode), port(Protocol.AUTO, mode, 0)), rules, (4, 6), ()
        ).body
        message = listener.FromString(body)
        del message.filter_chains[:]
        seen.add(message.SerializeToString(deterministic=True))
        bound = listener.FromString(
            inbound.port_listener(CONFIG, ("127.0.0.1",), port(Protocol.TCP, mode), rules, ()).body
        )
        assert bound.listener_filters_timeout.seconds == 1
        assert bound.continue_on_listener_filters_timeout
    assert len(seen) == 1
