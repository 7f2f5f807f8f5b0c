"""What makes short commands start quickly. Importing modules takes most of their time.

- envoy_data_plane declares messages with pydantic's `dataclass` decorator, which generates a validator for
  each class, and `xds bootstrap` imports hundreds. The program does without: mypy checks the code that builds
  messages, `xds.codec.encode` checks values, and the tests run with validators.
- The package `kubernetes` imports all its parts, of which only the client of `kubernetes.aio` is used.
- structlog imports rich for tracebacks, which this program prints without it (`xds.cli.logs`).
- Python would collect garbage 150 times during the imports, and once more on exit.

Only the program `xds` does this. Programs that import the library keep validated messages.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any

PACKAGE = "envoy_data_plane"
UNUSED = frozenset(
    {
        *(f"kubernetes.{name}" for name in ("client", "config", "dynamic", "informer", "leaderelection")),
        *(f"kubernetes.{name}" for name in ("stream", "utils", "watch")),
        *(f"kubernetes.aio.{name}" for name in ("dynamic", "leaderelection", "stream", "watch")),
    }
)
"""Modules that are imported when they are used, not when they are mentioned."""
WITHOUT_RICH = frozenset({"structlog.dev", "structlog.tracebacks"})
"""Modules that are imported as if rich were not installed."""


def start() -> None:
    """Skip validation of messages, and collect no garbage until `finish`. Call this before other imports."""
    gc.disable()
    if PACKAGE not in sys.modules:
        sys.meta_path[:0] = _BeforeMessages(), _Lazily(), _WithoutRich()


def finish() -> None:
    """Resume garbage collection, which ignores what has been imported. Does nothing without `start`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class _BeforeMessages:
    """Replaces pydantic's decorator at the first import of envoy_data_plane. Some commands import neither."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == PACKAGE:
            sys.meta_path.remove(self)
            _replace_decorator()


class _Lazily:
    """Delays the import of UNUSED modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in UNUSED else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


class _WithoutRich:
    """Hides rich from WITHOUT_RICH."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in WITHOUT_RICH else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LoaderWithoutRich(spec.loader.name, spec.loader.path)
        return spec


class _LoaderWithoutRich(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        earlier = {"rich": sys.modules["rich"]} if "rich" in sys.modules else {}
        sys.modules["rich"] = None  # type: ignore[assignment]  # Its import raises ImportError.
        try:
            super().exec_module(module)
        finally:
            del sys.modules["rich"]
            sys.modules.update(earlier)


def _replace_decorator() -> None:
    import pydantic.dataclasses  # noqa: PLC0415

    original = pydantic.dataclasses.dataclass

    def dataclass(cls: type[Any] | None = None, **options: Any) -> Any:
        def decorate(cls: type[Any]) -> type[Any]:
            is_message = cls.__module__.startswith(f"{PACKAGE}.")
            return _plain(cls) if is_message else original(cls, **options)

        return decorate(cls) if cls else decorate

    pydantic.dataclasses.dataclass = dataclass  # type: ignore[assignment]


def _plain(cls: type[Any]) -> type[Any]:
    """Make a message class a standard dataclass, which betterproto2 supports as well."""
    if "__post_init__" in vars(cls):  # Its only purpose is to warn about deprecated fields, which is slow.
        del cls.__post_init__
    cls.__doc__ = cls.__doc__ or cls.__name__  # Otherwise dataclass() inspects the signature.
    cls.__init__ = _generate_init
    return dataclasses.dataclass(init=False, eq=False, repr=False)(cls)


def _generate_init(self: Any, *args: Any, **values: Any) -> None:
    """Initialize the first instance of a class, after replacing this function by the class's own `__init__`.

    Most of the classes never have an instance.
    """
    cls: Any = type(self)
    fields = [
        (field.name, Any, dataclasses.field(default_factory=field.default_factory))
        for field in dataclasses.fields(cls)
    ]
    namespace = {"__doc__": cls.__doc__}  # Otherwise dataclass() inspects the signature.
    template = dataclasses.make_dataclass(
        cls.__name__, fields, bases=cls.__bases__, namespace=namespace, eq=False, repr=False
    )
    cls.__init__ = vars(template)["__init__"]
    cls.__init__(self, *args, **values)
