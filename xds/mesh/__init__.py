"""The mesh: a control plane for automatic mutual TLS, built on the library at the top of `xds`."""
