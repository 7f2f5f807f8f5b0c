"""Parts that run inside a pod: traffic redirection, and the startup and drain of Envoy."""

import signal

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that the agent forwards to Envoy. `xds proxy` blocks them until the agent runs."""
