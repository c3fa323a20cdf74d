"""The HTTP front door: routes, server-sent events, problem documents.

Thin: it decides nothing about sessions.
"""
