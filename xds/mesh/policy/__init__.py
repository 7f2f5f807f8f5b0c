"""Pure functions of the mesh: mTLS modes, DestinationRules, reachability, objects without effect."""
