"""Access to a Kubernetes cluster: API client, leader election, CA Secret, conditions, installation."""
