"""Our own gRPC API, as `make proto` generates it from protos/: messages for the server and for `xds status`.

The generated code has no comments in its descriptors. What describes the files with them is beside it, for
reflection.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet


def described(name: str) -> FileDescriptorProto | None:
    """Return the file of this name with its comments; None if it is none of ours."""
    return _files().get(name)


@cache
def _files() -> dict[str, FileDescriptorProto]:
    data = resources.files(__name__).joinpath("descriptors.binpb").read_bytes()
    return {file.name: file for file in FileDescriptorSet.FromString(data).file}
