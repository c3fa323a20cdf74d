"""The HTTP front door: routes, server-sent events, problem documents, the uvicorn server they run in.

Thin: it translates between HTTP and the `Sessions` protocol, and decides nothing about sessions.
"""
