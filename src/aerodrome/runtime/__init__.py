"""Copilot CLI processes: find the binary, launch, supervise, pool, talk to them over a control link.

Not: whose session it is, or what is in it.
"""
