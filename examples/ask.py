"""Ask a running daemon over the wire, and hear the answer word by word: `python examples/ask.py [QUESTION]`."""

import sys

from streamer.client import Client

with Client() as client:
    for stream in client.streams():
        print(f"{stream['name']} is {stream['state']}, {stream['fps_seen']:.1f} frames a second are seen")
    for word in client.ask(sys.argv[1] if len(sys.argv) > 1 else "What is happening?", max_tokens=64):
        print(word, end="", flush=True)
    print()
