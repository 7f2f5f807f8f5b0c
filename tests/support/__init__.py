"""Support for tests with real components: Envoys, pods, applications, clients, and the control plane."""
