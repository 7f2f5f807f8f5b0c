"""The protocol between `xds conformance` and the server's adapter, as `make proto` generates it."""
