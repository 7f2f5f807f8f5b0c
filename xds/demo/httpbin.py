"""The real httpbin on one address: `python -m xds.demo.httpbin HOST PORT`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Serve until asked to end, as the first process of a container too, where SIGTERM would have no effect."""
    # Not an exception: werkzeug listens before it catches any, and some callbacks of an import swallow them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from httpbin import app  # noqa: PLC0415 -- the extra `demo`: the rest of the package must import without it
    from werkzeug.serving import make_server  # noqa: PLC0415 -- likewise

    make_server(sys.argv[1], int(sys.argv[2]), app, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
