"""The native front door: speaks the Copilot CLI's own protocol with unmodified SDKs.

Thin: it authenticates connections, forwards frames between them and the runtimes that hold their sessions, and answers
what must not reach a runtime. What becomes of sessions and turns is decided in `sessions`, what a client may ask for in
`policy`.
"""
