"""Where names go in a plot, so that each is read beside its point and none covers another.

Plain geometry in pixels, y upward, no drawing: `place` tries places around each point, nearest first, and takes the one
that covers least; a name for which every place would cover another name or leave the plot is left out (None), as the
table under the plot still has it.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

RADII = (9.0, 13.0, 18.0, 25.0, 34.0, 46.0, 60.0, 78.0)
DIRECTIONS = 16
CROSSED = 1.6  # the price of crossing a soft box, where the next larger radius costs 1
SIDEWAYS = 0.2  # a sine or cosine below it counts as straight
CLOSE = 20.0  # beyond this distance a name needs a line to its point


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Area that the two share.

        >>> Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 3))
        1
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0

    def inside(self, other: "Box") -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


class Spot(NamedTuple):
    """A name's box, and whether a line should tie it to its point."""

    box: Box
    tied: bool


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    frame: Box,
    hard: Sequence[Box] = (),
    soft: Sequence[Box] = (),
) -> list[Spot | None]:
    """A spot for each name, served in the order given. `hard` boxes are never covered, `soft` ones only at need."""
    taken = [*hard]
    spots: list[Spot | None] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best: tuple[float, Spot] | None = None
        for order, radius in enumerate(RADII):
            for step, leaning in product(range(DIRECTIONS), (True, False)):
                box = beside(x, y, width, height, radius, 2 * math.pi * step / DIRECTIONS, leaning)
                if not box.inside(frame) or any(box.overlap(other) for other in taken):
                    continue
                covered = [box.overlap(other) for other in soft]
                price = CROSSED * sum(area > 0 for area in covered) + 6 * sum(covered) / (width * height)
                price += order + 0.35 * unhandy(step)
                if best is None or price < best[0]:
                    best = (price, Spot(box, radius > CLOSE))
        spots.append(best[1] if best else None)
        if best:
            taken.append(best[1].box)
    return spots


def unhandy(step: int) -> float:
    """Names read best to the right of a point or above it; 0 is best."""
    angle = 2 * math.pi * step / DIRECTIONS
    return 1 - math.cos(angle - math.pi / 6)


def beside(x: float, y: float, width: float, height: float, radius: float, angle: float, leaning: bool) -> Box:
    """A box at the distance `radius` from (x, y) in the direction `angle`.

    `leaning` lets a box above or below reach to both sides of the point; else it keeps to its own side, and so clears
    what is drawn straight above and below the point.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    side = cos if leaning else math.copysign(1.0, cos) * (abs(cos) > SIDEWAYS)
    lift = sin if leaning else math.copysign(1.0, sin) * (abs(sin) > SIDEWAYS)
    left = x + radius * cos - width * (1 - side) / 2
    bottom = y + radius * sin - height * (1 - lift) / 2
    return Box(left, bottom, left + width, bottom + height)


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move numbers as little as needed so that each two stand `gap` apart, within [low, high] where they fit.

    >>> spread([5.0, 5.0, 20.0], gap=4.0, low=0.0, high=30.0)
    [3.0, 7.0, 20.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[list[float]] = []  # [sum of (wanted - own offset), members]: neighbours that touch move as one
    for index in order:
        groups.append([wanted[index], 1])
        while len(groups) > 1 and _first(groups[-2]) + groups[-2][1] * gap > _first(groups[-1]):
            total, members = groups.pop()
            groups[-1][0] += total - members * groups[-1][1] * gap
            groups[-1][1] += members
    placed: list[float] = []
    for group in groups:
        start = _first(group)
        placed += [start + gap * number for number in range(int(group[1]))]
    for at in range(len(placed)):
        placed[at] = max(placed[at], low if at == 0 else placed[at - 1] + gap)
    for at in reversed(range(len(placed))):
        placed[at] = min(placed[at], high if at == len(placed) - 1 else placed[at + 1] - gap)
    result = [0.0] * len(wanted)
    for at, index in enumerate(order):
        result[index] = placed[at]
    return result


def _first(group: list[float]) -> float:
    return group[0] / group[1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without the parts all of them share, as long as they stay different; the base always stays.

    >>> short_names(["tiny-el8-v4096", "tiny-v4096", "mini-v4096"])
    {'tiny-el8-v4096': 'tiny-el8', 'tiny-v4096': 'tiny', 'mini-v4096': 'mini'}
    """
    unique = list(dict.fromkeys(names))
    parts = {name: name.split("-") for name in unique}
    shared = set.intersection(*(set(part[1:]) for part in parts.values())) if len(unique) > 1 else set()
    short = {name: "-".join([part[0], *(p for p in part[1:] if p not in shared)]) for name, part in parts.items()}
    return short if len(set(short.values())) == len(unique) else {name: name for name in unique}
