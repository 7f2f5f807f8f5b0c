"""An xDS library in pure Python, and a control plane for Envoy sidecars built on the library.

The library is `xds.store`, `xds.server`, `xds.resources`, `xds.builders`, `xds.validation`, `xds.codec`,
`xds.introspect`, `xds.testing` and `xds.conformance`. The control plane is `xds.mesh`, which the library
never imports.
"""


class XdsDeprecationWarning(DeprecationWarning):
    """A public name of this package will be removed. The message names the replacement."""
