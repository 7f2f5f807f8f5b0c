"""Facts and decisions as Envoy messages, one module per resource type."""
