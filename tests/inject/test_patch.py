"""Injected, skipped and refused pods."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.mesh.inject import STATUS, Injection, InjectionSettings, create_patch, inject
from xds.mesh.inject.containers import PROXY_GROUP, has_pod_certificate
from xds.mesh.model.objects import MeshConfig
from xds.mesh.parse import dotted
from xds.mesh.sidecar.settings import CREDENTIAL_BUNDLE


def pod(**changes: Any) -> dict[str, Any]:
    meta = {name: changes.pop(name) for name in ("labels", "annotations") if name in changes}
    spec = {"containers": [{"name": "web", "image": "web"}]} | changes
    return {"metadata": {"name": "web", **meta}, "spec": spec}


def injected(
    value: dict[str, Any], settings: InjectionSettings | None = None, namespace: str = "shop"
) -> Injection:
    original = copy.deepcopy(value)
    result = inject(value, settings or InjectionSettings(), namespace=namespace, locate=dotted)
    assert value == original, "the argument was changed"
    return result


def container(result: Injection, name: str) -> dict[str, Any]:
    spec = result.pod["spec"]
    (match,) = [c for c in [*spec.get("initContainers", ()), *spec["containers"]] if c["name"] == name]
    return match


def environment(result: Injection) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container(result, "xds-proxy")["env"] if "value" in e}


def refusals(value: dict[str, Any]) -> list[str]:
    result = injected(value)
    assert result.pod is value
    return [f"{problem.where}: {problem.what}" for problem in result.problems if not problem.notice]


def test_injected_pod_has_label_annotation_and_volumes() -> None:
    result = injected(pod(labels={"app": "web"}))
    assert result.pod["metadata"]["labels"] == {"app": "web", "security.istio.io/tlsMode": "istio"}
    added = json.loads(result.pod["metadata"]["annotations"][STATUS])
    assert added["initContainers"] == ["xds-init", "xds-proxy"]
    assert [v["name"] for v in result.pod["spec"]["volumes"]] == added["volumes"]


def test_existing_label_is_kept() -> None:
    result = injected(pod(labels={"security.istio.io/tlsMode": "disabled"}))
    assert result.pod["metadata"]["labels"]["security.istio.io/tlsMode"] == "disabled"


def test_containers_have_minimal_capabilities() -> None:
    result = injected(pod())
    init = container(result, "xds-init")["securityContext"]
    assert init["capabilities"] == {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}
    proxy = container(result, "xds-proxy")["securityContext"]
    assert proxy["capabilities"] == {"drop": ["ALL"]}
    assert (proxy["runAsUser"], proxy["runAsNonRoot"], proxy["readOnlyRootFilesystem"]) == (1337, True, True)
    assert not init["privileged"]
    assert not init["allowPrivilegeEscalation"]
    assert not proxy["privileged"]


def test_init_excludes_the_user_and_group_of_the_sidecar() -> None:
    result = injected(pod())
    arguments = container(result, "xds-init")["args"]
    proxy = container(result, "xds-proxy")["securityContext"]
    excluded = {flag: int(arguments[arguments.index(flag) + 1]) for flag in ("-u", "-g")}
    assert excluded == {"-u": proxy["runAsUser"], "-g": proxy["runAsGroup"]}


def test_injected_init_containers_come_first() -> None:
    first = pod(initContainers=[{"name": "prepare", "image": "web"}])
    names = [c["name"] for c in injected(first).pod["spec"]["initContainers"]]
    assert names == ["xds-init", "xds-proxy", "prepare"]


def test_init_container_comes_last_for_an_ordinary_sidecar() -> None:
    first = pod(initContainers=[{"name": "prepare", "image": "web"}])
    result = injected(first, InjectionSettings(native=False))
    assert [c["name"] for c in result.pod["spec"]["initContainers"]] == ["prepare", "xds-init"]
    assert [(problem.where, problem.notice) for problem in result.problems] == [
        ("spec.initContainers[0]", True)
    ]
    assert "runs before the sidecar, so its requests are plaintext" in result.problems[0].what
    assert not injected(first).problems


def test_init_containers_that_are_sidecars_run_beside_an_ordinary_sidecar() -> None:
    sidecar = {"name": "logs", "image": "web", "restartPolicy": "Always"}
    assert not injected(pod(initContainers=[sidecar]), InjectionSettings(native=False)).problems


def test_ordinary_sidecar_is_the_last_container() -> None:
    result = injected(pod(), InjectionSettings(native=False))
    assert [c["name"] for c in result.pod["spec"]["containers"]] == ["web", "xds-proxy"]
    assert "restartPolicy" not in container(result, "xds-proxy")
    again = injected(
        pod(annotations={"sidecar.istio.io/nativeSidecar": "true"}), InjectionSettings(native=False)
    )
    assert container(again, "xds-proxy") in again.pod["spec"]["initContainers"]


@pytest.mark.parametrize(
    ("labels", "annotations", "is_injected"),
    [
        ({}, {}, True),
        ({"sidecar.istio.io/inject": "true"}, {"sidecar.istio.io/inject": "false"}, True),
        ({"sidecar.istio.io/inject": "false"}, {"sidecar.istio.io/inject": "true"}, False),
        ({}, {"sidecar.istio.io/inject": "false"}, False),
        ({}, {"sidecar.istio.io/inject": "On"}, True),
        ({}, {"sidecar.istio.io/inject": ""}, True),
        ({}, {"sidecar.istio.io/inject": "nonsense"}, False),
    ],
)
def test_label_and_annotation_control_injection_as_in_istio(labels, annotations, is_injected: bool) -> None:
    result = injected(pod(labels=labels, annotations=annotations))
    assert (result.skip is None) is is_injected
    assert (STATUS in result.pod["metadata"]["annotations"]) is is_injected


@pytest.mark.parametrize(
    ("changes", "namespace"),
    [
        ({"hostNetwork": True}, "shop"),
        ({"os": {"name": "windows"}}, "shop"),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}}, "shop"),
        ({"containers": [{"name": "istio-proxy"}]}, "shop"),
        ({"initContainers": [{"name": "istio-init"}]}, "shop"),
        ({"containers": [{"name": "xds-proxy"}]}, "shop"),
        ({}, "kube-system"),
    ],
)
def test_unsuitable_pod_is_skipped(changes, namespace) -> None:
    value = pod(**changes)
    result = injected(value, namespace=namespace)
    assert result.skip
    assert result.pod is value
    assert not result.problems


@pytest.mark.parametrize("port", [15000, 15001, 15006, 15020, 15021, 15090])
def test_reserved_port_is_refused(port: int) -> None:
    (refused,) = refusals(pod(containers=[{"name": "web", "ports": [{"containerPort": port}]}]))
    assert refused.startswith(
        f"spec.containers[0].ports[0].containerPort: spec.containers[0].ports[0].containerPort is {port}, "
        "which"
    )


def test_reserved_ports_follow_the_mesh_config() -> None:
    moved = InjectionSettings().with_mesh_config(
        MeshConfig(proxy_listen_port=16001, proxy_inbound_listen_port=16006)
    )
    value = pod(containers=[{"name": "web", "ports": [{"containerPort": 15001}, {"containerPort": 80}]}])
    result = injected(value, moved)
    assert not result.problems
    assert container(result, "xds-init")["args"][:5] == ["init", "-p", "16001", "-z", "16006"]


def test_udp_port_is_not_reserved() -> None:
    udp = [{"containerPort": 15001, "protocol": "UDP"}]
    assert not injected(pod(containers=[{"name": "web", "ports": udp}])).problems


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (pod(securityContext={"runAsUser": 1337}), "spec.securityContext.runAsUser"),
        (
            pod(containers=[{"name": "web", "securityContext": {"runAsUser": 1337}}]),
            "spec.containers[0].securityContext.runAsUser",
        ),
        (pod(volumes=[{"name": "xds-token", "emptyDir": {}}]), "spec.volumes[0].name"),
        (pod(initContainers=[{"name": "xds-init"}]), "spec.initContainers[0].name"),
        (pod(securityContext={"runAsGroup": PROXY_GROUP}), "spec.securityContext.runAsGroup"),
        (
            pod(initContainers=[{"name": "migrate", "securityContext": {"runAsUser": 1337}}]),
            "spec.initContainers[0].securityContext.runAsUser",
        ),
        (
            pod(annotations={"sidecar.istio.io/logLevel": "all:debug"}),
            'metadata.annotations["sidecar.istio.io/logLevel"]',
        ),
        (
            pod(annotations={"inject.istio.io/templates": "gateway"}),
            'metadata.annotations["inject.istio.io/templates"]',
        ),
        (
            pod(annotations={"sidecar.istio.io/interceptionMode": "FAKE"}),
            'metadata.annotations["sidecar.istio.io/interceptionMode"]',
        ),
        (
            pod(annotations={"sidecar.istio.io/nativeSidecar": "maybe"}),
            'metadata.annotations["sidecar.istio.io/nativeSidecar"]',
        ),
        (
            pod(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "80,http"}),
            'metadata.annotations["traffic.sidecar.istio.io/excludeInboundPorts"]',
        ),
        (
            pod(annotations={"traffic.sidecar.istio.io/excludeInboundPorts": "*"}),
            'metadata.annotations["traffic.sidecar.istio.io/excludeInboundPorts"]',
        ),
        (
            pod(annotations={"traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.1/33"}),
            'metadata.annotations["traffic.sidecar.istio.io/includeOutboundIPRanges"]',
        ),
        (
            pod(annotations={"traffic.sidecar.istio.io/excludeInterfaces": "-j ACCEPT"}),
            'metadata.annotations["traffic.sidecar.istio.io/excludeInterfaces"]',
        ),
        *(
            (
                pod(annotations={"traffic.sidecar.istio.io/excludeInterfaces": names}),
                'metadata.annotations["traffic.sidecar.istio.io/excludeInterfaces"]',
            )
            for names in ("eth0", "net1,+")
        ),
        (pod(labels={"sidecar.istio.io/inject": False}), 'metadata.labels["sidecar.istio.io/inject"]'),
        (
            pod(containers=[{"name": "web", "ports": [{"containerPort": [80]}]}]),
            "spec.containers[0].ports[0].containerPort",
        ),
        (pod(containers=[{"name": "web", "ports": [80]}]), "spec.containers[0].ports[0]"),
        (pod(containers="web"), "spec.containers"),
        (pod(containers=["web"]), "spec.containers[0]"),
        (pod(containers=[{"image": "web"}]), "spec.containers[0].name"),
        (pod(containers=None), "spec.containers"),
        (pod(volumes={"name": "x"}), "spec.volumes"),
        (pod(annotations={"a": 1}), "metadata.annotations.a"),
        (pod(containers=[{"name": "web", "livenessProbe": []}]), "spec.containers[0].livenessProbe"),
        (
            pod(containers=[{"name": "web", "livenessProbe": {"tcpSocket": {"port": 70000}}}]),
            "spec.containers[0].livenessProbe.tcpSocket.port",
        ),
        (pod(containers=[{"name": "web", "lifecycle": "x"}]), "spec.containers[0].lifecycle"),
        ({"metadata": {}}, "spec"),
    ],
)
def test_invalid_field_is_refused_with_its_path(value, where: str) -> None:
    assert [refused.partition(": ")[0] for refused in refusals(value)] == [where]


def test_probe_of_the_sidecar_is_kept() -> None:
    probe = {"httpGet": {"path": "/x", "port": 15020}}
    result = injected(pod(containers=[{"name": "web", "readinessProbe": probe}]))
    assert container(result, "web")["readinessProbe"] == probe
    assert "XDS_APP_PROBES" not in environment(result)


def test_application_probes_are_rewritten() -> None:
    web = {
        "name": "web",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/$(HOME)", "port": "http"}, "timeoutSeconds": 7},
        "livenessProbe": {"grpc": {"port": 9090, "service": ""}},
    }
    result = injected(pod(containers=[web]))
    assert json.loads(environment(result)["XDS_APP_PROBES"].replace("$$(", "$(")) == {
        "/app-health/web/readyz": {"httpGet": {"path": "/$(HOME)", "port": 8080}, "timeoutSeconds": 7},
        "/app-health/web/livez": {"grpc": {"port": 9090, "service": ""}},
    }
    assert container(result, "web")["readinessProbe"] == {
        "httpGet": {"path": "/app-health/web/readyz", "port": 15020},
        "timeoutSeconds": 7,
    }


def test_sds_socket_of_the_node_is_mounted() -> None:
    result = injected(pod(), InjectionSettings(sds="unix:///run/spire/agent/sds.sock"))
    assert environment(result)["XDS_SDS"] == "unix:///run/spire/agent/sds.sock"
    assert {"name": "xds-sds", "mountPath": "/run/spire/agent", "readOnly": True} in container(
        result, "xds-proxy"
    )["volumeMounts"]
    assert {"name": "xds-sds", "hostPath": {"path": "/run/spire/agent", "type": "Directory"}} in result.pod[
        "spec"
    ]["volumes"]


PROBES = st.one_of(
    st.fixed_dictionaries({"httpGet": st.fixed_dictionaries({"port": st.sampled_from([80, "http"])})}),
    st.fixed_dictionaries(
        {"tcpSocket": st.fixed_dictionaries({"port": st.sampled_from([80, "http", "no"])})}
    ),
    st.fixed_dictionaries({"exec": st.just({"command": ["true"]})}),
    st.none(),
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b", "c"]), "image": st.just("web")},
        optional={
            "ports": st.just([{"name": "http", "containerPort": 8080}]),
            "livenessProbe": PROBES,
            "readinessProbe": PROBES,
            "restartPolicy": st.just("Always"),
            "lifecycle": st.sampled_from([None, {}, {"preStop": {"httpGet": {"port": 80}}}]),
        },
    ),
    max_size=3,
    unique_by=lambda c: c["name"],
)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {}, optional={"labels": st.none() | st.just({"a": "b"}), "annotations": st.none() | st.just({})}
        ),
        "spec": st.fixed_dictionaries(
            {"containers": CONTAINERS.filter(bool)},
            optional={
                "initContainers": st.none() | CONTAINERS,
                "volumes": st.none() | st.just([{"name": "v", "emptyDir": {}}]),
            },
        ),
    }
)


@settings(deadline=None)
@given(PODS, st.booleans())
def test_injection_is_idempotent_and_equals_its_patch(value: dict[str, Any], native: bool) -> None:
    settings = InjectionSettings(native=native)
    value = json.loads(json.dumps(value))  # no shared parts
    once = injected(value, settings)
    assert not once.refused
    again = injected(dict(once.pod), settings)
    assert again.pod == once.pod
    assert again.skip
    patch = create_patch(value, once.pod)
    assert jsonpatch.apply_patch(copy.deepcopy(value), patch) == once.pod
    before = [c["name"] for c in value["spec"]["containers"]]
    assert [c["name"] for c in once.pod["spec"]["containers"]][: len(before)] == before


def test_kubelet_keeps_the_certificate_if_all_nodes_support_it() -> None:
    result = injected(pod(), InjectionSettings(pod_certificates=True))
    [source] = [
        volume["projected"]["sources"][0]["podCertificate"]
        for volume in result.pod["spec"]["volumes"]
        if volume["name"] == "xds-certificate"
    ]
    [mount] = [
        mount
        for mount in container(result, "xds-proxy")["volumeMounts"]
        if mount["name"] == "xds-certificate"
    ]
    assert f"{mount['mountPath']}/{source['credentialBundlePath']}" == CREDENTIAL_BUNDLE
    assert mount["readOnly"]
    # A node without support leaves the volume empty: xds proxy makes the key.
    assert environment(result)["XDS_KEY_DIR"]
    assert has_pod_certificate(result.pod)


@pytest.mark.parametrize(
    "settings",
    [
        InjectionSettings(),
        InjectionSettings(pod_certificates=True, own_keys=False),
        InjectionSettings(pod_certificates=True, sds="unix:///run/spire/agent.sock"),
    ],
)
def test_other_settings_exclude_the_kubelet(settings: InjectionSettings) -> None:
    assert not has_pod_certificate(injected(pod(), settings).pod)
