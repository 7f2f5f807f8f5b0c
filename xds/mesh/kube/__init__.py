"""A Kubernetes cluster, as far as we ask it or write to it: what is watched there is in `xds.mesh.sources.kubernetes`."""
