"""`xds inject`: input, output and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from xds.cli import app

POD = (
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    image: web\n"
)
OTHER = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: other\n"


def inject(*words: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["inject", *map(str, words)], input=stdin)


def test_files_are_written_in_order(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD.rstrip())
    (tmp_path / "other.yaml").write_text(OTHER)
    result = inject(
        "-f", tmp_path / "pod.yaml", "-f", "-", "-f", tmp_path / "other.yaml", stdin="---\n" + OTHER
    )
    assert result.exit_code == 0, result.output
    kinds = [document["kind"] for document in yaml.safe_load_all(result.stdout)]
    assert kinds == ["Pod", "ConfigMap", "ConfigMap"]
    assert result.stdout.endswith(f"\n---\n{OTHER}---\n{OTHER}")
    assert result.stderr == ""


def test_output_option_writes_a_file(tmp_path: Path) -> None:
    result = inject("-f", "-", "-o", tmp_path / "out.yaml", stdin=POD)
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "out.yaml").read_text() == inject("-f", "-", stdin=POD).stdout


def test_options_configure_the_sidecar() -> None:
    options = (
        "--image",
        "r.example/xds:1",
        "--image-pull-policy",
        "Always",
        "--xds-address",
        "xds.mesh.svc:443",
    )
    result = inject("-f", "-", *options, "--set", "meshConfig.proxyListenPort=16001", stdin=POD)
    init, proxy = yaml.safe_load(result.stdout)["spec"]["initContainers"]
    assert {(c["image"], c["imagePullPolicy"]) for c in (init, proxy)} == {("r.example/xds:1", "Always")}
    assert {"name": "XDS_ADDRESS", "value": "xds.mesh.svc:443"} in proxy["env"]
    assert init["args"][1:3] == ["-p", "16001"]


def test_sds_socket_of_the_mesh_config_is_mounted() -> None:
    result = inject("-f", "-", "--set", "meshConfig.sdsUdsPath=unix:///run/spire/agent.sock", stdin=POD)
    volumes = yaml.safe_load(result.stdout)["spec"]["volumes"]
    assert {"name": "xds-sds", "hostPath": {"path": "/run/spire", "type": "Directory"}} in volumes


@pytest.mark.parametrize(
    "options",
    [("--set", "values.xds.ownKeys=false"), ("--sds", "unix:///run/spire/agent.sock")],
)
def test_sidecar_without_a_key_of_its_own_has_no_volume_for_it(options: tuple[str, ...]) -> None:
    assert "xds-key" in inject("-f", "-", stdin=POD).stdout
    result = inject("-f", "-", *options, stdin=POD)
    assert result.exit_code == 0
    assert "xds-key" not in result.stdout
    assert "XDS_KEY_DIR" not in result.stdout


def test_xds_inject_does_not_know_what_nodes_support() -> None:
    result = inject("-f", "-", "--set", "values.xds.podCertificates=true", stdin=POD)
    assert result.exit_code == 0
    assert "podCertificate" not in result.stdout


NAMESPACE = """apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: restricted}}
"""


def test_pod_that_its_namespace_refuses_gets_a_notice(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD.replace("name: web\nspec", "name: web\n  namespace: shop\nspec"))
    (tmp_path / "shop.yaml").write_text(NAMESPACE)
    (tmp_path / "broken.yaml").write_text("{apiVersion: v1, kind: Namespace, metadata: 3}\n")
    files = [word for name in ("pod", "shop", "broken") for word in ("-f", tmp_path / f"{name}.yaml")]
    result = inject(*files)
    assert result.exit_code == 0
    assert "xds-init" in result.stdout
    assert result.stderr == (
        f"{tmp_path}/pod.yaml:1: notice: Pod web: the API server refuses its pods, because "
        "pod-security.kubernetes.io/enforce is restricted and container xds-init needs NET_ADMIN and NET_RAW "
        "(set the annotation sidecar.istio.io/interceptionMode: NONE, or label the Namespace "
        "pod-security.kubernetes.io/enforce=privileged)\n"
    )
    (tmp_path / "shop.yaml").write_text(NAMESPACE.replace("restricted", "privileged"))
    assert inject(*files).stderr == ""


def test_errors_have_file_and_line_and_prevent_output(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(POD)
    bad = (
        POD
        + "    ports:\n    - containerPort: 15001\n---\n"
        + OTHER
        + "---\n"
        + POD
        + "  volumes: x\n---\na: [\n"
    )
    (tmp_path / "bad.yaml").write_text(bad)
    result = inject("-f", tmp_path / "good.yaml", "-f", tmp_path / "bad.yaml", "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert not (tmp_path / "out").exists()
    lines = [line.removeprefix(f"{tmp_path}/") for line in result.stderr.splitlines()]
    assert [line.split(" problem: ")[0] for line in lines] == ["bad.yaml:10:", "bad.yaml:25:", "bad.yaml:28:"]
    assert lines[0].endswith(
        "problem: Pod web: spec.containers[0].ports[0].containerPort is 15001, which is reserved for "
        "outbound interception (use another port)"
    )


def test_duplicate_key_is_an_error_only_where_injected() -> None:
    twice = POD.replace("    image: web\n", "    image: web\n    image: other\n")
    result = inject("-f", "-", stdin=twice)
    assert result.exit_code == 1
    assert result.stderr == "stdin:9: problem: spec.containers[0].image is set twice\n"
    assert inject("-f", "-", stdin=OTHER + "kind: ConfigMap\n").stdout == OTHER + "kind: ConfigMap\n"


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        ([], "", "Missing option"),
        (["-f", "/no/such.yaml"], "", "xds: /no/such.yaml: No such file or directory"),
        (["-f", "/"], "", "xds: /: Is a directory"),
        (["-f", "-"], b"\xff\xfe", "xds: -: is not UTF-8 text"),
        (["-f", "-", "-o", "/no/such/file"], POD, "xds: /no/such/file: No such file or directory"),
        (
            ["-f", "-", "--image-pull-policy", "Sometimes"],
            POD,
            "'Sometimes' is not Always, IfNotPresent or Never",
        ),
        (["-f", "-", "--xds-address", "xds"], POD, "'xds' is not HOST:PORT"),
        (["-f", "-", "--sds", "unix:///sock"], POD, "is not unix:///DIRECTORY/SOCKET"),
        (["-f", "-", "--set", "meshConfig.nonsense=1"], POD, "nonsense"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], stdin: str, message: str) -> None:
    result = inject(*words, stdin=stdin)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert result.exit_code == 2


def test_empty_input_gives_empty_output() -> None:
    assert inject("-f", "-").stdout == ""
    assert inject("-f", "-", stdin="# only a comment\n").stdout == "# only a comment\n"


def test_byte_order_mark_is_removed() -> None:
    assert (
        inject("-f", "-", stdin="\ufeff".encode() + POD.encode()).stdout
        == inject("-f", "-", stdin=POD).stdout
    )
