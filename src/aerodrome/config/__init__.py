"""Settings: one typed model, read from a TOML file, environment variables and flags."""
