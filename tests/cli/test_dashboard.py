"""`xds dashboard`."""

from __future__ import annotations

import webbrowser

from typer.testing import CliRunner

from tests.cli.serve_process import serving
from tests.support.loopback import free_port
from xds.cli import app


def test_dashboard_opens_a_browser(tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) > 1)
    (tmp_path / "mesh").mkdir()
    with serving(tmp_path / "mesh") as process:
        address = f"127.0.0.1:{process.admin}"
        results = [
            CliRunner().invoke(app, ["dashboard", "--admin-address", address, *more])
            for more in (["--no-browser"], [], [])
        ]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert {result.stdout for result in results} == {f"http://{address}/\n"}
    assert opened == [f"http://{address}/"] * 2
    assert [result.stderr for result in results] == [
        "",
        "xds: no browser found: open the address yourself\n",
        "",
    ]


def test_dashboard_without_control_plane_exits_with_3():
    address = f"127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["dashboard", "--admin-address", address, "--no-browser"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"no control plane at {address}: " in result.stderr
