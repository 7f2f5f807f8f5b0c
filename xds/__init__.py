"""An xDS control plane in pure Python: automatic mutual TLS for Envoy sidecars."""
