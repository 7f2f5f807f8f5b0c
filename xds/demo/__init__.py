"""`xds demo`: Istio's *Automatic mutual TLS* task, played with real Envoys on one machine.

`play` says what is done and what must be seen, `run` does it, the rest are its tools: `processes` (what runs),
`pods` (which processes a pod is made of), `proxies` (when a sidecar has what it should), `curl` (requests),
`tables` (output).
"""
