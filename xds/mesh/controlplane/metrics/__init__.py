"""Prometheus metrics of the control plane.

`xds serve` exposes `controlplane.Metrics` at /metrics. A server that uses only the library exposes
`xds.server.metrics`: `XdsServer(..., observer=StreamMetrics(registry))`.

Clients cannot choose the value of a label, and no label identifies a proxy. The number of time series
therefore does not grow with the mesh.
"""
