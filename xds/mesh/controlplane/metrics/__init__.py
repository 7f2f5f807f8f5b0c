"""Prometheus metrics; docs/reference/metrics.md lists them.

`controlplane.Metrics` is what `xds serve` tells at /metrics. `streams.StreamMetrics` is the part for any server of the library:
XdsServer(..., observer=StreamMetrics(registry)).

No label has a value that clients choose, and none is for one proxy, so that their number does not grow with the mesh.
"""
