"""Programs outside of the tree see the library's types (py.typed), with mypy and with basedpyright.

basedpyright is pyright's checker in a package of its own; pyright's package downloads it when it starts.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.library.programs import EXAMPLES

HERE = Path(__file__).parent
PAGES = [
    HERE.parents[1] / "docs" / page
    for page in ("tutorials/blue-green.md", "how-to/embed-in-a-web-app.md", "how-to/move-a-control-plane.md")
]
MISTAKES = """\
from xds.builders import cluster, route
from xds.resources import resource
from xds.server import XdsServer
from xds.store import Store

store = Store()
store.set("web")  # mistake
store.replace(cluster("web"))  # mistake
resource("web")  # mistake
cluster("web", tls=True)  # mistake
route({"web": "1"})  # mistake
XdsServer(store, 18000)  # mistake
store.applied().names  # mistake
"""
PROTOBUF = """\
from xds.conformance.v1.adapter_pb2 import SetRequest
from xds.resources import resource
from xds.store import Store

Store().set(SetRequest(), resource(SetRequest()))
"""
MYPY = ("mypy", "--strict", "--no-error-summary", "--cache-dir", "../cache")
# mypy then sees protobuf as in an environment without types-protobuf: all of it is Any.
WITHOUT_STUBS = """
[[tool.mypy.overrides]]
module = "google.protobuf.*"
follow_imports = "skip"
follow_imports_for_stubs = true
"""
CHECKERS = {
    "mypy": MYPY,
    "mypy without types-protobuf": MYPY,
    "basedpyright": ("basedpyright", "--level", "error", "--pythonpath", sys.executable),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A parent for directories of checkers. It holds the cache that both runs of mypy use."""
    return tmp_path_factory.mktemp("types")


@pytest.mark.parametrize("checker", CHECKERS)
def test_programs_type_check_and_mistakes_do_not(checker, directory):
    tmp_path = directory / checker.replace(" ", "-")
    tmp_path.mkdir()
    programs = {f"doc_{number}_{name}": text for number, (name, text) in enumerate(_programs())}
    for example in ("api_listener.py", "front_proxy.py", "route_every_second.py"):
        programs[example] = (EXAMPLES / example).read_text()
    programs["consumer.py"] = (HERE / "consumer.py").read_text()
    programs["protobuf.py"] = PROTOBUF
    for name, text in {**programs, "mistakes.py": MISTAKES}.items():
        (tmp_path / name).write_text(text)
    settings = '[tool.basedpyright]\ntypeCheckingMode = "standard"\n'
    settings += WITHOUT_STUBS if "without" in checker else ""
    (tmp_path / "pyproject.toml").write_text(settings)
    command = Path(sys.executable).with_name(CHECKERS[checker][0])
    ran = subprocess.run(
        [command, *CHECKERS[checker][1:], *programs, "mistakes.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=290,
    )  # fmt: skip
    found = set(re.findall(r"([\w.]+\.py):(\d+).*error", ran.stdout))
    expected = {
        ("mistakes.py", str(number))
        for number, line in enumerate(MISTAKES.splitlines(), 1)
        if "# mistake" in line
    }
    assert found == expected, ran.stdout + ran.stderr


def _programs() -> list[tuple[str, str]]:
    """Return the whole programs of the pages: names and texts."""
    return [
        found
        for page in PAGES
        for found in re.findall(r'```python title="([\w.]+)"\n(.*?)```', page.read_text(), re.DOTALL)
    ]
