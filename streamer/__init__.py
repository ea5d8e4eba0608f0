"""The daemon that watches live video and answers questions about it."""
