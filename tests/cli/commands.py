"""Run `xds` in this process, on a folder of manifests."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from xds.cli import app

POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
status: {podIP: %s}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.0.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
WEB = SERVICE + "".join(POD % (f"web-{number}", f"127.9.0.{number}") for number in (10, 2, 1))
"""A Service and its pods web-1, web-2 and web-10, in another order."""
MANIFESTS = (
    SERVICE
    + """---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
status: {podIP: 10.9.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {security.istio.io/tlsMode: istio}}
status: {podIP: 10.9.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, namespace: shop}
status: {podIP: 10.9.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop}
"""
)
"""A Service with one pod, and clients with a sidecar, without one, and without an address."""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


def xds(*words: object, stdin: str = "") -> Result:
    """Run a subcommand."""
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin, prog_name="xds")


def write_folder(parent: Path, **files: str) -> Path:
    """Write manifests to files of a new folder, and return the folder."""
    folder = parent / "m"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder
