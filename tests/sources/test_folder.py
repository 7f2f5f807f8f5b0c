"""A folder of files that is read repeatedly: the objects in use, and the reported changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.sources.files import place
from xds.mesh.model.objects import Change, MeshConfig, Mode, ModePolicy, Pod, Problem, Ref
from xds.mesh.sources.documents import Document, read_documents
from xds.mesh.sources.files import Folder
from xds.mesh.sources.report import ReadObject
from xds.mesh.sources.settings import SettingsLoader

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n"
POLICY = (
    "apiVersion: authentication.istio.io/v1alpha1\n"
    "kind: Policy\n"
    "metadata: {{name: default, namespace: shop}}\n"
    "spec: {{peers: [{{mtls: {{mode: {}}}}}]}}\n"
)


def names(change: Change) -> list[str]:
    return [fact.name for fact in change.applied]


def test_all_files_below_the_folder_are_read_in_order(tmp_path: Path) -> None:
    place(tmp_path / "b.yml", NAMESPACE.format("b1") + "---\n" + NAMESPACE.format("b2"))
    place(tmp_path / "a/deep/er.yaml", NAMESPACE.format("a"))
    place(
        tmp_path / "c.json", json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}})
    )
    place(tmp_path / "README.md", "# no manifest")
    place(tmp_path / ".git/x.yaml", NAMESPACE.format("hidden"))
    report = Folder(tmp_path).load()
    assert names(report.change) == ["a", "b1", "b2", "c"]
    assert report.change.config == MeshConfig()
    assert report.problems == ()


def test_only_differences_are_reported(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", NAMESPACE.format("a"))
    place(tmp_path / "p.yaml", POLICY.format("STRICT"))
    folder = Folder(tmp_path)
    assert len(folder.load().change.applied) == 2
    assert folder.load().empty

    place(tmp_path / "a.yaml", "# another line\n\n" + NAMESPACE.format("a"))
    assert folder.load().empty, "a new line number is no difference"

    place(tmp_path / "p.yaml", POLICY.format("PERMISSIVE"))
    [fact] = folder.load().change.applied
    assert isinstance(fact, ModePolicy)
    assert fact.mode is Mode.PERMISSIVE

    (tmp_path / "a.yaml").unlink()
    assert folder.load().change == Change(removed=(Ref("Namespace", "", "a"),))

    place(tmp_path / "p.yaml", "")
    assert folder.load().change == Change(removed=(Ref("Policy", "shop", "default"),))


def test_moving_an_object_to_another_file_is_no_change(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", NAMESPACE.format("a"))
    folder = Folder(tmp_path)
    folder.load()
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    assert folder.load().empty


def test_duplicate_name_is_reported_and_the_first_object_stays(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    place(tmp_path / "b.yaml", POLICY.format("PERMISSIVE"))
    folder = Folder(tmp_path)
    report = folder.load()
    [fact] = report.change.applied
    assert isinstance(fact, ModePolicy)
    assert fact.mode is Mode.STRICT
    [problem] = report.problems
    assert problem.where == f"{tmp_path}/b.yaml:1"
    assert f"Policy shop/default is also defined at {tmp_path}/a.yaml:1" in problem.what

    (tmp_path / "a.yaml").unlink()
    report = folder.load()
    [fact] = report.change.applied
    assert isinstance(fact, ModePolicy)
    assert fact.mode is Mode.PERMISSIVE
    assert report.solved == (problem,)

    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    report = folder.load()
    assert report.change == Change(), "the object in use stays, although a.yaml comes first"
    assert report.problems[0].where == f"{tmp_path}/a.yaml:1"


@pytest.mark.parametrize(
    ("lenient", "strict"),
    [
        ("mtls: {mode: DISABLE}", "mtls: {mode: STRICT}"),
        ("mtls: {mode: UNSET}", "mtls: {mode: STRICT}"),
        ("mtls: {mode: STRICT}, selector: {matchLabels: {a: b}}", "mtls: {mode: STRICT}"),
        (
            "mtls: {mode: PERMISSIVE}",
            "mtls: {mode: STRICT}, selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: UNSET}}",
        ),
        (
            "mtls: {mode: STRICT}, selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: DISABLE}}",
            "mtls: {mode: PERMISSIVE}",
        ),
    ],
)
def test_the_strictest_of_two_policies_with_a_name_is_used(tmp_path: Path, lenient: str, strict: str) -> None:
    head = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: shop}\n"
    )
    place(tmp_path / "a.yaml", f"{head}spec: {{{lenient}}}\n")
    place(tmp_path / "b.yaml", f"{head}spec: {{{strict}}}\n")
    report = Folder(tmp_path).load()
    [problem] = report.problems
    assert problem.where == f"{tmp_path}/a.yaml:1"
    assert "is also defined at" in problem.what


@pytest.mark.parametrize(
    ("lenient", "strict"),
    [
        ("{egress: [{hosts: [./*]}]}", "{}"),
        ("{}", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"),
        ("{outboundTrafficPolicy: {mode: ALLOW_ANY}}", "{}"),
        ("{}", "{egress: [{hosts: [./*]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"),
    ],
)
def test_the_stricter_of_two_sidecars_with_a_name_is_used(tmp_path: Path, lenient: str, strict: str) -> None:
    head = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: x, namespace: shop}\n"
    place(tmp_path / "a.yaml", f"{head}spec: {lenient}\n")
    place(tmp_path / "b.yaml", f"{head}spec: {strict}\n")
    [problem] = Folder(tmp_path).load().problems
    assert problem.where == f"{tmp_path}/a.yaml:1"


def test_duplicate_name_in_one_file_is_reported(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "a.yaml", POLICY.format("PERMISSIVE") + "---\n" + POLICY.format("STRICT"))
    report = folder.load()
    assert report.change == Change()
    [problem] = report.problems
    assert problem.where == f"{tmp_path}/a.yaml:1"
    assert f"is also defined at {tmp_path}/a.yaml:6" in problem.what


def test_valid_one_of_two_objects_with_a_name_is_used(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("STRCT"))
    place(tmp_path / "b.yaml", POLICY.format("STRICT"))
    report = Folder(tmp_path).load()
    assert names(report.change) == ["default"]
    assert len(report.problems) == 2


def test_other_file_cannot_replace_the_last_valid_version(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "a.yaml", POLICY.format("STRCT"))
    assert folder.load().change == Change()
    place(tmp_path / "b.yaml", POLICY.format("PERMISSIVE"))
    assert folder.load().change == Change(), "a.yaml's last valid version keeps the name"


def test_unreadable_document_keeps_the_objects_of_its_file(tmp_path: Path) -> None:
    good = NAMESPACE.format("a") + "---\n" + POLICY.format("STRICT")
    place(tmp_path / "a.yaml", good)
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "a.yaml", NAMESPACE.format("a") + "---\n{\n---\n" + NAMESPACE.format("later"))
    report = folder.load()
    assert report.change.removed == ()
    assert names(report.change) == ["later"]
    assert [problem.where for problem in report.problems] == [f"{tmp_path}/a.yaml:6", f"{tmp_path}/a.yaml"]
    assert "Policy shop/default is missing, but stays in use" in report.problems[1].what

    place(tmp_path / "a.yaml", NAMESPACE.format("a"))
    report = folder.load()
    assert set(report.change.removed) == {Ref("Policy", "shop", "default"), Ref("Namespace", "", "later")}
    assert len(report.solved) == 2


def test_object_that_becomes_unsupported_is_removed(tmp_path: Path) -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{}}}\n"
    place(tmp_path / "a.yaml", service.format("clusterIP: None"))
    folder = Folder(tmp_path)
    folder.load()
    place(tmp_path / "a.yaml", service.format("type: ExternalName, externalName: example.com"))
    assert folder.load().change.removed == (Ref("Service", "shop", "web"),)


def test_problem_is_reported_again_only_when_it_changes(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("STRCT"))
    folder = Folder(tmp_path)
    [first] = folder.load().problems
    place(tmp_path / "a.yaml", "# moved\n" + POLICY.format("STRCT"))
    assert folder.load().empty
    place(tmp_path / "a.yaml", POLICY.format("STRKT"))
    report = folder.load()
    assert len(report.problems) == 1
    assert [problem.what for problem in report.solved] == [first.what]
    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    report = folder.load()
    assert report.problems == ()
    assert len(report.solved) == 1


def test_file_that_is_being_written_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds.mesh.sources.scan.SETTLE_TIME", 3600.0)  # So that a slow test sees it too.
    place(tmp_path / "a.yaml", POLICY.format("STRICT"))
    folder = Folder(tmp_path)
    folder.load()
    (tmp_path / "a.yaml").write_text("")
    report = folder.load()
    assert report.unsettled
    assert report.change == Change()


def test_symlinked_files_are_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    place(tmp_path / "elsewhere/a.yaml", NAMESPACE.format("a"))
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.yaml").symlink_to(tmp_path / "elsewhere/a.yaml")
    (folder / "loop").symlink_to(folder)
    report = Folder(folder).load()
    assert names(report.change) == ["a"]
    assert report.problems == ()


def test_mounted_config_map_is_read(tmp_path: Path) -> None:
    place(tmp_path / "..v1/a.yaml", POLICY.format("STRICT"))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    folder = Folder(tmp_path)
    report = folder.load()
    assert names(report.change) == ["default"]
    assert report.problems == ()

    place(tmp_path / "..v2/a.yaml", POLICY.format("PERMISSIVE"))
    (tmp_path / "..new").symlink_to("..v2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    [fact] = folder.load().change.applied
    assert isinstance(fact, ModePolicy)
    assert fact.mode is Mode.PERMISSIVE


def test_dangling_symlink_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("gone.yaml")
    [problem] = Folder(tmp_path).load().problems
    assert problem.where == f"{tmp_path}/a.yaml"
    assert problem.what.startswith("cannot be read")


def test_folder_must_exist_only_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path / "none").load()
    place(tmp_path / "m/a.yaml", NAMESPACE.format("a"))
    folder = Folder(tmp_path / "m")
    folder.load()
    (tmp_path / "m").rename(tmp_path / "away")
    report = folder.load()
    assert report.change == Change()
    assert report.problems[0].where == f"{tmp_path}/m"
    (tmp_path / "away").rename(tmp_path / "m")
    report = folder.load()
    assert report.change == Change()
    assert len(report.solved) == 1


def test_file_beyond_the_size_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xds.mesh.sources.files.MAX_FILE_SIZE", 2**20)
    place(tmp_path / "a.yaml", "#" * (2**20 + 1))
    assert "is larger than 1 MiB" in Folder(tmp_path).load().problems[0].what


def test_unreadable_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    place(tmp_path / "a.yaml", NAMESPACE.format("a"))
    folder = Folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", forbidden)  # root may read everything
        report = folder.load()
    assert report.problems[0].where == f"{tmp_path}/a.yaml"
    assert report.problems[0].what == "cannot be read: Permission denied"
    report = folder.load()
    assert names(report.change) == ["a"]
    assert len(report.solved) == 1


def test_bad_mesh_config_keeps_the_last_valid_one(tmp_path: Path) -> None:
    place(tmp_path / "mesh.yaml", "trustDomain: shop.example\nenableAutoMtls: false\n")
    (tmp_path / "m").mkdir()
    folder = Folder(tmp_path / "m", SettingsLoader(tmp_path / "mesh.yaml", ["values.global.mtls.auto=true"]))
    assert folder.load().change.config == MeshConfig(trust_domain="shop.example")
    assert folder.load().change.config is None

    place(tmp_path / "mesh.yaml", "trustDomain: [shop.example]\n")
    report = folder.load()
    assert report.change.config is None
    assert report.problems[0].where == f"{tmp_path}/mesh.yaml:1"

    place(tmp_path / "mesh.yaml", "trustDomain: {\n")
    assert folder.load().change.config is None
    (tmp_path / "mesh.yaml").unlink()
    assert "cannot be read: No such file" in folder.load().problems[0].what

    place(tmp_path / "mesh.yaml", "rootNamespace: mesh\n")
    report = folder.load()
    assert report.change.config == MeshConfig(root_namespace="mesh")
    assert len(report.solved) == 1


def documents(text: str, *, json: bool = False) -> list[object]:
    return [
        document.value if isinstance(document, Document) else str(document)
        for document in read_documents(text, "f", json=json)
    ]


def test_yaml_is_read_as_kubectl_reads_it() -> None:
    text = """
        a: 2020-01-01T00:00:00Z
        b: 12:30:45
        c: 1e3
        d: [0x1F, 0o17, 017, 0b11, 1_000, -7, +7, 1.5, .5]
        e: [yes, On, false, ~, null, '']
        8080: x
        true: y
        f: =
        g: !!str 1
    """
    assert documents(text) == [
        {
            "a": "2020-01-01T00:00:00Z",
            "b": "12:30:45",
            "c": 1000.0,
            "d": [31, 15, 15, 3, 1000, -7, 7, 1.5, 0.5],
            "e": [True, True, False, None, None, ""],
            "8080": "x",
            "true": "y",
            "f": "=",
            "g": "1",
        }
    ]


def test_anchors_and_merges_are_resolved() -> None:
    assert documents("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 4}, *a]}\n") == [
        {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 4}}
    ]


def test_documents_are_split_and_empty_ones_skipped() -> None:
    text = "---\n# nothing\n---\na: |\n  ---\n  x\n--- {b: 1}\n%YAML 1.1\n---\nc: 1\n...\n"
    assert documents(text) == [{"a": "---\nx\n"}, {"b": 1}, {"c": 1}]
    assert documents("a: 1\r\n---\r\nb: 2\r\n") == [{"a": 1}, {"b": 2}]


def test_json_may_contain_what_yaml_forbids() -> None:
    assert documents('{\t"a": "\\ud83d\\ude00 \\u003c \\/ \\\\ud83d"}', json=True) == [
        {"a": "😀 < / \\ud83d"}
    ]


def test_lines_are_known_in_lists_merges_and_aliases() -> None:
    [document] = read_documents("# x\na: &a\n  b:\n  - c: 1\n  - c: 2\nd:\n  <<: *a\n", "f")
    assert isinstance(document, Document)
    assert document.locate(()) == "f:2"
    assert document.locate(("a", "b", 1, "c")) == "f:5"
    assert document.locate(("d", "b", 1, "c")) == "f:5"
    assert document.locate(("d", "b", 7, "c")) == "f:3"
    assert document.locate(("d", "missing")) == "f:6"


def test_list_of_a_thousand_pods_is_read(tmp_path: Path) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "ports": [{"containerPort": 8080}]}]},
    }
    items = [pod | {"metadata": {**pod["metadata"], "name": f"web-{n}"}} for n in range(1000)]  # type: ignore[dict-item]
    place(tmp_path / "all.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    report = Folder(tmp_path).load()
    assert len(report.change.applied) == 1000
    assert isinstance(report.change.applied[0], Pod)
    assert report.problems == ()


def test_problem_has_place_message_and_hint() -> None:
    problem = Problem(where="a.yaml:3", what="Policy shop/web: spec.peers must be a list, not 'x'", hint="so")
    assert str(problem) == "a.yaml:3: Policy shop/web: spec.peers must be a list, not 'x' (so)"


def test_start_waits_for_unreadable_documents(tmp_path: Path) -> None:
    place(tmp_path / "good.yaml", POLICY.format("STRICT"))
    for number in range(12):
        place(tmp_path / f"{number:02}.yaml", "kind: Policy\n")
    folder = Folder(tmp_path)
    report = folder.load()
    assert (report.complete, report.change) == (False, Change())
    lines = folder.pending_reason().splitlines()
    assert lines[0].startswith(
        f"waiting for the manifests to be repaired: {tmp_path}/00.yaml:1: apiVersion is required"
    )
    assert (len(lines), lines[-1]) == (11, "and 2 more problems, see the log")
    for number in range(12):
        (tmp_path / f"{number:02}.yaml").unlink()
    report = folder.load()
    assert report.complete
    assert folder.pending_reason() == ""
    assert names(report.change) == ["default"]
    assert len(report.solved) == 12


def test_refused_policy_is_strict_until_a_valid_version(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("PERMISIVE"))
    folder = Folder(tmp_path)
    [closed] = folder.load().change.applied
    assert isinstance(closed, ModePolicy)
    assert closed.mode is Mode.STRICT
    assert "until it is repaired, STRICT applies" in folder.problems[0].what
    place(tmp_path / "a.yaml", POLICY.format("PERMISSIVE"))
    [good] = folder.load().change.applied
    assert isinstance(good, ModePolicy)
    assert good.mode is Mode.PERMISSIVE
    place(tmp_path / "a.yaml", POLICY.format("PERMISIVE"))
    assert folder.load().change == Change(), "the last valid version stays in use"
    assert "until it is repaired" not in folder.problems[0].what


def test_rejected_object_is_read_with_its_earlier_version(tmp_path: Path) -> None:
    ref = Ref("Policy", "shop", "default")
    place(tmp_path / "a.yaml", POLICY.format("PERMISSIVE"))
    folder = Folder(tmp_path)
    [good] = folder.load().change.applied
    os.utime(tmp_path / "a.yaml", (1_700_000_000, 1_700_000_000))
    folder.load()
    assert folder.read_object(ref) == ReadObject(good)
    assert folder.read_object(Ref("Policy", "shop", "other")) is None
    place(tmp_path / "a.yaml", POLICY.format("PERMISIVE"))
    folder.load()
    read = folder.read_object(ref)
    assert read
    assert read.rejection
    assert (read.fact, read.rejection.subject) == (good, str(ref))
    assert "PERMISIVE" in read.rejection.what
    assert folder.problems[0].served_version == "2023-11-14T22:13:20Z"


def test_object_in_use_is_read_although_its_file_is_invalid(tmp_path: Path) -> None:
    ref = Ref("Policy", "shop", "default")
    place(tmp_path / "a.yaml", POLICY.format("PERMISSIVE"))
    folder = Folder(tmp_path)
    [good] = folder.load().change.applied
    place(tmp_path / "a.yaml", POLICY.format("{[PERMISSIVE"))
    folder.load()
    read = folder.read_object(ref)
    assert read
    assert read.rejection
    assert (read.fact, read.rejection) == (good, folder.problems[0])
    assert read.rejection.where.startswith(f"{tmp_path}/a.yaml:")
    (tmp_path / "a.yaml").unlink()
    folder.load()
    assert folder.read_object(ref) is None


def test_refused_one_of_two_policies_decides_at_start(tmp_path: Path) -> None:
    place(tmp_path / "a.yaml", POLICY.format("PERMISSIVE"))
    place(tmp_path / "b.yaml", POLICY.format("STRCT"))
    folder = Folder(tmp_path)
    [closed] = folder.load().change.applied
    assert isinstance(closed, ModePolicy)
    assert closed.mode is Mode.STRICT
    (tmp_path / "b.yaml").unlink()
    [good] = folder.load().change.applied
    assert isinstance(good, ModePolicy)
    assert good.mode is Mode.PERMISSIVE


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "",
            "trustDomain: new",
            "trustDomain changes from cluster.local to new, which sidecars do not accept",
        ),
        ("trustDomain: old\ntrustDomainAliases: [new]", "trustDomain: new", "keep it in trustDomainAliases"),
        ("trustDomain: old\ntrustDomainAliases: [new]", "trustDomain: new\ntrustDomainAliases: [old]", ""),
        ("trustDomain: new\ntrustDomainAliases: [old]", "trustDomain: new", ""),
        ("", "meshMTLS: {ecdhCurves: [P-384]}", "first add a new curve, then remove the old ones"),
        ("", "meshMTLS: {ecdhCurves: [P-384, P-256]}", ""),
        # An Envoy without X25519MLKEM768 has X25519 before, and P-384 afterwards.
        (
            "meshMTLS: {ecdhCurves: [X25519MLKEM768, X25519]}",
            "meshMTLS: {ecdhCurves: [X25519MLKEM768, P-384]}",
            "has no curve in common",
        ),
        ("", "meshMTLS: {ecdhCurves: [X25519MLKEM768]}", ""),
        ("", "meshMTLS: {minProtocolVersion: TLSV1_2}", ""),
    ],
)
def test_setting_that_interrupts_requests_is_reported(tmp_path: Path, old: str, new: str, said: str) -> None:
    loader = SettingsLoader(tmp_path / "mesh.yaml")
    place(tmp_path / "mesh.yaml", old)
    assert loader.load()[1] == ()
    place(tmp_path / "mesh.yaml", new)
    config, problems = loader.load()
    assert config == SettingsLoader(tmp_path / "mesh.yaml").load()[0], "applied nevertheless"
    assert [problem.notice for problem in problems] == [True] * bool(said)
    assert said in "".join(map(str, problems))
