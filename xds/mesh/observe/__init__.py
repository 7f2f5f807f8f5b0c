"""Observed traffic: what sidecars report about their requests and connections, resolved to workloads."""
