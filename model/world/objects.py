"""What the world holds: shapes, colours, objects, numbers and words, and how each is named."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")

COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.05),
    "yellow": (0.97, 0.88, 0.10),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.12, 0.30, 0.88),
    "purple": (0.55, 0.15, 0.72),
    "white": (0.96, 0.96, 0.96),
    "black": (0.05, 0.05, 0.06),
}

OBJECTS = {
    "airplane": "airplane", "alarm_clock": "alarm clock", "ambulance": "ambulance", "anchor": "anchor", "ant": "ant",
    "apple": "apple", "avocado": "avocado", "balloon": "balloon", "banana": "banana", "basketball": "basketball",
    "bat": "bat", "bathtub": "bathtub", "bear": "bear", "bed": "bed", "bee": "bee", "beer": "beer", "bell": "bell",
    "bird": "bird", "boat": "boat", "closed_book": "book", "boot": "boot", "bread": "bread", "broccoli": "broccoli",
    "broom": "broom", "bus": "bus", "butterfly": "butterfly", "cactus": "cactus", "cake": "cake", "camel": "camel",
    "camera": "camera", "candle": "candle", "car": "car", "carrot": "carrot", "cat": "cat", "chair": "chair",
    "cheese_wedge": "cheese", "chicken": "chicken", "cloud": "cloud", "four_leaf_clover": "clover", "coffee": "coffee",
    "cookie": "cookie", "corn": "corn", "cow": "cow", "crab": "crab", "crocodile": "crocodile", "crown": "crown",
    "deer": "deer", "dog": "dog", "dolphin": "dolphin", "doughnut": "donut", "door": "door", "dress": "dress",
    "drum_with_drumsticks": "drum", "duck": "duck", "eggplant": "eggplant", "elephant": "elephant", "fire": "fire",
    "tropical_fish": "fish", "flamingo": "flamingo", "flashlight": "flashlight", "football": "football",
    "fox_face": "fox", "frog": "frog", "gift": "gift", "giraffe_face": "giraffe", "guitar": "guitar",
    "hamburger": "hamburger", "hammer": "hammer", "tophat": "hat", "helicopter": "helicopter", "hotdog": "hot dog",
    "hourglass": "hourglass", "house": "house", "icecream": "ice cream", "kangaroo": "kangaroo", "key": "key",
    "koala": "koala", "ladder": "ladder", "ladybug": "ladybug", "computer": "laptop", "lemon": "lemon",
    "bulb": "light bulb", "lion_face": "lion", "lock": "lock", "magnet": "magnet", "monkey_face": "monkey",
    "crescent_moon": "moon", "mushroom": "mushroom", "octopus": "octopus", "owl": "owl", "palm_tree": "palm tree",
    "panda_face": "panda", "parrot": "parrot", "pear": "pear", "pencil2": "pencil", "penguin": "penguin",
    "iphone": "phone", "pig": "pig", "pineapple": "pineapple", "pizza": "pizza", "radio": "radio",
    "rainbow": "rainbow", "rocket": "rocket", "rooster": "rooster", "rose": "rose", "snail": "snail", "snake": "snake",
    "snowflake": "snowflake", "snowman": "snowman", "soccer": "soccer ball", "spider": "spider",
    "strawberry": "strawberry", "sunny": "sun", "sunflower": "sunflower", "tv": "television", "tent": "tent",
    "toilet": "toilet", "tomato": "tomato", "toothbrush": "toothbrush", "tractor": "tractor",
    "traffic_light": "traffic light", "evergreen_tree": "tree", "trophy": "trophy", "truck": "truck",
    "trumpet": "trumpet", "tulip": "tulip", "turtle": "turtle", "umbrella": "umbrella", "violin": "violin",
    "volcano": "volcano", "watch": "watch", "watermelon": "watermelon", "whale": "whale", "wine_glass": "wine",
    "zebra_face": "zebra",
}  # fmt: skip
"""Emoji by their short names, and what people call them."""

NAMES = tuple(OBJECTS.values())
CHARACTERS = string.digits + string.ascii_uppercase

WORDS = [
    "OPEN",
    "STOP",
    "EXIT",
    "CLOSED",
    "DANGER",
    "SALE",
    "TAXI",
    "POLICE",
    "HOTEL",
    "CAFE",
    "PIZZA",
    "WATER",
    "RIVER",
    "HOUSE",
    "TRAIN",
    "BRIDGE",
    "MARKET",
    "GARDEN",
    "SCHOOL",
    "STREET",
    "WINTER",
    "SUMMER",
    "SPRING",
    "AUTUMN",
    "MONDAY",
    "FRIDAY",
    "SUNDAY",
    "APRIL",
    "JUNE",
    "JULY",
    "GREEN",
    "BLACK",
    "WHITE",
    "BROWN",
    "PAPER",
    "STONE",
    "METAL",
    "GLASS",
    "LIGHT",
    "NIGHT",
    "SMILE",
    "HAPPY",
    "LUCKY",
    "TIGER",
    "EAGLE",
    "HORSE",
    "MOUSE",
    "SNAKE",
    "WHALE",
    "OCEAN",
    "BEACH",
    "ISLAND",
    "FOREST",
    "DESERT",
    "VALLEY",
    "CLOUD",
    "STORM",
    "RAIN",
    "SNOW",
    "WIND",
    "FIRE",
    "EARTH",
    "MOON",
    "STAR",
    "PLANET",
    "ROCKET",
    "ENGINE",
    "WHEEL",
    "MOTOR",
    "BRAKE",
    "CLUTCH",
    "PEDAL",
    "TABLE",
    "CHAIR",
    "COUCH",
    "LAMP",
    "CLOCK",
    "PHONE",
    "RADIO",
    "CAMERA",
    "LAPTOP",
    "SCREEN",
    "MUSIC",
    "PIANO",
    "GUITAR",
    "DRUM",
    "VIOLIN",
    "DANCE",
    "SONG",
    "MOVIE",
    "STAGE",
    "BREAD",
    "BUTTER",
    "CHEESE",
    "APPLE",
    "LEMON",
    "ORANGE",
    "GRAPE",
    "PEACH",
    "MELON",
    "SUGAR",
    "SALT",
    "PEPPER",
    "COFFEE",
    "JUICE",
    "MILK",
    "KING",
    "QUEEN",
    "PRINCE",
    "KNIGHT",
    "CASTLE",
    "SWORD",
    "SHIELD",
    "CROWN",
    "MAGIC",
    "DREAM",
    "SLEEP",
    "QUICK",
    "SLOW",
    "FAST",
    "LEFT",
    "RIGHT",
    "NORTH",
    "SOUTH",
    "EAST",
    "WEST",
    "ZEBRA",
    "JAZZ",
    "QUIZ",
    "FOXES",
    "BOXER",
    "JUMPER",
    "VECTOR",
    "MATRIX",
    "NUMBER",
    "LETTER",
    "PENCIL",
    "ERASER",
    "MARKER",
    "RULER",
    "BOTTLE",
    "BASKET",
    "BUCKET",
    "LADDER",
    "HAMMER",
    "SCREW",
    "NAIL",
    "TOOL",
]
"""Words shown beside random strings of letters; every tenth is held out."""

Kind = Literal["shape", "object", "number", "word"]


@dataclass(frozen=True)
class Thing:
    """Something that can be shown. `name` is the shape, the object, the digits or the letters; only shapes have a colour."""

    kind: Kind
    name: str
    colour: str = ""

    @property
    def label(self) -> str:
        """Without an article: "red circle", "dog", "number 42", "word EXIT"."""
        if self.kind == "shape":
            return f"{self.colour} {self.name}"
        return self.name if self.kind == "object" else f"{self.kind} {self.name}"

    @property
    def phrase(self) -> str:
        """As an answer: "a red circle", "an apple", "the number 42"."""
        if self.kind in ("number", "word"):
            return f"the {self.label}"
        return f"{'an' if self.label[0] in 'aeiou' else 'a'} {self.label}"


HELD_OUT_SHAPES = frozenset({("circle", "purple"), ("square", "orange"), ("triangle", "white"), ("star", "blue"),
                             ("diamond", "green"), ("cross", "yellow"), ("ring", "red"), ("heart", "black")})  # fmt: skip
"""Combinations (an eighth) that training never shows."""
