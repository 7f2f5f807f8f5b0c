"""The controller, its admin port, status, metrics, and our gRPC services."""
