"""Drawn people for the toy dataset: what somebody wears, and how a pose of them looks.

Only Pillow's shapes are used, no fonts and no files, so that a picture depends on its numbers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SHIRTS: tuple[Colour, ...] = (
    (205, 50, 45), (45, 85, 185), (60, 150, 70), (225, 200, 70), (235, 235, 230), (45, 45, 50),
    (130, 65, 145), (235, 135, 50), (120, 190, 215), (225, 140, 165), (125, 125, 120), (110, 75, 50),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = (
    (40, 55, 95), (35, 35, 40), (150, 135, 105), (110, 110, 115), (95, 65, 45), (215, 210, 200), (80, 100, 60),
    (150, 50, 55), (110, 150, 190),
)  # fmt: skip
HAIR: tuple[Colour, ...] = ((30, 25, 25), (95, 60, 35), (200, 165, 95), (150, 70, 40), (170, 170, 170))
SKIN: tuple[Colour, ...] = ((240, 200, 170), (205, 155, 115), (140, 95, 65), (95, 65, 50))
BAGS: tuple[Colour, ...] = ((170, 30, 40), (30, 30, 35), (40, 110, 120), (190, 150, 60), (120, 90, 160))
PATTERNS = ("plain", "plain", "hoops", "stripes", "checks", "panel")
LEGS = ("trousers", "trousers", "shorts", "skirt")
VIEWS = ("front", "back", "left", "right")


@dataclass(frozen=True)
class Look:
    """What one person looks like, whichever camera sees them."""

    shirt: Colour
    accent: Colour
    pattern: str
    trousers: Colour
    legs: str
    hair: Colour
    long_hair: bool
    skin: Colour
    bag: str
    bag_colour: Colour
    long_sleeves: bool
    coat: bool
    build: float

    @property
    def pattern_colour(self) -> Colour:
        """The accent, where the pattern shows any."""
        return self.shirt if self.pattern == "plain" else self.accent


@dataclass(frozen=True)
class Pose:
    """How a person stands in one picture. `swing` is the step, -1 to 1; `lift` the arms' share of it."""

    view: str
    swing: float
    lift: float


def draw_look(random: Random) -> Look:
    """Dress a person at random."""
    shirt = random.choice(SHIRTS)
    return Look(
        shirt=shirt,
        accent=random.choice([colour for colour in SHIRTS if colour != shirt]),
        pattern=random.choice(PATTERNS),
        trousers=random.choice(TROUSERS),
        legs=random.choice(LEGS),
        hair=random.choice(HAIR),
        long_hair=random.random() < 0.4,
        skin=random.choice(SKIN),
        bag=random.choice(("none", "none", "backpack", "handbag")),
        bag_colour=random.choice(BAGS),
        long_sleeves=random.random() < 0.6,
        coat=random.random() < 0.25,
        build=random.uniform(1.1, 1.45),
    )


def difference(first: Look, second: Look) -> float:
    """Return how easily two people are told apart by the colours of their clothes, 0 (same shirt, trousers) to 4."""
    if (first.shirt, first.trousers) == (second.shirt, second.trousers):
        return 0.0
    pairs = ((first.shirt, second.shirt), (first.pattern_colour, second.pattern_colour))
    above = sum(math.dist(*pair) for pair in pairs) / 2
    return (above + math.dist(first.trousers, second.trousers)) / 255 + 0.2 * (first.legs != second.legs)


def draw_pose(random: Random) -> Pose:
    """Draw a direction of sight and a moment of a step."""
    return Pose(random.choice(VIEWS), random.uniform(-1, 1), random.uniform(0.3, 1))


