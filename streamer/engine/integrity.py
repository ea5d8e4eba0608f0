"""Whether all adds up between two steps: slots, frames and answers are where they are said to be."""

from __future__ import annotations

from streamer.engine.executor import Executor
from streamer.engine.underway import Batch

KINDS = ("slots", "frames", "answers")


def faults(executor: Executor, underway: Batch) -> dict[str, str]:
    """What does not add up, by kind, each in one line; empty where all is well.

    `underway` are the streams and frames of a step whose pictures are being looked at. On the engine's thread, between two steps.

    - Every slot is either free or one stream's or answer's.
    - Of every stream, what came to its mailbox waits there, was pushed out of it, or was taken by the engine; and what was taken
      is in the state, dropped with a reason, waits for a step or is in one. A restart counts what it loses as failed.
    - The scheduler plans for the answers that are open or wait, and for no others; those that it has begun have a slot.
    """
    told: dict[str, str] = {}
    streams = [stream.slot for stream in executor.streams.values()]
    answers = [answer.slot for answer in executor.answers.values() if answer.slot is not None]
    slots = sorted((*executor.free_streams, *streams, *executor.free_answers, *answers))
    if slots != list(range(executor.stream_slots + executor.answer_slots)):
        told["slots"] = (
            f"slots {executor.free_streams} are free for streams, {streams} used; {executor.free_answers} are free for answers, "
            f"{answers} used: that is not each once"
        )
    for name, stream in executor.streams.items():
        came, waiting = stream.mailbox.taken, executor.scheduler.waiting(name)
        looked = sum(len(frames) for each, frames in underway if each is stream)
        if stream.held != waiting + looked or (came != stream.taken and not stream.mailbox.closed):
            told["frames"] = (
                f"stream {name}: {came} frames left its mailbox, {stream.taken} were taken; {stream.frames_seen} seen, {stream.drops} "
                f"dropped, {waiting} waiting and {looked} underway are not all of them"
            )
    planned = executor.scheduler.answers()
    if planned != {name: answer.slot is not None for name, answer in executor.answers.items()}:
        slots_by_answer = {name: answer.slot for name, answer in executor.answers.items()}
        told["answers"] = f"answers have slots {slots_by_answer}, the scheduler has begun {planned}"
    return told
