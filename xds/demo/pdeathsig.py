"""Run a command that cannot outlive its parent: `python tie.py PARENT_PID COMMAND...`.

The kernel kills it when the parent ends, however that happens. Set in the child's own program, because running Python
between fork and exec (preexec_fn) is not safe in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the tie was made
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 -- a shell is what nobody wants here


if __name__ == "__main__":
    main()
