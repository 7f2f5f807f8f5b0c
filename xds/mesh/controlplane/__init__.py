"""The controller, the admin port, status, metrics and the gRPC services of xds.mesh.v1."""
