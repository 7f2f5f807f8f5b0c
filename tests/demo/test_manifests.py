"""The example's objects are those that the Istio task's commands create."""

import pytest
import yaml

from xds.demo.play import AUTHORIZATION_STEPS, STEPS
from xds.demo.pods import addresses, name_of
from xds.demo.stage import EXAMPLES
from xds.mesh.model.mesh import Mesh
from xds.mesh.model.objects import DestinationRule, Mode, ModePolicy, TargetSelector
from xds.mesh.model.traffic import TlsMode
from xds.mesh.parse import parse


def facts(*files):
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            for parsed in parse(document, lambda _path: "here"):
                assert parsed.problems == ()
                yield parsed.fact


def step(name):
    (fact,) = facts(EXAMPLES / "steps" / name)
    return fact


@pytest.fixture(scope="module")
def mesh():
    return Mesh(facts(*sorted((EXAMPLES / "workloads").iterdir())))


def test_only_migrated_pods_have_sidecars(mesh):
    assert {name_of(pod): pod.has_sidecar for pod in mesh.pods()} == {
        "httpbin.full": True,
        "sleep.full": True,
        "httpbin.partial": True,
        "httpbin-nosidecar.partial": False,
        "httpbin.legacy": False,
        "sleep.legacy": False,
    }


@pytest.mark.parametrize(("namespace", "pods"), [("full", 1), ("partial", 2), ("legacy", 1)])
def test_httpbin_has_an_endpoint_per_pod(mesh, namespace, pods):
    service = mesh.service(namespace, "httpbin")
    assert [port.port for port in service.ports] == [8000]
    assert [e.port for e in mesh.endpoints(service, service.ports[0]) if e.ready] == [8080] * pods


def test_pods_of_partial_have_different_identities(mesh):
    assert mesh.identities(mesh.service("partial", "httpbin")) == (
        "spiffe://cluster.local/ns/partial/sa/default",
        "spiffe://cluster.local/ns/partial/sa/httpbin",
    )


def test_addresses_are_unique(mesh):
    wanted = [where for pod in mesh.pods() for where in addresses(pod)]
    assert len(wanted) == len(set(wanted))


@pytest.mark.parametrize(("file", "mode"), [("strict.yaml", Mode.STRICT), ("plaintext.yaml", Mode.DISABLE)])
def test_policies_are_those_of_the_istio_task(file, mode):
    policy = step(file)
    assert isinstance(policy, ModePolicy)
    assert (policy.namespace, policy.name, policy.mode) == ("full", "httpbin", mode)
    assert policy.targets == (TargetSelector(service="httpbin"),)


def test_destination_rule_is_that_of_the_istio_task():
    rule = step("destination-rule.yaml")
    assert isinstance(rule, DestinationRule)
    assert (rule.namespace, rule.name, rule.host) == (
        "full",
        "httpbin-full-mtls",
        "httpbin.full.svc.cluster.local",
    )
    assert rule.policy.tls.mode is TlsMode.ISTIO_MUTUAL


def test_files_of_all_steps_exist():
    assert {example for step in (*STEPS, *AUTHORIZATION_STEPS) for example in step.apply.values()} == {
        file.name for file in (EXAMPLES / "steps").iterdir()
    }
