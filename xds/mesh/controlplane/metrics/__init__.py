"""Prometheus metrics of the control plane.

`controlplane.Metrics` is what `xds serve` exposes at /metrics. Servers of the library use
`xds.server.metrics`: XdsServer(..., observer=StreamMetrics(registry)).

No label has a value that clients choose, and there is no label per proxy, so the number of series does not
grow with the mesh.
"""
