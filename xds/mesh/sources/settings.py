"""Loader for the mesh's settings: Istio's MeshConfig from a file (`--mesh-config`), overridden by `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xds.mesh.model.objects import MeshConfig, Problem
from xds.mesh.parse import mesh_config, settings
from xds.mesh.parse.problems import Problems
from xds.mesh.sources.documents import Document, read_documents

MAX_SIZE = 256 * 2**10
"""Maximum length of the settings, in characters.

Settings from a ConfigMap are parsed on the event loop, where 256 KiB take 0.5 s.
"""
MAX_PROBLEMS = 20
"""Maximum number of problems, and of notices, that are listed."""


class SettingsLoader:
    """Loads the settings. While the file is invalid, the last valid settings are used."""

    def __init__(
        self, file: Path | None = None, assignments: Sequence[str] = (), base: MeshConfig | None = None
    ) -> None:
        self._file = file
        self._assignments = tuple(assignments)
        self._base = base or MeshConfig()
        self._text: str | None = None
        self._config: MeshConfig | None = None
        self._problems: tuple[Problem, ...] = ()

    def load(self) -> tuple[MeshConfig | None, tuple[Problem, ...]]:
        """Return the last valid settings, or None if there are none yet, and the current problems."""
        try:
            text = self._file.read_text("utf-8-sig") if self._file else ""
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self._text = None
            self._problems = (Problem(where=str(self._file), what=f"cannot be read: {what}"),)
            return self._config, self._problems
        if text != self._text:
            self._text = text
            config, problems = self.read(text, str(self._file))
            self._problems = tuple(problems)
            if all(problem.notice for problem in problems):
                self._config = config
        return self._config, self._problems

    def read(self, text: str, name: str) -> tuple[MeshConfig, list[Problem]]:
        """Parse a MeshConfig as YAML and apply `--set`. `name` is the file name in problems."""
        problems = Problems(MAX_PROBLEMS)
        config = self._base
        if len(text) > MAX_SIZE:
            what = f"has {len(text)} characters and is not read (the limit is {MAX_SIZE})"
            problems.add([Problem(where=name, what=what)])
            text = ""
        for document in read_documents(text, name):
            if isinstance(document, Document):
                config, document_problems = mesh_config(
                    document.value, document.locate, config, document.flaws
                )
                problems.add(document_problems)
            else:
                problems.add([document])
        config, assignment_problems = settings(self._assignments, config)
        problems.add(assignment_problems)
        return config, list(problems.listed(name))
