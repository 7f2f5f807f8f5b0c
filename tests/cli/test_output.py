"""Documents that commands print as JSON or YAML."""

from __future__ import annotations

import json

import pytest
import yaml

from xds.cli.output import print_document
from xds.mesh.v1 import objects_pb2


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_repeated_values_are_written_in_full(output, read, capsys):
    value = {"name": "web"}
    print_document([value, value], output)
    text = capsys.readouterr().out
    assert text.count("web") == 2
    assert read(text) == [value, value]


def test_message_is_printed_with_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    print_document(objects_pb2.WaitRequest(kind="Policy"), "yaml")
    assert yaml.safe_load(capsys.readouterr().out) == {
        "kind": "Policy",
        "namespace": "",
        "name": "",
        "resourceVersion": "",
        "condition": "IN_FORCE",
    }