class Figure:
    """A person drawn onto a picture.

    Coordinates of the body run from 0 (top of the head) to 1 (soles) downwards and, in the same unit, from the middle
    of the body sideways.

    Args:
        image: RGB picture to draw on.
        look: What the person wears.
        pose: How they stand.
        top: Where the head begins, pixels.
        middle: Where the body's axis is, pixels.
        size: The person's height, pixels.
    """

    def __init__(self, image: Image.Image, look: Look, pose: Pose, *, top: float, middle: float, size: float) -> None:
        self.image, self.look, self.pose = image, look, pose
        self.top, self.middle, self.size = top, middle, size
        self.pen = ImageDraw.Draw(image)
        self.sideways = pose.view in ("left", "right")
        self.facing = -1 if pose.view == "left" else 1
        self.shoulder = look.build * (0.075 if self.sideways else 0.125)
        self.hip = look.build * (0.07 if self.sideways else 0.095)

    def draw(self) -> None:
        """Draw the person, back to front."""
        if self.look.bag == "backpack" and self.pose.view != "back":
            self._backpack()
        self._arm(-1)
        self._legs()
        self._torso()
        self._arm(1)
        self._head()
        if self.look.bag == "backpack" and self.pose.view == "back":
            self._backpack()
        if self.look.bag == "handbag":
            self._box(self.facing * (self.hip + 0.03), 0.5, 0.045, 0.06, self.look.bag_colour)

    def _at(self, x: float, y: float) -> Point:
        return self.middle + x * self.size, self.top + y * self.size

    def _box(self, x: float, y: float, half_width: float, half_height: float, colour: Colour) -> None:
        self.pen.rectangle(
            [self._at(x - half_width, y - half_height), self._at(x + half_width, y + half_height)], colour
        )

    def _oval(self, x: float, y: float, half_width: float, half_height: float, colour: Colour) -> None:
        self.pen.ellipse([self._at(x - half_width, y - half_height), self._at(x + half_width, y + half_height)], colour)

    def _limb(self, points: list[Point], width: float, colour: Colour) -> None:
        thickness = max(2, round(width * self.size))
        self.pen.line([self._at(*point) for point in points], colour, thickness, joint="curve")

    def _legs(self) -> None:
        look = self.look
        stride = self.pose.swing * (0.11 if self.sideways else 0.03)
        for side in (-1, 1):
            hip = (0.0 if self.sideways else side * self.hip * 0.55, 0.5)
            knee, foot = (hip[0] + side * stride * 0.6, 0.74), (hip[0] + side * stride, 0.96)
            bare = look.legs != "trousers"
            self._limb([hip, knee, foot], 0.08 * look.build, look.skin if bare else look.trousers)
            if look.legs == "shorts":
                self._limb([hip, knee], 0.095 * look.build, look.trousers)
            self._oval(foot[0] + (self.facing * 0.02 if self.sideways else 0), 0.975, 0.045, 0.022, (40, 35, 35))
        if look.legs == "skirt":
            flare = self.hip * 1.5
            corners = [(-self.hip, 0.47), (self.hip, 0.47), (flare, 0.74), (-flare, 0.74)]
            self.pen.polygon([self._at(*corner) for corner in corners], look.trousers)

    def _torso(self) -> None:
        hem = 0.66 if self.look.coat else 0.52
        corners = [(-self.shoulder, 0.18), (self.shoulder, 0.18), (self.hip * 1.1, hem), (-self.hip * 1.1, hem)]
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon([self._at(*corner) for corner in corners], 255)
        self.image.paste(self._cloth(hem), mask=mask)

    def _cloth(self, hem: float) -> Image.Image:
        """Return the shirt's cloth as a picture, pattern and all."""
        look = self.look
        cloth = Image.new("RGB", self.image.size, look.shirt)
        pen = ImageDraw.Draw(cloth)
        if look.pattern in ("hoops", "checks"):
            for row in range(4):
                y = 0.2 + 0.09 * row
                pen.rectangle([self._at(-0.3, y), self._at(0.3, y + 0.04)], look.accent)
        if look.pattern in ("stripes", "checks"):
            for column in range(-3, 4):
                x = 0.055 * column
                pen.rectangle([self._at(x, 0.1), self._at(x + 0.022, hem + 0.1)], look.accent)
        if look.pattern == "panel":
            pen.rectangle([self._at(-0.06, 0.24), self._at(0.06, 0.38)], look.accent)
        return cloth

    def _arm(self, side: int) -> None:
        look = self.look
        reach = side * self.pose.swing * self.pose.lift * (0.14 if self.sideways else 0.04)
        shoulder = (0.0 if self.sideways else side * self.shoulder, 0.21)
        elbow = (shoulder[0] + reach * 0.5 + (0 if self.sideways else side * 0.03), 0.36)
        hand = (shoulder[0] + reach + (0 if self.sideways else side * 0.03), 0.5)
        self._limb([shoulder, elbow, hand], 0.055 * look.build, look.skin)
        sleeve = [shoulder, elbow, hand] if look.long_sleeves else [shoulder, elbow]
        self._limb(sleeve, 0.062 * look.build, look.shirt)

    def _head(self) -> None:
        look, back = self.look, self.pose.view == "back"
        lean = self.facing * 0.012 if self.sideways else 0.0
        if look.long_hair:
            self._oval(-lean, 0.12, 0.068, 0.1, look.hair)
        self._box(0, 0.16, 0.028, 0.03, look.skin)
        self._oval(0, 0.08, 0.058, 0.075, look.hair)
        if not back:
            self._oval(lean, 0.1, 0.048, 0.056, look.skin)
        elif look.long_hair:
            self._box(0, 0.15, 0.055, 0.06, look.hair)

    def _backpack(self) -> None:
        if self.sideways:
            self._box(-self.facing * (self.shoulder + 0.03), 0.31, 0.05, 0.11, self.look.bag_colour)
        elif self.pose.view == "back":
            self._box(0, 0.3, 0.08, 0.1, self.look.bag_colour)
        else:
            self._box(0, 0.24, self.shoulder + 0.02, 0.05, self.look.bag_colour)
