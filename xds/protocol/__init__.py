"""The xDS protocol as a sans-IO state machine.

It takes snapshots and requests, and returns responses and events.
"""
