"""Where attached servers and bindings are stored."""
