"""Mode changes without failed requests: expand, migrate, contract."""
