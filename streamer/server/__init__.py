"""The one port: a shell a wire around the sans-I/O protocols."""
