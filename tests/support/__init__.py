"""What several tests need: real services in subprocesses, ports, clocks."""
