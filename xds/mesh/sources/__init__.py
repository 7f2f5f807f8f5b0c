"""Sources of objects: manifest files and Kubernetes. All sources yield the same updates."""
