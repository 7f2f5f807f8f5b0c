"""The program `xds`, also as `python -m xds`, and `xds-conformance`. `xds.cli` needs an extra."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import xds

MODULES = {
    "conformance": ("rich", "typer", "yaml"),
    "mesh": ("aiohttp", "cryptography", "kubernetes", "msgspec", "rich", "typer", "watchfiles", "yaml"),
}
"""Modules of the packages that an extra requires."""


def main() -> None:
    """Run the command line. If a package is missing, print which one and exit with status 2."""
    extra = "conformance" if sys.argv[1:2] == ["conformance"] else "mesh"
    if missing := [name for name in MODULES[extra] if not find_spec(name)]:
        verb = "is" if len(missing) == 1 else "are"
        print(  # noqa: T201
            f"xds: {', '.join(missing)} {verb} not installed: pip install 'xds-mesh[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(2)
    if not hasattr(xds, "XdsDeprecationWarning"):
        print(  # noqa: T201
            "xds: another package has replaced xds/__init__.py, probably xds-protos:"
            " pip uninstall xds-protos, then pip install --force-reinstall --no-deps xds-mesh",
            file=sys.stderr,
        )
    from xds.cli import main as run  # noqa: PLC0415 - imports MODULES

    run()


def conformance() -> None:
    """Run `xds conformance`. Tools such as pipx need a program of its own."""
    sys.argv.insert(1, "conformance")
    main()


if __name__ == "__main__":
    main()
