"""Parts that run inside a pod: traffic redirection, and the startup and drain of Envoy."""
