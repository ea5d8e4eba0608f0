"""The engine: one thread that owns the device, the scheduler that decides for it, and what they keep of streams and answers."""
