"""Run a command that cannot outlive its parent: `python pdeathsig.py PARENT_PID COMMAND...`.

The kernel kills the command when the parent exits for any reason (PR_SET_PDEATHSIG). The parent cannot set
the signal in a `preexec_fn`: Python code between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the parent death signal, then execute the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # The parent exited before the signal was set.
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 -- no shell is needed


if __name__ == "__main__":
    main()
