"""Generate the chart's templates and CRDs from xds/mesh/kube, from which `xds install` and kustomize install.

Manifests are valid without the chart. Comments that start with `chart:` turn them into templates:

- After content, the comment replaces its line and the lines that belong to it: `replicas: 2 # chart: TEXT`.
- On a line of its own, the comment adds its text as a line.

The namespace istio-system becomes the namespace of the release, except in these comments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "xds/mesh/kube"
CHART = ROOT / "charts/xds"
MARK = "# chart: "
NAMESPACE = "istio-system"
HEADER = "{{{{- /* Generated from {} by `make chart`: edit that file. */ -}}}}\n"


def template(manifest: str) -> str:
    """Return the template of a manifest."""
    return "".join(f"{line}\n" for line in _lines(manifest.splitlines()))


def _lines(lines: list[str]) -> Iterator[str]:
    replaced = ""
    """The line whose children are being skipped; empty for none."""
    for line in lines:
        content, mark, text = line.partition(MARK)
        if replaced and not mark and _belongs(line, replaced):
            continue
        replaced = content if mark and content.strip() else ""
        indent = line[: len(line) - len(line.lstrip())]
        yield f"{indent}{text}" if mark else line.replace(NAMESPACE, "{{ .Release.Namespace }}")


def _belongs(line: str, to: str) -> bool:
    """Return whether a line is part of the value that starts in another line."""
    depth, parent = (len(each) - len(each.lstrip()) for each in (line, to))
    is_item_of_key = line.lstrip().startswith("- ") and to.rstrip().endswith(":")
    return depth > parent or (depth == parent and is_item_of_key)


def files() -> dict[Path, str]:
    """Return the generated files and their content."""
    generated = {}
    for folder, target in (("install", "templates"), ("crds", "crds")):
        for name in yaml.safe_load((SOURCE / folder / "kustomization.yaml").read_text())["resources"]:
            text = (SOURCE / folder / name).read_text()
            if folder == "install":
                text = HEADER.format(f"xds/mesh/kube/{folder}/{name}") + template(text)
            generated[CHART / target / name] = text
    return generated


def main() -> int:
    """Write the files, or with `--check`, compare them. Return an exit status."""
    if sys.argv[1:] == ["--check"]:
        # A file without a source is outdated as well.
        present = [*CHART.glob("templates/*.yaml"), *CHART.glob("crds/*.yaml")]
        if {path: path.read_text() for path in present} != files():
            print("charts/xds is out of date: run 'make chart' and commit the result", file=sys.stderr)
            return 1
        return 0
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
