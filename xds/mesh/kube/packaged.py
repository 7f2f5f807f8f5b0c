"""Kubernetes objects that are part of this package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import yaml

from xds.mesh.kube.api import Json

FIELD_MANAGER = "xds-install"
"""Field manager of the installed objects."""


def load_packaged(folder: str) -> Iterator[tuple[str, Json]]:
    """Yield the objects of a packaged kustomization, each with its file name."""
    directory = files("xds.mesh.kube") / folder
    kustomization = yaml.load(directory.joinpath("kustomization.yaml").read_text("utf-8"), yaml.CSafeLoader)
    for name in kustomization["resources"]:
        for obj in yaml.load_all(directory.joinpath(name).read_text("utf-8"), yaml.CSafeLoader):
            yield name, obj
