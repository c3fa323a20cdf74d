"""The bytes between us and a runtime, sans-IO: bounded framing and the JSON-RPC envelope.

No sockets, no loop.
"""
