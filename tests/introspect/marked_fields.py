"""Print the full names of all sensitive fields of Envoy's API. Run with xds-protos on the path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import envoy
from google.protobuf.descriptor import Descriptor
from udpa.annotations import sensitive_pb2


def marked(messages: Iterable[Descriptor]) -> Iterator[str]:
    for message in messages:
        for field in message.fields:
            if field.GetOptions().Extensions[sensitive_pb2.sensitive]:
                yield field.full_name
        yield from marked(message.nested_types)


root = Path(next(iter(envoy.__path__))).parent
for top in ("envoy", "udpa", "xds"):
    for path in sorted((root / top).rglob("*_pb2.py")):
        module = import_module(".".join(path.relative_to(root).with_suffix("").parts))
        for name in marked(module.DESCRIPTOR.message_types_by_name.values()):
            print(name)
