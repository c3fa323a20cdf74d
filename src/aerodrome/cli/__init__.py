"""The aerodrome command. Thin: each verb calls a function somewhere else and prints what it returns."""
