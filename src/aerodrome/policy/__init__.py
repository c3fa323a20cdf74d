"""What a caller may ask of a runtime, as pure functions. Not: who the caller is."""
