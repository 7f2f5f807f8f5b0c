"""A node agent for the tests: what kubelet, kube-proxy and cluster DNS do, with network namespaces for pods."""
