"""The other nodes: who they are, which of them runs a session, and how it is asked. Not: what is done there."""
