"""`streamer watch`: standing questions of a running daemon, and what they told."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from urllib.parse import quote

from streamer.cli.remote import columns, printable, reach, seconds, setting, web

Options = argparse.Namespace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below `streamer watch`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="ask again and again, and tell when the answer becomes another")
    add.add_argument("name")
    add.add_argument("question", help="such as 'Is someone at the gate?'")
    add.add_argument(
        "--stream", action="append", default=[], help="which stream; needed when there are several, may be said again"
    )
    add.add_argument(
        "--when",
        choices=("becomes_true", "becomes_false", "both", "changes"),
        help="when to tell (default becomes_true)",
    )
    add.add_argument("--every", type=seconds, metavar="TIME", help="time between two looks (default 0.5)")
    add.add_argument("--hold", type=seconds, metavar="TIME", help="how long it must be so")
    add.add_argument("--cooldown", type=seconds, metavar="TIME", help="time after an event in which no other is told")
    add.add_argument(
        "--quiet", action="append", metavar="HOURS", help="hours in which nothing is told, such as 22:00-06:00"
    )
    add.add_argument(
        "--only", type=rectangle, metavar="L,T,R,B", help="a part of the picture in shares of it, such as 0.5,0,1,0.5"
    )
    add.add_argument(
        "--describe", action="store_true", default=None, help="tell what was seen too, a moment after each event"
    )
    add.add_argument("--severity", choices=("info", "warning", "critical"))
    add.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        metavar="KEY=VALUE",
        help="any other key of a configured watch, such as rise=0.8",
    )
    reach(add)
    add.set_defaults(command=_add)
    listed = commands.add_parser("list", help="one line a watch and stream")
    reach(listed)
    listed.set_defaults(command=_list)
    for name, help, command in (
        ("remove", "end a watch", _remove),
        ("pause", "look no more, until it is resumed", _pause),
        ("resume", "look again", _resume),
        ("tune", "propose a threshold from what was said of its events", _tune),
    ):
        chosen = commands.add_parser(name, help=help)
        chosen.add_argument("name")
        reach(chosen)
        chosen.set_defaults(command=command)
    change = commands.add_parser("set", help="change what a watch asks, or when it tells")
    change.add_argument("name")
    change.add_argument(
        "values", nargs="+", type=setting, metavar="KEY=VALUE", help="keys of a configured watch, such as rise=0.8"
    )
    reach(change)
    change.set_defaults(command=_set)
    snooze = commands.add_parser("snooze", help="tell nothing for a while")
    snooze.add_argument("name")
    snooze.add_argument("time", type=seconds, help="such as 90, 10m or 2h; 0 ends it")
    reach(snooze)
    snooze.set_defaults(command=_snooze)
    events = commands.add_parser("events", help="what was told lately")
    events.add_argument("--after", metavar="ID", help="only what was told after this event")
    events.add_argument("--limit", type=int, default=20, help="at most so many (default 20)")
    reach(events)
    events.set_defaults(command=_events)
    mark = commands.add_parser("mark", help="say whether an event was right")
    mark.add_argument("event", metavar="ID")
    mark.add_argument("feedback", choices=("right", "false_alarm"))
    reach(mark)
    mark.set_defaults(command=_mark)


def rectangle(text: str) -> list[float]:
    """A part of a picture: left, top, right and bottom."""
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 4:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no rectangle: write left, top, right and bottom, such as 0.5,0,1,0.5"
        )
    return shares


def _say(options: Options, told: dict[str, Any], line: str) -> int:
    print(json.dumps(told, ensure_ascii=False) if options.json else line)
    return 0


def _path(name: str) -> str:
    return f"watches/{quote(name, safe='')}"


def _add(options: Options) -> int:
    chosen = {
        key: getattr(options, key)
        for key in ("when", "every", "hold", "cooldown", "quiet", "severity", "only", "describe")
    }
    fields = {
        "name": options.name,
        "question": options.question,
        "streams": options.stream,
        **chosen,
        **dict(options.set),
    }
    made = web(
        options, method="POST", path="watches", body={key: value for key, value in fields.items() if value is not None}
    )
    streams = ", ".join(each["stream"] for each in made["streams"])
    return _say(options, made, f"{options.name} watches {streams}")


def _list(options: Options) -> int:
    told = web(options, "watches")
    return _say(options, told, "\n".join(watch_lines(told["watches"])) if told["watches"] else "no watches")


def _remove(options: Options) -> int:
    web(options, method="DELETE", path=_path(options.name))
    return _say(options, {"removed": options.name}, f"{options.name} is removed")


def _pause(options: Options) -> int:
    return _say(
        options,
        web(options, method="PATCH", path=_path(options.name), body={"paused": True}),
        f"{options.name} is paused",
    )


def _resume(options: Options) -> int:
    return _say(
        options,
        web(options, method="PATCH", path=_path(options.name), body={"paused": False}),
        f"{options.name} looks again",
    )


def _set(options: Options) -> int:
    told = web(options, method="PATCH", path=_path(options.name), body=dict(options.values))
    return _say(options, told, f"{options.name} is changed: {', '.join(key for key, _ in options.values)}")


def _snooze(options: Options) -> int:
    told = web(options, method="PATCH", path=_path(options.name), body={"snooze": options.time})
    return _say(
        options,
        told,
        f"{options.name} tells nothing for {options.time:g} s" if options.time else f"{options.name} tells again",
    )


def _events(options: Options) -> int:
    told = web(options, "watches/events", {"limit": options.limit, "after": options.after})
    return _say(options, told, "\n".join(map(event_line, told["events"])) if told["events"] else "no events")


def _mark(options: Options) -> int:
    path = f"watches/events/{quote(options.event, safe='')}/feedback"
    told = web(options, path, method="POST", body={"feedback": options.feedback})
    return _say(options, told, f"{options.event} is marked as {options.feedback.replace('_', ' ')}")


def _tune(options: Options) -> int:
    told = web(options, f"{_path(options.name)}/tuning")
    return _say(options, told, "\n".join(tuning_lines(options.name, told)))


def tuning_lines(name: str, told: dict[str, Any]) -> list[str]:
    """Precision and recall at each threshold, and what is proposed."""
    if told["proposed"] is None:
        return [f"{name}: {told['reason']}"]
    key, now, proposed = told["key"], told["now"], told["proposed"]
    lines = [f"{key.upper():6}  RIGHT  FALSE  PRECISION  RECALL"]
    for row in told["rows"]:
        precision = "-" if row["precision"] is None else f"{row['precision']:.2f}"
        note = f"{'  now' if row['threshold'] == now else ''}{'  proposed' if row['threshold'] == proposed else ''}"
        lines.append(
            f"{row['threshold']:<6g}  {row['right']:<5}  {row['false']:<5}  {precision:<9}  {row['recall']:.2f}{note}"
        )
    lines.append(f"{name}: {key} {proposed:g}: {told['reason']} (recall is of the right events that were told)")
    if proposed != now:
        lines.append(
            f"set it with streamer watch set {name} {key}={proposed:g}, or {key}: {proposed:g} in its configuration"
        )
    return lines


def watch_lines(watches: list[dict[str, Any]]) -> list[str]:
    """A head and one line a watch and stream, in columns."""
    rows = [("WATCH", "STREAM", "STATE", "SEEN", "LOOKS/S", "EVENTS", "RIGHT", "FALSE", "QUESTION")]
    for watch in watches:
        for at in watch["streams"]:
            state = "paused" if watch["paused"] else "-" if at["state"] is None else str(at["state"]).lower()
            state += f" ({at['silent']})" if at["silent"] else ""
            seen = (
                "-" if at["seen"] is None else f"{at['seen']:.2f}" if isinstance(at["seen"], float) else at["seen"][:24]
            )
            rate = f"{at['looks_per_s']:.1f}" + (" (slowed)" if at["slowed"] else "")
            counts = [str(watch[key]) for key in ("events", "right", "false_alarms")]
            asked = watch["question"] + (f"  ! {at['trouble']}" if at["trouble"] else "")
            rows.append((watch["name"], at["stream"], state, seen, rate, counts[0], counts[1], counts[2], asked))
    return columns(rows)


def event_line(event: dict[str, Any]) -> str:
    """An event in one line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["captured_at"]))
    value = "" if event["probability"] is None else f" ({event['probability']:.2f})"
    changed = f": {event['before']} → {event['after']}" if event["type"] == "watch.changed" else ""
    changed = f": {event['description']}" if event.get("description") else changed
    said = f" [{event['feedback'].replace('_', ' ')}]" if event["feedback"] else ""
    what = f"{event['watch']} {event['type'].removeprefix('watch.')} on {event['stream']}{changed}{value}{said}"
    return printable(f"{when}  {event['id']}  {what}")
