"""Decisions, as pure functions of the mesh: mTLS modes, DestinationRules, reachability, objects without effect."""
