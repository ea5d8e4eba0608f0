"""`streamer eval --suite watches`: how often watches tell what they should, on a virtual clock, and what their probabilities are worth.

Streams of the made world are shown to the real model; each step's looks go to real watches, whose clock is the streams'.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from model.checkpoint import locate
from model.evaluation.calibration import applied, expected_error, fitted, log_loss
from model.evaluation.report import grid
from model.evaluation.run import SEED
from model.evaluation.watches import KINDS, QUIET_EVERY, RATE, Programme, Span, programmes, quiet, shown, spans
from model.serving.calibration import Calibration, write_calibration
from model.serving.runner import NANO, Runner, load_runner
from model.world.questions import normalise
from model.world.render import Assets, Painter
from streamer.watches.watch import Event, Terms, Watch

STREAMS, HOURS = 4, 2.0
FEW, SHORT = 2, 1 / 3
"""The same where it is to be quick."""
HELD_IN = 7
"""The seed of the streams, of training's things, phrasings and backgrounds, on which a calibration is made."""
HOLD = 1.0
"""Seconds that something must be so, or not so, before it is told; beside it what is told at once is counted."""
Found = list[list[float | str]]
"""Of one stream, what each step's look of each watch found."""


@dataclass
class Shown:
    """A stream as it was shown, with what was found in it; probabilities are uncalibrated."""

    programme: Programme
    found: Found

    def looks(self, *, memory: bool) -> Iterator[tuple[float, bool]]:
        """Probabilities of yes where the right answer is plain, with it: about what is in the picture, or about what has been."""
        for sought, truths, *seen in zip(self.programme.sought, self.programme.truths, *self.found, strict=True):
            if sought.when != "changes" and sought.ever == memory:
                for probability, right in zip(seen, truths, strict=False):
                    if isinstance(probability, float) and isinstance(right, bool):
                        yield probability, right

    def told(
        self, calibration: Calibration, hold: float = HOLD
    ) -> Iterator[tuple[str, list[Span], list[tuple[int, Event]]]]:
        """By watch: its kind, what it should tell, and at which steps it told what."""
        every, programme = self.programme.every, self.programme
        for sought, truths, *seen in zip(programme.sought, programme.truths, *self.found, strict=True):
            watch = Watch(Terms(when=sought.when, hold=hold, release=hold))
            values = seen if sought.when == "changes" else applied(calibration, seen)
            looked = [watch.look(value, step * every) for step, value in enumerate(values)]
            events = [(step, event) for step, event in enumerate(looked) if event is not None]
            yield sought.kind, spans(truths, sought.when), events


def show(runner: Runner, painter: Painter, streams: Sequence[Programme], seed: int) -> list[Shown]:
    """Shows streams to the model, one after the other."""
    out = []
    for i, each in enumerate(streams):
        steps = tqdm(shown(runner, painter, [each], seed + i), total=each.scene.steps, unit="step", leave=False)
        out.append(Shown(each, [found for (found,) in steps]))
    return out


def matched(due: Sequence[Span], events: Sequence[tuple[int, Event]]) -> int:
    """How many events are told rightly: in their span, each once, and with the right words."""
    left, right = list(due), 0
    for step, event in events:
        for span in left:
            said = isinstance(event.after, bool) or normalise(str(span.after)) == normalise(event.after)
            if span.begin <= step < span.end and said:
                left.remove(span)
                right += 1
                break
    return right


def counted(streams: Sequence[Shown], calibration: Calibration, hold: float = HOLD) -> dict[str, dict[str, int]]:
    """By kind, how many events there were, were told, and were told rightly."""
    counts = {kind: {"events": 0, "told": 0, "right": 0} for kind in KINDS}
    for stream in streams:
        for kind, due, events in stream.told(calibration, hold):
            for key, value in (("events", len(due)), ("told", len(events)), ("right", matched(due, events))):
                counts[kind][key] += value
    return counts


