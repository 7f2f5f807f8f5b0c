"""What the tests with real components stand on: Envoys, pods, applications, clients, and the control plane."""
