"""A node agent for the tests: kubelet, kube-proxy and cluster DNS, with network namespaces as pods."""
