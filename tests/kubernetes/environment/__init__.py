"""A real Kubernetes control plane for the tests: find its programs, start it, stop it."""
