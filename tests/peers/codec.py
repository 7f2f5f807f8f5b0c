"""A foreign protobuf codec, as a process: generated classes of Envoy's API and protobuf's own JSON form.

It runs with xds-protos on its path, which conflicts with this project's packages (see xdsprotos.py). Every
line of input is a job, and is answered by a line:

    {"decode": "envoy.service.discovery.v3.DiscoveryResponse", "body": BASE64}   {"json": {...}}
    {"encode": "envoy.config.cluster.v3.Cluster", "json": {...}}                 {"body": BASE64}

or {"error": MESSAGE}. Fields have the names of the .proto files, and every Any is opened. A field that the
classes do not know, at any depth, is an error.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet


class Types:
    """Message types by full name, from modules that are imported when one of their types is asked for."""

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802 - protobuf calls it so
        """Return a descriptor, as a DescriptorPool does. KeyError: there is none."""
        pool = descriptor_pool.Default()
        try:
            return pool.FindMessageTypeByName(name)
        except KeyError:
            _import_package(name)
            return pool.FindMessageTypeByName(name)

    def new(self, name: str) -> Message:
        """Return an empty message."""
        return GetMessageClass(self.FindMessageTypeByName(name))()


def _import_package(name: str) -> None:
    """Import the generated modules of a message's package; in Envoy's API, its files share a folder."""
    package = ""
    for part in name.split("."):
        inner = f"{package}.{part}" if package else part
        if not find_spec(inner):
            break
        package = inner
    for folder in import_module(package).__path__ if package else ():
        for file in sorted(Path(folder).glob("*_pb2.py")):
            import_module(f"{package}.{file.stem}")


def unknown(types: Types, message: Message, where: str) -> Iterator[str]:
    """Go through the fields that the generated classes do not know."""
    for field in UnknownFieldSet(message):
        yield f"{where}: no field {field.field_number} in {message.DESCRIPTOR.full_name}"
    if isinstance(message, PackedMessage):
        packed = types.new(message.type_url.rpartition("/")[2])
        packed.ParseFromString(message.value)
        yield from unknown(types, packed, f"{where}.value")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        elif field.is_repeated:
            inner = value
        else:
            inner = (value,)
        for item in inner:
            yield from unknown(types, item, f"{where}.{field.name}")


def answer(types: Types, job: dict[str, Any]) -> dict[str, Any]:
    """Do one job."""
    if "decode" in job:
        message = types.new(job["decode"])
        message.ParseFromString(base64.b64decode(job["body"]))
        problem = next(unknown(types, message, job["decode"].rpartition(".")[2]), None)
        if problem:
            raise ValueError(problem)
        return {
            "json": json_format.MessageToDict(
                message, preserving_proto_field_name=True, descriptor_pool=types
            )
        }
    message = types.new(job["encode"])
    json_format.ParseDict(job["json"], message, descriptor_pool=types)
    return {"body": base64.b64encode(message.SerializeToString(deterministic=True)).decode()}


def main() -> None:
    """Answer until there is no more input."""
    types = Types()
    for line in sys.stdin:
        try:
            result = answer(types, json.loads(line))
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            result = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
