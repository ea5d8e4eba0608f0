"""What `/metrics` tells, as Prometheus' own parser reads it."""

from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from streamer.assistant import Assistant, StreamStatus, Usage
from streamer.server.metrics import Metrics


def status(name: str, **figures: Any) -> StreamStatus:
    plain = dict.fromkeys(StreamStatus.__dataclass_fields__, 0)
    return StreamStatus(**{**plain, "name": name, "drops": {}, "lag_s": None, "newest_frame_age_s": None, **figures})


def text() -> str:
    metrics = Metrics()
    metrics.connections, metrics.open_answers = 3, 2
    metrics.questions["refused"] = 4
    metrics.answered("stop", Usage(10, 5, 0.3, 0.5))
    metrics.answered("cancelled", Usage(10))
    live = status("door", state="live", frames_seen=1_234_567, frames_in=1_234_600, drops={"overload": 7, "failed": 1})
    live = SimpleNamespace(**{**{f: getattr(live, f) for f in StreamStatus.__dataclass_fields__}, "lag_s": 0.0625})
    engine = SimpleNamespace(
        steps=Counter(frames=3),
        step_seconds={"frames": deque([0.0125, 0.02, 7.0])},
        integrity_faults=Counter(slots=1),
    )
    assistant = SimpleNamespace(
        engine=engine,
        ready=True,
        model=SimpleNamespace(name='a "nano"', trained=True, state_bytes=123_456_789),
        oldest_question_s=1.5,
        streams=lambda: [live, status("yard", state="waiting", fps_in=24.9, newest_frame_age_s=2.25)],
        source_changes=lambda: {"door": {"live": 1}},
        keeper=None,
    )
    return metrics.text(cast("Assistant", assistant))


def test_names_labels_and_figures_stay_as_they_are_written_down() -> None:
    """Dashboards read them: the file is what the daemon told before it used Prometheus' own library."""
    written = (Path(__file__).parent / "metrics.txt").read_text()
    assert list(text_string_to_metric_families(text())) == list(text_string_to_metric_families(written))
