"""The secret that `xds proxy` serves to Envoy."""

from __future__ import annotations

from datetime import UTC, datetime

from xds.codec import to_dict
from xds.mesh.identity.ca import Authority
from xds.mesh.identity.keys import PrivateKey
from xds.mesh.identity.secrets import certificate_secret
from xds.mesh.sidecar.own_certificate import secret
from xds.snapshot import SECRET


def test_secret_is_the_same_as_that_of_the_control_plane() -> None:
    now = datetime.now(UTC)
    authority = Authority.create(PrivateKey.generate(), "cluster.local", now)
    leaf = authority.issue("spiffe://cluster.local/ns/shop/sa/web", now)
    own, known = secret(leaf), certificate_secret(leaf)
    assert (own.name, own.version) == (known.name, known.version)
    assert to_dict(SECRET, own.body) == to_dict(SECRET, known.body)
