"""A fleet's figures for Prometheus: every engine's with its name, and what can be added up summed over all of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

OWN = "streamer_"
SUMMED = "streamer_fleet_"
EACH = frozenset({"engine", "stream", "watch"})
"""Labels that sums are without: of their values there are as many as there are streams."""
ADDED_UP = ("counter", "histogram")


def gathered(texts: Mapping[str, str], view: Mapping[str, Any]) -> str:
    """One page of what engines say, by name, and of the fleet's `view`; the labels' values are as many as its engines and streams."""
    lines: dict[str, list[str]] = {}
    sums: dict[str, dict[tuple[str, str], float]] = {}
    for engine, text in texts.items():
        for family in text_string_to_metric_families(text):
            name = _name(family)
            told = lines.setdefault(name, _head(name, family.documentation, family.type))
            for sample in family.samples:
                told.append(f"{sample.name}{_labels({**sample.labels, 'engine': engine})} {sample.value:g}")
                if family.type in ADDED_UP and sample.name.startswith(OWN) and not sample.name.endswith("_created"):
                    rest = {key: value for key, value in sample.labels.items() if key not in EACH}
                    summed = SUMMED + name.removeprefix(OWN)
                    if summed not in lines:
                        lines[summed] = _head(summed, f"{family.documentation} In all engines.", family.type)
                    key = SUMMED + sample.name.removeprefix(OWN), _labels(rest)
                    of = sums.setdefault(summed, {})
                    of[key] = of.get(key, 0.0) + sample.value
    for name, of in sums.items():
        lines[name] += [f"{sample}{labels} {value:g}" for (sample, labels), value in of.items()]
    own = [
        *_head("streamer_fleet_engine_load", "The share of an engine's time that its streams ask for.", "gauge"),
        *(f"streamer_fleet_engine_load{_labels({'engine': each['name']})} {each['load']}" for each in view["engines"]),
        *_one("engines", "Engines that are given streams.", sum(each["state"] != "down" for each in view["engines"])),
        *_one("streams", "Streams that are to be watched.", len(view["streams"])),
        *_one("streams_waiting", "Those that nobody has.", sum(each["state"] == "waiting" for each in view["streams"])),
        *_one("moves_total", "Streams that went to another engine.", view["moves"], "counter"),
    ]
    return "\n".join([line for some in lines.values() for line in some] + own) + "\n"


def _one(name: str, what: str, value: float, kind: str = "gauge") -> list[str]:
    return [*_head(SUMMED + name, what, kind), f"{SUMMED}{name} {value:g}"]


def _head(name: str, what: str, kind: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _name(family: Metric) -> str:
    """As the text format has it, in which a counter is called as its samples are."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def _labels(labels: Mapping[str, str]) -> str:
    return (
        "{" + ",".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in labels.items()) + "}"
        if labels
        else ""
    )
