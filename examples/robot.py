"""A robot's control loop at 30 Hz that shows the assistant what it sees and asks now and then, and never waits for it."""

import sys
import time

import numpy as np

from streamer import BlockingAnswer, BlockingAssistant, parse_config

RATE = 30
seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
picture = np.full((240, 320, 3), 90, np.uint8)
answer: BlockingAnswer | None = None
longest = 0.0

with BlockingAssistant(parse_config({"streams": [{"name": "eyes", "source": "push://eyes"}]})) as assistant:
    began = time.monotonic()
    for tick in range(round(seconds * RATE)):
        tick_began = time.monotonic()
        picture[:, (4 * tick) % 280 : (4 * tick) % 280 + 40] = (
            200,
            40 + tick % 160,
            40,
        )  # the camera's picture goes here
        assistant.push("eyes", picture, tick / RATE)
        if answer is None and assistant.newest_frame("eyes") is not None and tick % RATE == 0:
            answer = assistant.ask("What is in front of me?", stream="eyes", max_tokens=20)
        if answer is not None:
            print(answer.poll(), end="", flush=True)
            if answer.complete:
                print()
                answer = None
        longest = max(longest, time.monotonic() - tick_began)
        time.sleep(max(0.0, began + (tick + 1) / RATE - time.monotonic()))
    if answer is not None:
        print()
    seen = assistant.streams()[0].frames_seen

print(
    f"{tick + 1} ticks at {RATE} Hz, {seen} frames seen; the assistant held the loop up for {longest * 1000:.0f} ms at most"
)
