"""`xds demo`: Istio's task *Automatic mutual TLS* with real Envoys on one machine.

`play` lists the steps and the expected responses, `run` executes them. Tools: `stage` (the running system),
`processes` (child processes), `pods` (the processes of a pod), `proxies` (the configuration of sidecars),
`curl` (requests), `tables` (output). `tour` provides the same steps to other programs.
"""
