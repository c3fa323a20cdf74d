"""Small tools without knowledge of Aerodrome: clocks, tasks, durations, a SQLite worker."""
