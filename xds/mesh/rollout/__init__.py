"""How a mode changes without a failed request: expand, migrate, contract."""
