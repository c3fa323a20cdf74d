"""Who is next when there is not enough for all: ceilings, waiting lines, and when to come again.

`order`, `line` and `estimate` are pure; `gate` waits. Not here: what the places are of, which their owners know
(`sessions.admission`, `sessions.residents`, `runtime.pool`).
"""
