"""The xDS protocol as a sans-IO state machine.

Input is snapshots and requests. Output is responses and events.
"""
