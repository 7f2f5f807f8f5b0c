"""`xds unlock`."""

from __future__ import annotations

from xds.cli import mode_change
from xds.cli.mode_change import ModeChangeOptions
from xds.cli.option_groups import grouped_options

EXAMPLES = """
xds unlock shop --dry-run
xds unlock shop/web --yes
xds unlock shop --manifests mesh/
"""


@grouped_options
def unlock(options: ModeChangeOptions) -> None:
    """Set PERMISSIVE for a namespace or a workload, so that it accepts plaintext again.

    Prints the ports that will accept plaintext and the refused clients that could connect, asks for
    confirmation, applies (with --manifests: writes) the PeerAuthentication that xds lock applies, with
    PERMISSIVE, and waits until it is in force. Clients with a sidecar continue to use mutual TLS. Ports that
    portLevelMtls or a policy for a workload makes STRICT stay STRICT.

    PERMISSIVE applies even if the mesh or the namespace is STRICT. To inherit the mode instead, delete the
    PeerAuthentication.

    Exit status: 0 unlocked, or nothing to do, 1 not confirmed, rejected by the API server, in a file that is
    not changed, only printed, or not in force in time, 2 wrong usage, 3 the control plane or the API server
    cannot be reached.
    """
    mode_change.unlock(options)
