"""What an examination found: its tables, and the figures that are wanted of the nano, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from model.evaluation.long_streams import CLOCK
from model.evaluation.score import HELD_OUT, MEMORY, NOW, YET, Marks

READ, KINDS = ("short", "long", "never"), {
    "what": ("one", "several", "empty"), "colour": ("", "never"), "where": ("", "never"), "is there": ("yes", "no"),
    "changed": ("yes", "no"), "unknowable": ("never",), "before": ("", "edge"), "after": ("", "edge"),
    "first": ("", "never"), "last": ("", "never"), "colour was": ("", "never"), "has appeared": ("yes", "no"), "where was": ("", "never"),
}  # fmt: skip
KINDS |= dict.fromkeys(("number", "word", "number was", "word was"), READ)
"""The kinds of answer within a skill; the other skills have one."""
CONTROLS = ("model", "cleared", "glimpse")
TITLES = {"model": "", "cleared": "state cleared", "glimpse": "last four frames"}
OPEN = tuple(skill for skill in MEMORY if skill != "has appeared")
"""Memory questions that yes and no don't answer."""
DISTANCES = tuple(f"memory {frames}" for frames in (128, 256, 512))
ALL = ("model",)
ELSEWHERE = {
    "through H.264, daemon and websocket": "streamer eval --through-video",
    "the daemon on two CPU cores, 25 frames a second of 720p, three askers": "streamer bench",
}
"""What the nano is judged by as well, and the command that measures it."""

SECTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "Now": (("now", "empty"), ALL, NOW),
    "What is new costs": (("now, taught", *(f"now, new {what}" for what in HELD_OUT)), ALL, NOW),
    "Memory, evidence gone two windows and more (frames in the stream; 10 to 40 things in the crowded one)": (
        (*DISTANCES, "crowded 512"), CONTROLS, MEMORY,
    ),
    "Where nothing has come yet": (("nothing yet",), ALL, YET),
    "A number shown in the first second (frames in the stream)": (
        tuple(f"first second {frames}" for frames in (256, 512, 1500)), CONTROLS, ("number was",),
    ),
    "Recall by wall clock at 25 frames a second (since the scene ended)": (
        tuple(f"clock {age}" for age in CLOCK), CONTROLS, MEMORY,
    ),
    "Now, in streams of 20,000 frames": (("first minute", "last minute"), ALL, NOW),
}  # fmt: skip
"""Each table's title: its papers, candidates and skills."""


def kinds(skill: str) -> tuple[str, ...]:
    return KINDS.get(skill, ("",))


def told(count: Sequence[int]) -> str:
    right, asked = count
    return f"{right / asked:.2f} ({asked})" if asked else "–"


def total(
    marks: Marks, papers: Iterable[str], skills: Sequence[str], only: Sequence[str] | None = None, who: str = "model"
) -> list[int]:
    """Right answers and questions of these papers and skills, of these kinds of answer where they are named."""
    papers = set(papers)
    chosen = [
        count for (paper, skill, kind, candidate), count in marks.counts.items()
        if paper in papers and skill in skills and candidate == who and (only is None or kind in only)
    ]  # fmt: skip
    return [sum(count[i] for count in chosen) for i in (0, 1)]


def figures(marks: Marks) -> dict[str, list[int]]:
    """The figures by which the nano is judged: right answers and questions of each, less a control's right answers if "above" it."""
    known = ("", "one", "several", "short", "yes", "no")
    found = {
        f"now: {skill}": total(marks, ["now"], [skill], known)
        for skill in ("what", "colour", "shape", "where", "count")
    }
    found["now: number or word of at most 4"] = total(marks, ["now"], ["number", "word"], ["short"])
    found |= {f"now: {skill}": total(marks, ["now"], [skill]) for skill in ("motion", "relation")}
    found |= {f"now: is there, {kind}": total(marks, ["now"], ["is there"], [kind]) for kind in ("yes", "no")}
    for paper in (*DISTANCES, "crowded 512", *(f"clock {age}" for age in CLOCK)):
        for skill in ("first", "number was", "colour was", "before", "how many"):
            found[f"{paper}: {skill}"] = total(marks, [paper], [skill], ("", "short", "long"))
        for kind in ("yes", "no"):
            found[f"{paper}: has appeared, {kind}"] = total(marks, [paper], ["has appeared"], [kind])
        for who in CONTROLS:
            name = f"{paper}: all open questions{', ' * bool(TITLES[who])}{TITLES[who]}"
            found[name] = total(marks, [paper], OPEN, ("", "short", "long"), who)
    whole, glimpse = (total(marks, DISTANCES, OPEN, ("", "short", "long"), who) for who in ("model", "glimpse"))
    found["memory: all open questions, above the last four frames"] = [whole[0] - glimpse[0], whole[1]]
    for frames in (256, 512, 1500):
        paper = f"first second {frames}"
        found[paper] = total(marks, [paper], ["number was"], ("short", "long"))
    found["never seen, now"] = total(marks, ["now"], NOW[:-1], ["never"])
    found["never seen, memory"] = total(marks, DISTANCES, MEMORY, ["never"])
    found["can't be known"] = total(marks, ["now"], ["unknowable"])
    found["empty scenes over real backgrounds"] = total(marks, ["empty"], ["what"], ["empty"])
    found["nothing yet: first, last and how many"] = total(marks, ["nothing yet"], YET)
    found |= {f"20,000 frames: {minute}": total(marks, [minute], NOW) for minute in ("first minute", "last minute")}
    return found


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table in columns."""
    whole = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
    for at, row in enumerate(whole):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if at == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def table(marks: Marks) -> Iterator[str]:
    """All tables as lines of Markdown: the share of right answers, with the number of questions in brackets."""
    for title, (papers, candidates, skills) in SECTIONS.items():
        columns = [(paper, who) for paper in papers for who in candidates]
        yield from ("", title)
        rows = [
            [
                f"{skill}{', ' * bool(kind)}{kind}",
                *(told(total(marks, [paper], [skill], [kind], who)) for paper, who in columns),
            ]
            for skill in skills
            for kind in kinds(skill)
        ]
        yield from grid(["", *(f"{paper}{', ' * bool(TITLES[who])}{TITLES[who]}" for paper, who in columns)], rows)
    yield from ("", "In short")
    short = {name: told(count) for name, count in figures(marks).items()}
    short |= {name: f"by `{command}`" for name, command in ELSEWHERE.items()}
    yield from grid(["", "right (asked)"], short.items())


def facts(marks: Marks, **about: Any) -> dict[str, Any]:
    """All of it for JSON: `about` the run, `rows` by paper, skill, kind and candidate (none left out), and `figures`."""

    def entry(count: Sequence[int]) -> dict[str, Any]:
        return {"right": count[0], "asked": count[1], "share": round(count[0] / count[1], 4) if count[1] else None}

    rows = [
        {
            "paper": paper,
            "skill": skill,
            "kind": kind,
            "candidate": who,
            **entry(total(marks, [paper], [skill], [kind], who)),
        }
        for papers, candidates, skills in SECTIONS.values()
        for paper in papers
        for who in candidates
        for skill in skills
        for kind in kinds(skill)
    ]
    found = {name: entry(count) for name, count in figures(marks).items()}
    found |= {name: entry([0, 0]) | {"command": command} for name, command in ELSEWHERE.items()}
    return {"suite": "world", **about, "figures": found, "rows": rows}
