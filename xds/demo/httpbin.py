"""The real httpbin on one address: `python -m xds.demo.httpbin HOST PORT`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Serve until asked to end, as the first process of a container too, where SIGTERM would have no effect."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from httpbin import app  # noqa: PLC0415 -- the extra `demo`: the rest of the package must import without it
    from werkzeug.serving import make_server  # noqa: PLC0415 -- likewise

    make_server(sys.argv[1], int(sys.argv[2]), app, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
