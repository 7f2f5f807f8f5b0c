"""Loader for the mesh's settings: Istio's MeshConfig from a file (`--mesh-config`), overridden by `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xds.mesh.envoy.features import ALL_FEATURES, NO_FEATURES, POST_QUANTUM, Features, served_config
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
        self._accepted: MeshConfig | None = None
        """The last settings that `read` accepted."""
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
        if all(problem.notice for problem in problems.listed(name)):
            if self._accepted and (reason := _interruption(self._accepted, config)):
                problems.add([Problem(where=name, what=reason, notice=True)])
            self._accepted = config
        return config, list(problems.listed(name))


def _interruption(old: MeshConfig, new: MeshConfig) -> str:
    """Return why requests fail during a change of settings, and how to avoid it; empty if none fails.

    Sidecars get new settings one after the other, so the old and the new settings must be compatible.
    """
    failing = "requests fail until every sidecar has the new settings. To avoid this,"
    if new.trust_domain not in old.trust_domains:
        return (
            f"trustDomain changes from {old.trust_domain} to {new.trust_domain}, which sidecars do not "
            f"accept yet: {failing} first add {new.trust_domain} to trustDomainAliases"
        )
    if old.trust_domain not in new.trust_domains:
        return (
            f"trustDomain changes from {old.trust_domain} to {new.trust_domain}, but sidecars have "
            f"certificates of {old.trust_domain}: {failing} keep it in trustDomainAliases"
        )
    if not (_share_curve(old, new, ALL_FEATURES) and _share_curve(old, new, NO_FEATURES)):
        return (
            "meshMTLS.ecdhCurves has no curve in common with the previous settings: "
            f"{failing} first add a new curve, then remove the old ones"
        )
    return ""


def _share_curve(old: MeshConfig, new: MeshConfig, features: Features) -> bool:
    old_curves, new_curves = (set(served_config(config, features).mesh_tls.curves) for config in (old, new))
    # An Envoy without the curve X25519MLKEM768 rejects settings that allow no other.
    is_rejected = not features.post_quantum and POST_QUANTUM in old_curves | new_curves
    return is_rejected or bool(old_curves & new_curves)
