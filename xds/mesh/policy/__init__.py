"""Who sends what to whom: the decisions, pure and in one place."""
