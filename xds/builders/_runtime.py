"""Runtime layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy_data_plane.envoy.service.runtime.v3 import Runtime
from envoy_data_plane.google.protobuf import Struct


def runtime(name: str, values: Mapping[str, Any]) -> Runtime:
    """Return a runtime layer, which Envoy reads if its bootstrap has an `rtds_layer` of this name.

    Args:
        name: Name of the layer.
        values: Values by key, such as `{"routing.traffic_shift.green": 10}`. They are numbers, strs, bools,
            or mappings of these.
    """
    return Runtime(name=name, layer=Struct.from_dict(dict(values)))