def figures(busy: Sequence[Shown], still: Sequence[Shown], hours: float, calibration: Calibration) -> dict[str, Any]:
    """All that was found, ready for JSON."""
    kinds = counted(busy, calibration)
    rows = kinds | {
        "all": _sum(kinds),
        "all, told at once": _sum(counted(busy, calibration, 0.0)),
        "all, uncalibrated": _sum(counted(busy, Calibration())),
    }
    alarms = {kind: count["told"] for kind, count in counted(still, calibration).items() if count["told"]}
    return {
        "kinds": {
            kind: count
            | {"precision": _share(count["right"], count["told"]), "recall": _share(count["right"], count["events"])}
            for kind, count in rows.items()
        },
        "quiet": {
            "hours": round(hours, 3),
            "watches": sum(len(each.programme.sought) for each in still),
            "false alarms": sum(alarms.values()),
            "of": alarms,
        },
        "calibration": {
            "scale": calibration.scale,
            "shift": calibration.shift,
            "now": _worth(calibration, (*busy, *still), memory=False),
            "memory": _worth(calibration, (*busy, *still), memory=True),
        },
    }


def _worth(calibration: Calibration, streams: Sequence[Shown], *, memory: bool) -> dict[str, Any]:
    """What probabilities of yes are worth before and after a calibration."""
    looks = [look for stream in streams for look in stream.looks(memory=memory)]
    raw, truths = [p for p, _ in looks], [right for _, right in looks]
    after = applied(calibration, raw)
    return {
        "looks": len(looks),
        "expected error": {"before": expected_error(raw, truths), "after": expected_error(after, truths)},
        "log loss": {"before": log_loss(raw, truths), "after": log_loss(after, truths)},
    }


def _sum(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    return {key: sum(count[key] for count in counts.values()) for key in ("events", "told", "right")}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def measure(model: str, device: str, *, quick: bool, fresh: int, calibrate: bool) -> dict[str, Any]:
    """Examines; with `calibrate` a calibration is made first, and put beside the weights. Raises CheckpointError, FileNotFoundError."""
    assets = Assets.load()
    runner = load_runner(model, device=device, dtype="float32", slots=24)
    painter = Painter(assets, device)
    calibration, runner.calibration = runner.calibration, Calibration()
    streams, hours = (FEW, SHORT) if quick else (STREAMS, HOURS)
    if calibrate:
        lessons = show(runner, painter, programmes(HELD_IN, "train", assets.gallery, streams), HELD_IN)
        # Of what is in the picture alone: memory fades by laws of its own, and most watches ask about now.
        looks = [look for stream in lessons for look in stream.looks(memory=False)]
        calibration = fitted([p for p, _ in looks], [right for _, right in looks])
        write_calibration(NANO if model == "nano" else locate(model), calibration, looks=len(looks), seed=HELD_IN)
    seeds = [secrets.randbits(31) for _ in range(fresh)] or [SEED]
    busy: list[Shown] = []
    still: list[Shown] = []
    for seed in seeds:
        written = programmes(seed, "test", assets.gallery, streams)
        busy += show(runner, painter, written, seed)
        still += show(runner, painter, quiet(seed, "test", assets.gallery, written, hours), seed)
    about = {"suite": "watches", "model": model, "device": device, "dtype": "float32", "quick": quick, "seeds": seeds}
    return about | figures(busy, still, hours * len(seeds), calibration)


def table(facts: dict[str, Any]) -> Iterator[str]:
    """The figures as lines of Markdown."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = (
        [kind, str(count["events"]), str(count["told"]), str(count["right"]), share(count["precision"]), share(count["recall"])]
        for kind, count in facts["kinds"].items()
    )  # fmt: skip
    yield from grid(["what happens", "events", "told", "rightly", "precision", "recall"], rows)
    still, worth = facts["quiet"], facts["calibration"]
    yield ""
    yield (
        f"A look of each watch every {2 / RATE:g} s, and what is so for {HOLD:g} s is told; in {still['hours']:g} quiet hours over video, "
        f"a look every {QUIET_EVERY:g} s, {still['watches']} watches told {still['false alarms']} false alarms."
    )
    for what, title in (("now", "of what there is"), ("memory", "of what has been")):
        found = worth[what]
        errors, losses = found["expected error"], found["log loss"]
        yield (
            f"Probability of yes {title}, {found['looks']} looks: expected calibration error {errors['before']:.4f} as the model says it, "
            f"{errors['after']:.4f} calibrated; log loss {losses['before']:.4f} and {losses['after']:.4f}."
        )
