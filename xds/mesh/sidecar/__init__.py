"""What runs inside a pod: the rules that redirect its traffic, and the Envoy that it is redirected to."""
