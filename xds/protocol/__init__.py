"""The xDS protocol as a sans-IO state machine: snapshots and requests in, responses and events out."""
