"""Who runs what: leases with epochs, membership, the directory of sessions. Not: what is in a session."""
