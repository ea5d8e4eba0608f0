"""What outlasts a process: snapshots of streams, what was added while running, and what happened."""
