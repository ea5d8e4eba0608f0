"""Questions about a scene at one of its steps, with their right answers. Cases that are too close to call are not asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.world.generate import draw_thing
from model.world.objects import COLOURS, NAMES, SHAPES, Thing
from model.world.phrasings import ABSENT, HELD_OUT, NEVER_SEEN, NOTHING, PHRASES, PREFIXES, UNKNOWABLE
from model.world.scene import ABSENT as HARDLY
from model.world.scene import CLEAR, Profile, Scene, Split, Visit

STRANGERS = Profile(text=0.08)
"""What things are drawn that are asked about though nobody saw them."""
RECENT = 6
"""Steps within which an appearance or a leaving counts as just now; twice as many steps without one count as no change."""


@dataclass(frozen=True)
class Question:
    """`skill` is the phrase group; `answer` is lower case but for what is written in the picture.

    `age` is how many steps ago the evidence was last in the picture (0: it still is, -1: there is none); `kind` tells
    apart answers within a skill: "yes", "no", "never" (seen), "" elsewhere.
    """

    skill: str
    text: str
    answer: str
    age: int = -1
    kind: str = ""


def normalise(text: str) -> str:
    """For comparing answers: lower case, no punctuation, no articles."""
    words = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def listing(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def cell(x: float, y: float) -> str | None:
    """The ninth of the picture that a point lies in, None near a border between ninths."""
    names = []
    for value, low, high in ((y, "top", "bottom"), (x, "left", "right")):
        if abs(abs(value) - 1 / 3) < 0.07:
            return None
        names.append(low if value < -1 / 3 else high if value > 1 / 3 else "")
    return " ".join(name for name in names if name) or "center"


class Examiner:
    """Asks about one scene as it stands after `step` (the index of the last step seen)."""

    def __init__(self, rng: np.random.Generator, scene: Scene, step: int, split: Split) -> None:
        self.rng, self.scene, self.step, self.split = rng, scene, step, split
        self.seen = [v for v in scene.visits if v.first <= step]
        partly = [v for v in scene.visits if v.visible[step] > HARDLY]
        self.now = [v for v in partly if v.visible[step] >= CLEAR]
        # Something half hidden now, or half seen and not yet clear, makes whole classes of answers a matter of taste.
        self.murky_now = len(partly) > len(self.now)
        begun = [v for v in scene.visits if (v.visible[: step + 1] > HARDLY).any()]
        self.murky = len(begun) > len(self.seen)
        self.skills: dict[str, Callable[[], Question | None]] = {
            "what": self.what, "colour": self.colour, "shape": self.shape, "where": self.where, "count": self.count,
            "number": lambda: self.read("number"), "word": lambda: self.read("word"), "motion": self.motion,
            "relation": self.relation, "is there": self.is_there, "changed": self.changed, "first": self.first,
            "last": self.last, "before": lambda: self.neighbour("before"), "after": lambda: self.neighbour("after"),
            "colour was": self.colour_was, "number was": lambda: self.was("number"), "word was": lambda: self.was("word"),
            "has appeared": self.has_appeared, "how many": self.how_many, "where was": self.where_was,
            "unknowable": self.unknowable,
        }  # fmt: skip

    # What is asked about

    def pick(self, visits: Sequence[Visit]) -> Visit | None:
        return visits[int(self.rng.integers(len(visits)))] if visits else None

    def name(self, thing: Thing, among: Sequence[Visit]) -> str:
        """A shape is sometimes called by its shape alone, where that is enough."""
        alike = {v.thing for v in among if v.thing.kind == thing.kind and v.thing.name == thing.name}
        if thing.kind == "shape" and len(alike) <= 1 and self.rng.random() < 0.4:
            return thing.name
        if (
            thing.kind in ("number", "word")
            and sum(v.thing.kind == thing.kind for v in among) == 1
            and self.rng.random() < 0.5
        ):
            return thing.kind
        return thing.label

    def stranger(self) -> Thing:
        """A thing not seen so far, often a near miss of one that was."""
        taken = {v.thing for v in self.seen}
        for _ in range(20):
            near = self.pick(self.seen) if self.rng.random() < 0.5 else None
            if near is not None and near.thing.kind == "shape":
                if self.rng.random() < 0.5:
                    thing = Thing("shape", near.thing.name, str(self.rng.choice(list(COLOURS))))
                else:
                    thing = Thing("shape", str(self.rng.choice(SHAPES)), near.thing.colour)
            else:
                thing = draw_thing(self.rng, self.split, STRANGERS)
            if thing not in taken:
                return thing
        return Thing("object", next(name for name in NAMES if Thing("object", name) not in taken))

    def say(self, phrase: str, **names: str) -> str:
        """One of a skill's phrasings, as people type it."""
        held = self.split == "test"
        phrases = PHRASES[phrase]
        options = phrases[-HELD_OUT:] if held else phrases[:-HELD_OUT]
        text = options[int(self.rng.integers(len(options)))].format(**names)
        if not held and self.rng.random() < 0.1:
            prefix = PREFIXES[int(self.rng.integers(len(PREFIXES)))]
            text = prefix + text[0].lower() + text[1:]
        style = self.rng.random()
        if style < 0.08 and not any(c.isupper() for c in text[1:]):
            return text.lower()
        return text.rstrip("?.") if style > 0.88 else text

    def ages(self, *visits: Visit) -> int:
        """Steps since the oldest of this evidence was last to be seen."""
        return self.step - min(min(v.last, self.step) for v in visits)

    def last_seen(self, thing: Thing) -> Visit:
        return [v for v in self.seen if v.thing == thing][-1]

    def article(self, label: str) -> str:
        if label.startswith(("number ", "word ")):
            return f"the {label}"
        return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"

    # Now

    def what(self) -> Question | None:
        if self.murky_now or (not self.now and self.rng.random() < 0.6):
            return None
        across = sorted(self.now, key=lambda v: self.at(v)[0])
        places = [self.at(v)[0] for v in across]
        if any(b - a < 0.12 for a, b in pairwise(places)):
            return None
        answer = listing([v.thing.phrase for v in across]) if across else NOTHING
        kinds = {0: "empty", 1: "one"}
        return Question("what", self.say("what"), answer, 0, kinds.get(len(across), "several"))

    def at(self, visit: Visit, step: int | None = None) -> tuple[float, float]:
        """Where a visit is in the picture at the end of a step."""
        frame = 2 * (self.step if step is None else step) + 1
        x, y = visit.centre[int(np.clip(frame - visit.start, 0, len(visit.centre) - 1))]
        moved = self.scene.camera[frame] @ np.array([x, y, 1.0])
        return float(moved[0] / moved[2]), float(moved[1] / moved[2])

    def colour(self) -> Question | None:
        visible = [v for v in self.now if v.thing.kind == "shape"]
        if self.rng.random() < 0.1 and not self.murky_now:
            absent = [shape for shape in SHAPES if all(v.thing.name != shape for v in visible)]
            shape = str(self.rng.choice(absent))
            return Question("colour", self.say("colour", shape=shape), ABSENT, -1, "never")
        single = [v for v in visible if sum(o.thing.name == v.thing.name for o in visible) == 1]
        visit = self.pick(single)
        if visit is None or self.murky_now:
            return None
        return Question("colour", self.say("colour", shape=visit.thing.name), visit.thing.colour, 0)

    def shape(self) -> Question | None:
        visible = [v for v in self.now if v.thing.kind == "shape"]
        # Colours of objects and of lettering are nobody's label: they could be what "the red thing" means.
        if self.murky_now or len(visible) < len(self.now):
            return None
        visit = self.pick([v for v in visible if sum(o.thing.colour == v.thing.colour for o in visible) == 1])
        if visit is None:
            return None
        return Question("shape", self.say("shape", colour=visit.thing.colour), visit.thing.name, 0)

    def where(self) -> Question | None:
        if self.rng.random() < 0.12 and not self.murky_now:
            gone = [v.thing for v in self.seen if all(v.thing != o.thing for o in self.now)]
            thing = gone[int(self.rng.integers(len(gone)))] if gone and self.rng.random() < 0.5 else self.stranger()
            return Question("where", self.say("where", x=thing.label), ABSENT, -1, "never")
        visit = self.pick(self.now)
        if visit is None:
            return None
        place = cell(*self.at(visit))
        if place is None:
            return None
        return Question("where", self.say("where", x=self.name(visit.thing, self.now)), place, 0)

    def count(self) -> Question | None:
        if self.murky_now:
            return None
        return Question("count", self.say("count"), str(len(self.now)), 0)

    def read(self, kind: str) -> Question | None:
        visible = [v for v in self.now if v.thing.kind == kind]
        if self.murky_now or len(visible) > 1:
            return None
        if not visible:
            if kind == "word" and any(v.thing.kind == "number" for v in self.now):
                return None
            return Question(kind, self.say(kind), ABSENT, -1, "never") if self.rng.random() < 0.08 else None
        name = visible[0].thing.name
        return Question(kind, self.say(kind), name, 0, "short" if len(name) <= 4 else "long")

    def motion(self) -> Question | None:
        visit = self.pick(self.now)
        back = 4
        if visit is None or self.step < back or visit.visible[self.step - back] < CLEAR:
            return None
        points = np.array([self.at(visit, self.step - i) for i in range(back, -1, -1)])
        travel = points[-1] - points[0]
        axis = int(np.argmax(np.abs(travel)))
        recent = points[-1] - points[-3]
        if np.abs(travel).max() < 0.03:
            answer = "not moving"
        elif abs(travel[axis]) > 0.1 and abs(travel[1 - axis]) < 0.4 * abs(travel[axis]) and abs(recent[axis]) > 0.04:
            if np.sign(recent[axis]) != np.sign(travel[axis]):
                return None
            answer = (("left", "right"), ("up", "down"))[axis][int(travel[axis] > 0)]
        else:
            return None
        return Question("motion", self.say("motion", x=self.name(visit.thing, self.now)), answer, 0)

    def relation(self) -> Question | None:
        if len(self.now) < 2:
            return None
        first, second = self.rng.permutation(len(self.now))[:2]
        a, b = self.now[first], self.now[second]
        offset = np.subtract(self.at(a), self.at(b))
        axis = int(np.argmax(np.abs(offset)))
        if abs(offset[axis]) < 0.25 or abs(offset[1 - axis]) > 0.6 * abs(offset[axis]):
            return None
        answer = (("left", "right"), ("above", "below"))[axis][int(offset[axis] > 0)]
        names = {"x": self.name(a.thing, self.now), "y": self.name(b.thing, self.now)}
        return Question("relation", self.say("relation", **names), answer, 0)

    def is_there(self) -> Question | None:
        if self.rng.random() < 0.5:
            visit = self.pick(self.now)
            if visit is None:
                return None
            name = self.name(visit.thing, self.now)
            name = visit.thing.label if name in ("number", "word") else name
            return Question("is there", self.say("is there", a_x=self.article(name)), "yes", 0, "yes")
        if self.murky_now:
            return None
        gone = [v.thing for v in self.seen if all(v.thing != o.thing for o in self.now)]
        thing = gone[int(self.rng.integers(len(gone)))] if gone and self.rng.random() < 0.35 else self.stranger()
        label = thing.label
        if thing.kind == "shape" and all(v.thing.name != thing.name for v in self.now) and self.rng.random() < 0.4:
            label = thing.name
        return Question("is there", self.say("is there", a_x=self.article(label)), "no", -1, "no")

    def changed(self) -> Question | None:
        if self.murky_now or self.murky:
            return None
        moments = [m for v in self.scene.visits for m in (v.first, v.last + 1) if m <= self.step + 1]
        newest = max(moments, default=-99)
        since = self.step + 1 - newest
        if since <= RECENT // 2:
            return Question("changed", self.say("changed"), "yes", 0, "yes") if self.rng.random() < 0.5 else None
        if since >= RECENT + 2 and self.step >= RECENT + 2:
            return Question("changed", self.say("changed"), "no", 0, "no")
        return None

    # Memory

    def nothing_yet(self, skill: str) -> Question | None:
        return Question(skill, self.say(skill), NOTHING, -1, "never") if self.rng.random() < 0.35 else None

    def first(self) -> Question | None:
        if self.murky:
            return None
        if not self.seen:
            return self.nothing_yet("first")
        if len(self.seen) > 1 and self.seen[1].first - self.seen[0].first < 2:
            return None
        return Question(
            "first", self.say("first"), self.seen[0].thing.phrase, self.ages(self.last_seen(self.seen[0].thing))
        )

    def last(self) -> Question | None:
        if self.murky:
            return None
        if not self.seen:
            return self.nothing_yet("last")
        if len(self.seen) > 1 and self.seen[-1].first - self.seen[-2].first < 2:
            return None
        return Question("last", self.say("last"), self.seen[-1].thing.phrase, self.ages(self.seen[-1]))

    def neighbour(self, which: str) -> Question | None:
        if self.murky or not self.seen:
            return None
        i = int(self.rng.integers(len(self.seen)))
        visit = self.seen[i]
        if sum(v.thing == visit.thing for v in self.seen) > 1:
            return None
        j = i + (1 if which == "after" else -1)
        ordered = [v.first for v in self.seen[max(0, min(i, j) - 1) : max(i, j) + 2]]
        if any(b - a < 2 for a, b in pairwise(ordered)):
            return None
        text = self.say(which, x=self.name(visit.thing, self.seen))
        if not 0 <= j < len(self.seen):
            return Question(which, text, NOTHING, self.ages(visit), "edge") if self.rng.random() < 0.35 else None
        other = self.seen[j]
        return Question(which, text, other.thing.phrase, self.ages(visit, other))

    def colour_was(self) -> Question | None:
        if self.rng.random() < 0.12 and not self.murky:
            absent = [shape for shape in SHAPES if all(v.thing.name != shape for v in self.seen)]
            if not absent:
                return None
            return Question(
                "colour was", self.say("colour was", shape=str(self.rng.choice(absent))), NEVER_SEEN, -1, "never"
            )
        single = [
            v for v in self.seen
            if v.thing.kind == "shape" and len({o.thing for o in self.seen if o.thing.name == v.thing.name}) == 1
        ]  # fmt: skip
        visit = self.pick(single)
        if visit is None or self.murky:
            return None
        return Question(
            "colour was",
            self.say("colour was", shape=visit.thing.name),
            visit.thing.colour,
            self.ages(self.last_seen(visit.thing)),
        )

    def was(self, kind: str) -> Question | None:
        shown = {v.thing for v in self.seen if v.thing.kind == kind}
        if self.murky or len(shown) > 1:
            return None
        skill = f"{kind} was"
        if not shown:
            if kind == "word" and any(v.thing.kind == "number" for v in self.seen):
                return None
            return Question(skill, self.say(skill), NEVER_SEEN, -1, "never") if self.rng.random() < 0.1 else None
        thing = next(iter(shown))
        kind = "short" if len(thing.name) <= 4 else "long"
        return Question(skill, self.say(skill), thing.name, self.ages(self.last_seen(thing)), kind)

    def has_appeared(self) -> Question | None:
        if self.rng.random() < 0.5:
            visit = self.pick(self.seen)
            if visit is None:
                return None
            label = visit.thing.name if visit.thing.kind == "shape" and self.rng.random() < 0.25 else visit.thing.label
            age = self.ages(self.last_seen(visit.thing))
            return Question("has appeared", self.say("has appeared", a_x=self.article(label)), "yes", age, "yes")
        if self.murky:
            return None
        thing = self.stranger()
        label = thing.label
        if thing.kind == "shape" and all(v.thing.name != thing.name for v in self.seen) and self.rng.random() < 0.4:
            label = thing.name
        return Question("has appeared", self.say("has appeared", a_x=self.article(label)), "no", self.step, "no")

    def how_many(self) -> Question | None:
        if self.murky:
            return None
        return Question(
            "how many",
            self.say("how many"),
            str(len({v.thing for v in self.seen})),
            self.ages(*self.seen) if self.seen else -1,
        )

    def where_was(self) -> Question | None:
        if self.rng.random() < 0.1 and not self.murky:
            return Question("where was", self.say("where was", x=self.stranger().label), NEVER_SEEN, -1, "never")
        visit = self.pick(self.seen)
        if visit is None or sum(v.thing == visit.thing for v in self.seen) > 1:
            return None
        steps = range(visit.first, min(visit.last, self.step) + 1)
        places = {cell(*self.at(visit, step)) for step in steps}
        place = next(iter(places))
        if len(places) != 1 or place is None:
            return None
        return Question(
            "where was", self.say("where was", x=self.name(visit.thing, self.seen)), place, self.ages(visit)
        )

    def unknowable(self) -> Question | None:
        visit = self.pick(self.seen)
        name = visit.thing.label if visit is not None and self.rng.random() < 0.7 else self.stranger().label
        return Question("unknowable", self.say("unknowable", x=name), UNKNOWABLE, -1, "never")

    def ask(self, count: int, weights: dict[str, float]) -> list[Question]:
        """`count` questions of skills drawn by `weights`."""
        names = list(weights)
        chances = np.array([weights[name] for name in names])
        chances = chances / chances.sum()
        asked: list[Question] = []
        for _ in range(20):
            for i in self.rng.choice(len(names), 2 * count, p=chances):
                question = self.skills[names[i]]()
                if question is not None and (question not in asked or self.rng.random() < 0.2):
                    asked.append(question)
                    if len(asked) == count:
                        return asked
        while len(asked) < count:
            question = self.unknowable()
            assert question is not None
            asked.append(question)
        return asked


WEIGHTS = {
    "what": 1.5, "colour": 1.2, "shape": 1.5, "where": 1.2, "count": 0.6, "number": 4.0, "word": 5.0, "motion": 2.5,
    "relation": 3.5, "is there": 1.2, "changed": 0.6, "first": 0.8, "last": 0.6, "before": 1.6, "after": 1.6,
    "colour was": 1.2, "number was": 2.0, "word was": 2.0, "has appeared": 1.3, "how many": 0.7, "where was": 1.2,
    "unknowable": 0.7,
}  # fmt: skip
"""How often the examination asks each skill; some are asked less than that, since fewer scenes allow them."""
