"""Prometheus' text format (exposition 0.0.4) of what the daemon counts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from streamer.assistant import Assistant, Usage
from streamer.engine.engine import Engine
from streamer.engine.integrity import KINDS
from streamer.logs import dropped_lines
from streamer.outputs.delivery import OutputStatus
from streamer.server.attachments import PREFIX

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

    def samples(self, name: str, labels: Labels) -> Iterator[tuple[str, Labels, float]]:
        """What Prometheus is told: how many were no larger than each bound, their sum and their number."""
        for bound, total in zip((*self.bounds, None), accumulate(self.counts), strict=True):
            yield f"{name}_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:g}"}, total
        yield f"{name}_sum", labels, self.sum
        yield f"{name}_count", labels, sum(self.counts)


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

    def text(self, assistant: Assistant, outputs: Sequence[OutputStatus] = ()) -> str:
        """Everything, as Prometheus reads it."""
        self._count_steps(assistant.engine)
        found = self._metrics(assistant)
        if outputs:
            _outputs(found, outputs)
        return generate_latest(_Collected(found)).decode()

    def _metrics(self, assistant: Assistant) -> list[Metric]:
        out: list[Metric] = []
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
        unwritten = [({"output": name}, lines) for name, lines in dropped_lines().items()]
        _counter(out, "streamer_output_lines_dropped_total", "Lines of output that could not be written.", unwritten)
        _streams(out, assistant)
        _storage(out, assistant)
        return out

    def _count_steps(self, engine: Engine) -> None:
        for kind, total in dict(engine.steps).items():
            new = total - self._steps_seen[kind]
            self._steps_seen[kind] = total
            for seconds in tuple(engine.step_seconds[kind])[-new:] if new else ():
                self._steps[kind].observe(seconds)


def _streams(out: list[Metric], assistant: Assistant) -> None:
    # Streams that only show what a question brought along come by the thousand, and are nobody else's.
    streams = [({"stream": s.name}, s) for s in assistant.streams() if not s.name.startswith(PREFIX)]
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
        if not name.startswith(PREFIX)
        for state, count in sorted(counts.items())
    ]
    _counter(out, "streamer_source_changes_total", "Times a source came into a state.", changes)
    _gauge(out, "streamer_source_state", "1 for the state that a source is in.", states)


def _storage(out: list[Metric], assistant: Assistant) -> None:
    keeper = assistant.keeper
    if keeper is None:
        return
    store, snapshots = keeper.store, keeper.snapshots
    _gauge(out, "streamer_storage_fault", "1 while the disk takes nothing.", [({}, store.fault is not None)])
    _counter(out, "streamer_storage_faults_total", "Times the disk began to take nothing.", [({}, store.faults)])
    recordings = keeper.recordings
    _gauge(out, "streamer_recording_fault", "1 while nothing can be recorded.", [({}, recordings.fault is not None)])
    _counter(out, "streamer_recording_faults_total", "Times that began.", [({}, recordings.faults)])
    _counter(out, "streamer_recording_lost_total", "Packets and pictures not recorded.", [({}, recordings.lost)])
    _gauge(out, "streamer_recordings_kept_bytes", "Bytes of the recordings that are kept.", [({}, recordings.size)])
    _counter(out, "streamer_storage_rows_lost_total", "Rows given up for it.", [({}, store.rows_lost)])
    _counter(out, "streamer_snapshots_total", "Snapshots written.", [({}, snapshots.written)])
    _counter(out, "streamer_snapshot_bytes_total", "Bytes of them.", [({}, snapshots.bytes_written)])
    unfit = [({"reason": "damaged"}, snapshots.damaged), ({"reason": "unlike"}, keeper.refused)]
    _counter(out, "streamer_snapshots_unfit_total", "Snapshots that no stream could go on with.", unfit)
    _gauge(out, "streamer_snapshots_kept_bytes", "Bytes of the snapshots that are kept.", [({}, snapshots.size)])
    streams = [({"stream": status.name}, status) for status in assistant.streams()]
    _counter(
        out, "streamer_resumes_total", "Times a memory outlasted its process.", [(n, s.resumes) for n, s in streams]
    )
    ages = [(n, s.saved_age_s) for n, s in streams if s.saved_age_s is not None]
    _gauge(out, "streamer_snapshot_age_seconds", "Age of the newest snapshot.", ages)


def _outputs(out: list[Metric], outputs: Sequence[OutputStatus]) -> None:
    each = [({"output": output.name, "kind": output.kind}, output) for output in outputs]
    _gauge(out, "streamer_output_waiting", "Events that wait to be delivered.", [(n, o.waiting) for n, o in each])
    oldest = [(n, o.oldest_s or 0.0) for n, o in each]
    _gauge(out, "streamer_output_oldest_seconds", "Age of the one that waits longest.", oldest)
    failing = [(n, o.trouble is not None) for n, o in each]
    _gauge(out, "streamer_output_failing", "1 while the last try has failed.", failing)
    _counter(out, "streamer_output_delivered_total", "Events delivered.", [(n, o.delivered) for n, o in each])
    tries = [(n, o.failed_tries) for n, o in each]
    _counter(out, "streamer_output_failures_total", "Tries that failed.", tries)
    gone = [({**n, "reason": reason}, o.discarded.get(reason, 0)) for n, o in each for reason in ("count", "age")]
    _counter(out, "streamer_output_discarded_total", "Events thrown away undelivered, by reason.", gone)


def _gauge(out: list[Metric], name: str, help: str, samples: Iterable[tuple[Labels, float]]) -> None:
    _add(out, name, help, "gauge", ((name, labels, value) for labels, value in samples))


def _counter(out: list[Metric], name: str, help: str, samples: Iterable[tuple[Labels, float]]) -> None:
    _add(out, name, help, "counter", ((name, labels, value) for labels, value in samples))


def _histogram(out: list[Metric], name: str, help: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
    told = (sample for labels, histogram in samples for sample in histogram.samples(name, labels))
    _add(out, name, help, "histogram", told)


def _add(out: list[Metric], name: str, help: str, kind: str, samples: Iterable[tuple[str, Labels, float]]) -> None:
    metric = Metric(name.removesuffix("_total"), help, kind)
    for sample, labels, value in samples:
        metric.add_sample(sample, dict(labels), value)
    out.append(metric)


class _Collected(Collector):
    """Metrics that are gathered already, for the writer, which asks a collector."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
