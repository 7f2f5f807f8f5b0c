"""The xDS protocol as a sans-IO state machine."""
