"""Translate facts and decisions to Envoy messages; one module per resource type."""
