"""The command `xds`."""
