"""Who a workload is: SPIFFE certificates, and the secrets by which sidecars get theirs."""

CERTIFICATE = "default"
"""The name of the secret with the sidecar's own certificate and key."""
ROOTS = "ROOTCA"
"""The name of the secret with the roots that peers are verified against."""
