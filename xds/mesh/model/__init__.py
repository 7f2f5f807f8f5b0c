"""Facts, which are Kubernetes objects reduced to immutable values, and the Mesh, which indexes them."""
