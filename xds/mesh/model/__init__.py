"""Facts: immutable values reduced from Kubernetes objects, and the indexed Mesh that holds them."""
