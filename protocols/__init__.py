"""Bytes to events and back: every wire format that Streamer speaks, without sockets or clocks."""
