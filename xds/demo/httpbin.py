"""Serve httpbin on one address: `python -m xds.demo.httpbin HOST PORT`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Serve until SIGTERM. A container's first process ignores the signal unless it installs a handler."""
    # Do not raise in the handler: werkzeug listens before it catches exceptions, and import callbacks can
    # swallow them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from httpbin import app  # noqa: PLC0415 -- an optional dependency (extra `demo`)
    from werkzeug.serving import make_server  # noqa: PLC0415 -- installed with httpbin

    make_server(sys.argv[1], int(sys.argv[2]), app, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
