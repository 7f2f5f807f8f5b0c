"""The Kubernetes objects that are part of this package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import yaml

from xds.mesh.kube.api import Json

FIELD_MANAGER = "xds-install"
"""Who owns the fields of what is installed from here."""


def load_packaged(folder: str) -> Iterator[tuple[str, Json]]:
    """Yield the objects of one of our kustomizations, as they are in its files, each with its file's name."""
    directory = files("xds.mesh.kube") / folder
    kustomization = yaml.load(directory.joinpath("kustomization.yaml").read_text("utf-8"), yaml.CSafeLoader)
    for name in kustomization["resources"]:
        for each in yaml.load_all(directory.joinpath(name).read_text("utf-8"), yaml.CSafeLoader):
            yield name, each
