"""Our CRDs: the API server refuses what `parse` refuses, and existing kinds are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.environment.cluster import Cluster, KubectlError
from tests.kubernetes.environment.control_plane import ControlPlane
from tests.kubernetes.foreign_kinds import foreign
from tests.kubernetes.installing import run
from tests.kubernetes.specs import AUTHORIZATION_HEAD, MESH, PEER_HEAD, RULE_HEAD, SPECS
from tests.sources.objects import BAD, MESH_POLICY, PEER, POLICY, RULE
from xds.mesh.kube import crds
from xds.mesh.kube.api import KubeApi, KubeError
from xds.mesh.model.objects import Problem
from xds.mesh.parse import Parsed, parse
from xds.mesh.sources.documents import read_documents

FOLDER = Path(crds.__file__).parent

# Cases from the table for files, without errors in the text, the type or the metadata.
FILES = [
    good.replace(old, new, 1)
    for good, old, new, *_ in BAD
    if good in (POLICY, MESH_POLICY, PEER, RULE) and "kind: peer" not in new and "v1alpha1" not in new
]
CASES = [head + f"spec: {spec}\n" for head, spec in SPECS] + FILES + [POLICY, MESH_POLICY, PEER, RULE]


@pytest.fixture
async def cluster(bare: ControlPlane) -> AsyncIterator[Cluster]:
    """Shared by all tests except those that delete kinds, because a deletion may never finish."""
    async with Cluster(bare) as entered:
        yield entered


@pytest.fixture
async def kinds(cluster: Cluster) -> Cluster:
    """The same cluster, with all of our kinds."""
    await crds.install(cluster.api)
    return cluster


def plural(document: dict) -> str:
    group = document["apiVersion"]
    if document["kind"] == "MeshPolicy":
        return f"/apis/{group}/meshpolicies"
    name = {
        "Policy": "policies",
        "PeerAuthentication": "peerauthentications",
        "AuthorizationPolicy": "authorizationpolicies",
        "ServiceEntry": "serviceentries",
        "WorkloadEntry": "workloadentries",
        "Sidecar": "sidecars",
    }.get(document["kind"])
    return f"/apis/{group}/namespaces/default/{name or 'destinationrules'}"


def the_object(text: str) -> tuple[dict, bool]:
    """Return the object that kubectl would send, and whether `parse` refuses it."""
    [document] = read_documents(text, "case.yaml")
    assert not isinstance(document, Problem), document
    [parsed] = parse(document.value, document.locate, document.flaws)
    return document.value, parsed.refused  # type: ignore[return-value]


async def verdict(api: KubeApi, document: dict, validation: str) -> str:
    """Return why the API server refuses an object; empty if it accepts it."""
    metadata = {
        **document["metadata"],
        **({"namespace": "default"} if document["kind"] != "MeshPolicy" else {}),
    }
    try:
        made = await api.create(
            plural(document), {**document, "metadata": metadata}, dryRun="All", fieldValidation=validation
        )
    except KubeError as error:
        if error.status not in (400, 422):
            raise
        return str(error)
    stored = {**document, **{name: made[name] for name in ("spec", "status") if name in made}}
    assert meaning(stored) == meaning(document), "what is kept means what was sent"
    return ""


def meaning(document: dict) -> Parsed:
    [parsed] = parse(document, str)
    return parsed


@pytest.mark.parametrize("text", CASES)
async def test_api_server_and_parser_refuse_the_same_objects(kinds: Cluster, text: str) -> None:
    document, refused = the_object(text)
    for validation in ("Strict", "Ignore"):
        reason = await verdict(kinds.api, document, validation)
        assert bool(reason) == refused, reason or "the API server takes it"


def test_cases_have_both_verdicts_for_every_kind() -> None:
    seen = {(document["kind"], refused) for document, refused in map(the_object, CASES)}
    assert len(seen) == 16, seen


async def test_served_versions_have_the_same_schema(kinds: Cluster) -> None:
    for definition in crds.definitions():
        versions = definition["spec"]["versions"]
        assert all(version["schema"] == versions[0]["schema"] for version in versions)
        assert [version["name"] for version in versions if version["storage"]] == [versions[0]["name"]]
    for version in ("v1beta1", "v1alpha3"):
        path = f"/apis/networking.istio.io/{version}/namespaces/default/destinationrules"
        document, _ = the_object(RULE_HEAD.replace("io/v1", f"io/{version}") + "spec: {host: web}\n")
        await kinds.api.create(path, document, dryRun="All")


async def test_misspelled_field_is_refused_without_validation(kinds: Cluster) -> None:
    text = PEER_HEAD + "spec: {mtls: {mdoe: STRICT}}\n"
    for validation in ("strict", "warn", "ignore"):
        with pytest.raises(KubectlError, match=r"spec\.mtls: .* unknown field; the only known field is mode"):
            await kinds.kubectl("apply", f"--validate={validation}", "-f", "-", stdin=text)


async def test_possible_key_is_not_quoted(kinds: Cluster) -> None:
    document, _ = the_object(RULE)
    document["spec"]["trafficPolicy"]["tls"]["privateKey"] = (
        "-----BEGIN EC PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"
    )
    reason = await verdict(kinds.api, document, "Strict")
    assert "absolute path" in reason
    assert "MC4CAQ" not in reason
    document["spec"]["trafficPolicy"]["tls"]["privateKey"] += "\nMC4CAQAwBQYDK2VwBCIEI" * 99
    assert "MC4CAQ" not in await verdict(kinds.api, document, "Strict")


async def test_kubectl_prints_useful_columns(kinds: Cluster) -> None:
    objects = (
        MESH
        + "spec: {peers: [{mtls: {mode: PERMISSIVE}}]}\n---\n"
        + PEER_HEAD
        + "spec: {mtls: {mode: STRICT}}\n"
    )
    objects += "---\n" + AUTHORIZATION_HEAD + "spec: {action: DENY, rules: [{}]}\n"
    objects += "---\n" + RULE_HEAD + "spec: {host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n"
    await kinds.kubectl("apply", "-f", "-", stdin=objects)
    try:
        shown = await kinds.kubectl("get", "meshpolicies", "-o", "yaml")
        # The output in the Istio task, including spaces.
        assert [line for line in shown.splitlines() if " mode" in line] == ["        mode: PERMISSIVE"]
        for name, cells in (
            ("meshpolicies", ["NAME MODE PROBLEM AGE", "default PERMISSIVE"]),
            ("pa", ["NAME MODE PROBLEM AGE", "web STRICT"]),
            ("ap", ["NAME ACTION PROBLEM AGE", "web DENY"]),
            ("dr", ["NAME HOST TLS PROBLEM AGE", "web web ISTIO_MUTUAL"]),
        ):
            lines = [" ".join(line.split()) for line in (await kinds.kubectl("get", name)).splitlines()]
            assert [line[: len(want)] for line, want in zip(lines, cells, strict=True)] == cells
        everything = await kinds.kubectl("get", "istio-io", "-o", "name")
        assert sorted(everything.split()) == [
            "authorizationpolicy.security.istio.io/web",
            "destinationrule.networking.istio.io/web",
            "meshpolicy.authentication.istio.io/default",
            "peerauthentication.security.istio.io/web",
        ]
        assert "STRICT: mutual TLS only" in await kinds.kubectl("explain", "pa.spec.mtls.mode")
    finally:
        await kinds.kubectl("delete", "-f", "-", stdin=objects)


async def test_status_is_a_subresource(kinds: Cluster) -> None:
    document, _ = the_object(PEER_HEAD + "spec: {mtls: {mode: STRICT}}\n")
    made = await kinds.api.create(plural(document), document)
    path = f"{plural(document)}/web"
    try:
        condition = {
            "type": "Enforced",
            "status": "False",
            "reason": "Overridden",
            "message": "an older one decides",
            "observedGeneration": 1,
            "lastTransitionTime": "2020-01-31T12:00:00Z",
        }
        patch = {"spec": {"mtls": {"mode": "DISABLE"}}, "status": {"conditions": [condition]}}
        changed = await kinds.api.patch(f"{path}/status", patch)
        assert changed["spec"] == made["spec"]
        assert changed["status"] == {"conditions": [condition]}
        assert changed["metadata"]["generation"] == made["metadata"]["generation"]
        assert not parse(changed, str)[0].refused
        shown = (await kinds.kubectl("get", "pa", "web")).splitlines()[1]
        assert shown.split()[:3] == ["web", "STRICT", "Overridden"]
    finally:
        await kinds.api.delete(path)


async def test_only_missing_kinds_are_created(own_cluster: Cluster) -> None:
    """Some CRDs exist: one without a schema, one with another version, one with another scope."""
    theirs = [
        foreign(
            "peerauthentications", "security.istio.io", "PeerAuthentication", ["v1beta1"], manager="Helm"
        ),
        foreign("destinationrules", "networking.istio.io", "DestinationRule", ["v9"]),
    ]
    for definition in theirs:
        await own_cluster.api.create(crds.PATH, definition)
    before = [
        await own_cluster.api.get(f"{crds.PATH}/{definition['metadata']['name']}") for definition in theirs
    ]

    asked = await crds.install(own_cluster.api, dry_run=True)
    assert [definition.created for definition in asked] == [True, True, False, True, False, True, True, True]
    names = {definition["metadata"]["name"] for definition in (await own_cluster.api.get(crds.PATH))["items"]}
    assert "policies.authentication.istio.io" not in names, "it was only asked what would be done"

    policies, mesh_policies, peers, _, rules, *_ = await crds.install(own_cluster.api)
    assert (policies.created, mesh_policies.created) == (True, True)
    assert (peers.created, peers.versions, peers.owner, peers.problem) == (False, ("v1beta1",), "Helm", "")
    assert rules.problem == "serves v9; xds supports only v1, v1alpha3, v1beta1"
    await own_cluster.api.create(
        "/apis/authentication.istio.io/v1alpha1/meshpolicies", the_object(MESH)[0], dryRun="All"
    )

    def same(definition: dict) -> tuple:
        return definition["metadata"]["resourceVersion"], definition["spec"]

    after = [
        await own_cluster.api.get(f"{crds.PATH}/{definition['metadata']['name']}") for definition in theirs
    ]
    assert [same(definition)[1] for definition in after] == [same(definition)[1] for definition in before]
    assert [definition["metadata"]["generation"] for definition in after] == [1, 1]
    assert not any(definition.created for definition in await crds.install(own_cluster.api))


async def test_concurrent_installations_succeed(own_cluster: Cluster) -> None:
    results = await asyncio.gather(*(crds.install(own_cluster.api) for _ in range(4)))
    for definitions in zip(*results, strict=True):
        assert sum(definition.created for definition in definitions) == 1
        assert not any(definition.problem for definition in definitions)


async def test_install_crds_prints_its_changes(own_cluster: Cluster) -> None:
    config = str(await own_cluster.kubeconfig("admin", "nobody"))
    status, output, _ = await run("install-crds", "--dry-run", "--kubeconfig", config)
    assert (status, output.count("would be created")) == (0, 8), output
    status, output, _ = await run("install-crds", "--kubeconfig", config)
    assert (status, output.count(" created")) == (0, 8), output
    status, _, error = await run("install-crds", "--kubeconfig", config, "--context", "nobody")
    assert status == 1
    assert 'User "nobody" cannot get resource "customresourcedefinitions"' in error


async def test_kustomization_has_all_kinds(cluster: Cluster) -> None:
    shown = await cluster.kubectl("kustomize", str(FOLDER))
    assert list(yaml.safe_load_all(shown)) == sorted(
        crds.definitions(), key=lambda definition: definition["metadata"]["name"]
    )
    assert {path.name for path in FOLDER.glob("*.yaml")} == {
        "kustomization.yaml",
        *yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"],
    }
