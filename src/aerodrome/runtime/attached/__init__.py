"""Copilot CLI servers that somebody else runs: found, watched, and given to one user or tenant each.

Responsible for: which servers there are (settings, attached at run time, names that lead to several addresses), whether
they are well, whom each serves, and which of them gets a session. Not for their processes: none is started, ended or
cleared up here, and none is asked to keep its files with us.
"""
