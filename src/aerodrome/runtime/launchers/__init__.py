"""Ways to start a runtime. Each implements runtime.ports.Launcher."""
