"""Be told when something is so: a watch on a running daemon, and what it tells.

python examples/watch.py "Is there a banana?"
"""

import sys

from streamer.client import Client

with Client() as client:
    if not any(watch["name"] == "example" for watch in client.watches()):
        client.add_watch("example", sys.argv[1] if len(sys.argv) > 1 else "Is there a banana?", when="both")
    for event in client.watch_events():
        print(event["type"], event["stream"], event["probability"], event["still"], flush=True)
