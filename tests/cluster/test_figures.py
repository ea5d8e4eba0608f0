"""Figures of a fleet: each engine's by its name, and their sums."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from streamer.cluster.figures import gathered

ENGINE = """# HELP streamer_frames_seen_total Frames.
# TYPE streamer_frames_seen_total counter
streamer_frames_seen_total{stream="%s"} %d
# HELP streamer_step_seconds Steps.
# TYPE streamer_step_seconds histogram
streamer_step_seconds_bucket{kind="frames",le="0.1"} %d
streamer_step_seconds_bucket{kind="frames",le="+Inf"} %d
streamer_step_seconds_sum{kind="frames"} 1.5
streamer_step_seconds_count{kind="frames"} %d
# HELP streamer_streams_open Open.
# TYPE streamer_streams_open gauge
streamer_streams_open 1
"""
VIEW = {
    "engines": [{"name": "a", "load": 0.5, "state": "up"}, {"name": "b", "load": 0.25, "state": "draining"},
                {"name": "c", "load": 0.0, "state": "down"}],
    "streams": [{"state": "owned"}, {"state": "waiting"}],
    "moves": 3,
}  # fmt: skip


def test_engines_have_their_names_and_what_adds_up_is_summed_without_streams() -> None:
    text = gathered({"a": ENGINE % (r"ga\"te", 10, 1, 2, 2), "b": ENGINE % ("yard", 5, 3, 4, 4)}, VIEW)
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["streamer_frames_seen_total", (("engine", "a"), ("stream", 'ga"te'))] == 10
    assert found["streamer_frames_seen_total", (("engine", "b"), ("stream", "yard"))] == 5
    assert found["streamer_fleet_frames_seen_total", ()] == 15
    assert found["streamer_fleet_step_seconds_bucket", (("kind", "frames"), ("le", "0.1"))] == 4
    assert found["streamer_fleet_step_seconds_sum", (("kind", "frames"),)] == 3.0
    assert found["streamer_streams_open", (("engine", "b"),)] == 1
    assert ("streamer_fleet_streams_open", ()) not in found, "a gauge is not always a part of a sum"
    assert (found["streamer_fleet_engines", ()], found["streamer_fleet_streams_waiting", ()]) == (2, 1)
    assert (
        found["streamer_fleet_engine_load", (("engine", "b"),)] == 0.25 and found["streamer_fleet_moves_total", ()] == 3
    )
    kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds)) and "# TYPE streamer_frames_seen_total counter" in kinds
