"""`xds demo`: replay Istio's task *Automatic mutual TLS* with real Envoys on one machine.

`play` defines the steps and the expected responses, and `run` executes them. The other modules are `stage`
(the running system), `processes` (child processes), `pods` (the processes of a pod), `proxies` (the
configuration of sidecars), `curl` (requests) and `tables` (output). `tour` provides the steps to other
programs.
"""
