"""Pure functions of a Mesh: mTLS modes, DestinationRules, reachability, objects without effect."""
