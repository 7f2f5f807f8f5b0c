"""Read records of traffic: files of `xds observe -o json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from xds.cli.options import STDIN, fail
from xds.mesh.observe.record import Record, merge_records, parse_record


def read_records(names: Sequence[str]) -> Record:
    """Return what files record together; `-` is stdin. Exit with status 2 if one cannot be read.

    Args:
        names: at least one file.
    """
    responses = []
    for name in dict.fromkeys(names):
        try:
            data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
            responses.append(parse_record(data.decode("utf-8-sig")))
        except OSError as error:
            fail(f"{name}: {error.strerror}")
        except UnicodeDecodeError:
            fail(f"{name}: is not UTF-8 text")
        except ValueError as error:
            fail(f"{name}: {error}")
    return merge_records(responses)
