"""Reports for an auditor: what the mesh enforces, what was observed, and what is not known."""
