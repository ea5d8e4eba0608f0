"""Prometheus' text format (exposition 0.0.4) of what the daemon counts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from streamer.assistant import Assistant, Usage
from streamer.engine.engine import Engine
from streamer.engine.integrity import KINDS

STEP_BUCKETS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1.0, 5.0)
"""Seconds, around the 40 ms that a frame has at 25 frames a second."""
TOKEN_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
SOURCE_STATES = ("connecting", "live", "stalled", "waiting", "ended")
Labels = Mapping[str, str]


class Histogram:
    """Counts of observations up to each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: Labels) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            total += count
            yield _line(f"{name}_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:g}"}, total)
        yield _line(f"{name}_sum", labels, self.sum)
        yield _line(f"{name}_count", labels, total)


class Metrics:
    """What is counted at the doors; the rest is read from the assistant when it is asked for."""

    def __init__(self) -> None:
        self.connections = 0
        self.questions: Counter[str] = Counter()
        """By outcome: stop, length, cancelled, failed, or refused."""
        self.open_answers = 0
        self._first_token = Histogram(TOKEN_BUCKETS)
        self._token = Histogram(TOKEN_BUCKETS)
        self._steps: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(STEP_BUCKETS))
        self._steps_seen: Counter[str] = Counter()

    def answered(self, outcome: str, usage: Usage) -> None:
        """An answer is over."""
        self.questions[outcome] += 1
        if usage.first_token_s is not None:
            self._first_token.observe(usage.first_token_s)
            if usage.seconds is not None and usage.completion_tokens > 1:
                self._token.observe((usage.seconds - usage.first_token_s) / (usage.completion_tokens - 1))

    def text(self, assistant: Assistant) -> str:
        """Everything, as Prometheus reads it."""
        self._count_steps(assistant.engine)
        out: list[str] = []
        ready = assistant.ready
        _gauge(out, "streamer_ready", "Whether questions can be answered.", [({}, ready)])
        if ready:
            model = assistant.model
            facts = {"model": model.name, "weights": "trained" if model.trained else "random"}
            _gauge(out, "streamer_model_info", "The model.", [(facts, 1)])
            _gauge(out, "streamer_state_bytes", "Memory of one stream.", [({}, model.state_bytes)])
        _histogram(
            out,
            "streamer_step_seconds",
            "Seconds of a step, of the slower of its threads.",
            [({"kind": k}, h) for k, h in self._steps.items()],
        )
        _histogram(out, "streamer_first_token_seconds", "From question to first token.", [({}, self._first_token)])
        _histogram(out, "streamer_token_seconds", "From token to token, mean of an answer.", [({}, self._token)])
        _gauge(out, "streamer_open_answers", "Answers being spoken or waiting.", [({}, self.open_answers)])
        waited: list[tuple[Labels, float]] = [({}, assistant.oldest_question_s)]
        _gauge(out, "streamer_oldest_question_seconds", "Age of the oldest question without a word yet.", waited)
        _gauge(out, "streamer_connections", "Open websockets.", [({}, self.connections)])
        outcomes = [({"outcome": outcome}, count) for outcome, count in sorted(self.questions.items())]
        _counter(out, "streamer_questions_total", "Questions by outcome.", outcomes)
        faults = [({"kind": kind}, assistant.engine.integrity_faults[kind]) for kind in KINDS]
        _counter(out, "streamer_integrity_faults_total", "Looks at which the engine's sums did not come out.", faults)
        _streams(out, assistant)
        return "\n".join(out) + "\n"

    def _count_steps(self, engine: Engine) -> None:
        for kind, total in dict(engine.steps).items():
            new = total - self._steps_seen[kind]
            self._steps_seen[kind] = total
            for seconds in tuple(engine.step_seconds[kind])[-new:] if new else ():
                self._steps[kind].observe(seconds)


def _streams(out: list[str], assistant: Assistant) -> None:
    streams = [({"stream": status.name}, status) for status in assistant.streams()]
    _counter(out, "streamer_frames_seen_total", "Frames in the state.", [(n, s.frames_seen) for n, s in streams])
    dropped = [({**n, "reason": reason}, count) for n, s in streams for reason, count in sorted(s.drops.items())]
    _counter(out, "streamer_frames_dropped_total", "Frames that the model never saw, by reason.", dropped)
    _counter(out, "streamer_frames_in_total", "Frames decoded.", [(n, s.frames_in) for n, s in streams])
    left_out = [
        ({**n, "reason": reason}, count)
        for n, s in streams
        for reason, count in (("thinned", s.frames_thinned), ("unchanged", s.frames_unchanged))
    ]
    _counter(out, "streamer_frames_left_out_total", "Frames left out as the stream was told to.", left_out)
    damaged = [(n, s.frames_damaged) for n, s in streams]
    _counter(out, "streamer_packets_damaged_total", "Packets that could not be decoded.", damaged)
    _counter(out, "streamer_reconnects_total", "New connections of a source.", [(n, s.reconnects) for n, s in streams])
    _gauge(out, "streamer_fps_in", "Frames a second that arrive.", [(n, s.fps_in) for n, s in streams])
    _gauge(out, "streamer_fps_seen", "Frames a second that are seen.", [(n, s.fps_seen) for n, s in streams])
    lags = [(n, s.lag_s) for n, s in streams if s.lag_s is not None]
    _gauge(out, "streamer_frame_lag_seconds", "From capture to state, oldest frame of the newest step.", lags)
    ages = [(n, s.newest_frame_age_s) for n, s in streams if s.newest_frame_age_s is not None]
    _gauge(out, "streamer_newest_frame_age_seconds", "Age of the newest frame in the state.", ages)
    states = [({**n, "state": state}, str(s.state) == state) for n, s in streams for state in SOURCE_STATES]
    changes = [
        ({"stream": name, "state": state}, count)
        for name, counts in assistant.source_changes().items()
        for state, count in sorted(counts.items())
    ]
    _counter(out, "streamer_source_changes_total", "Times a source came into a state.", changes)
    _gauge(out, "streamer_source_state", "1 for the state that a source is in.", states)


def _gauge(out: list[str], name: str, help: str, samples: Iterable[tuple[Labels, float]]) -> None:
    _head(out, name, help, "gauge")
    out.extend(_line(name, labels, value) for labels, value in samples)


def _counter(out: list[str], name: str, help: str, samples: Iterable[tuple[Labels, float]]) -> None:
    _head(out, name, help, "counter")
    out.extend(_line(name, labels, value) for labels, value in samples)


def _histogram(out: list[str], name: str, help: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
    _head(out, name, help, "histogram")
    for labels, histogram in samples:
        out.extend(histogram.lines(name, labels))


def _head(out: list[str], name: str, help: str, kind: str) -> None:
    out.append(f"# HELP {name} {help}")
    out.append(f"# TYPE {name} {kind}")


def _line(name: str, labels: Labels, value: float) -> str:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    shown = str(int(value)) if float(value).is_integer() else repr(float(value))  # every digit: counters grow for ever
    return f"{name}{{{told}}} {shown}" if told else f"{name} {shown}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
