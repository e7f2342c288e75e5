"""Which shapes are worth their cost, and how sure that is.

Aggregation over seeds (`over_seeds`). The score of a shape is the mean over its seeds. Its interval has two sources of
doubt, added as independent ones are, by squares:

- items: other test items would have given another score. All seeds are scored on the same items, so more seeds do not
  shrink this part: it is the mean of the seeds' own bootstrap half-widths, each side for itself.
- seeds: another seed would have given another model. The standard deviation between seeds is pooled over all shapes of
  the study (it is assumed to be common to them, since two or three seeds of one shape say little), divided by the root
  of the number of seeds, and widened by Student's t for the few degrees of freedom.

The bootstrap already contains a little of the seeds' doubt, so the sum errs on the wide side. Where no shape has two
seeds, the seeds' doubt is unknown; the interval then covers the items alone, and `Quality.seeds_known` is False.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Z = 1.959964  # the 97.5 % point of the normal distribution
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # the same of Student's t, 1 to 10


class Point(NamedTuple):
    """A shape in the plane of cost and quality. `low` and `high` bound the quality; None where that is unknown."""

    name: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None


class Quality(NamedTuple):
    """A score over seeds. `items` is the smallest number of test items behind it."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int | None
    seeds_known: bool


class Measured(NamedTuple):
    """The score of one seed, with its bootstrap interval over test items."""

    value: float
    low: float | None
    high: float | None
    items: int | None


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points no other one dominates, cheapest first. Dominated: another costs no more and scores no less, and
    is better in one of the two. Equal points stand together.

    >>> [p.name for p in frontier([Point("a", 1, 50), Point("b", 2, 40), Point("c", 3, 60)])]
    ['a', 'c']
    """
    pool = list(points)
    kept = [one for one in pool if not any(dominates(other, one) for other in pool)]
    return sorted(kept, key=lambda one: (one.cost, -one.quality, one.name))


def dominates(one: Point, other: Point) -> bool:
    no_worse = one.cost <= other.cost and one.quality >= other.quality
    return no_worse and (one.cost < other.cost or one.quality > other.quality)


def overlap(one: Point, other: Point) -> bool:
    """Whether the intervals share a value, so that the order of the two is not shown. Unknown ones are points."""
    low, high = bounds(one)
    other_low, other_high = bounds(other)
    return low <= other_high and other_low <= high


def bounds(point: Point) -> tuple[float, float]:
    low = point.quality if point.low is None else point.low
    high = point.quality if point.high is None else point.high
    return low, high


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """`settled` is True where the intervals, seeds included, tell the best shape from every cheaper one. `tied` names
    the cheaper shapes that they do not tell from the best, cheapest first.
    """

    name: str
    best: str
    reason: str
    settled: bool
    tied: tuple[str, ...] = ()


def recommend(
    points: Sequence[Point],
    *,
    quality: str = "score",
    cost: str = "cost",
    show_cost: Callable[[float], str] = lambda cost: f"{cost:,.4g}",
    show_quality: Callable[[float], str] = lambda quality: f"{quality:.1f}",
    seeds_known: bool = True,
) -> Recommendation:
    """Choose the best shape, or the cheapest of those the evidence cannot tell from it.

    `seeds_known` False: the intervals leave out what another seed of training would give, so they settle nothing.

    >>> recommend([Point("a", 1, 58, 55, 61), Point("b", 4, 60, 57, 63)], quality="EM", cost="ms").name
    'a'

    Raises `ValueError` for no points.
    """
    if not points:
        raise ValueError("recommend needs at least one point")
    best = min(points, key=lambda one: (-one.quality, one.cost, one.name))
    cheaper = sorted((one for one in points if one.cost < best.cost), key=lambda one: (one.cost, -one.quality))
    tied = [one for one in cheaper if overlap(one, best)]
    dearer = [one.name for one in points if one.cost >= best.cost and one is not best and overlap(one, best)]
    bare = best.low is None or any(one.low is None for one in cheaper)

    def says(one: Point) -> str:
        if one.low is None or one.high is None:
            return f"{quality} {show_quality(one.quality)}"
        ends = sorted((show_quality(one.low), show_quality(one.high)), key=float)  # a loss turned round is high to low
        return f"{quality} {show_quality(one.quality)}, {' to '.join(ends)}"

    if len(points) == 1:
        reason = f"{best.name} is the only shape measured ({says(best)}); nothing stands beside it to compare."
        return Recommendation(name=best.name, best=best.name, reason=reason, settled=False)
    if not tied:
        doubt = " No interval is known for some of them, so this order is not proven." if bare else ""
        if cheaper:
            reason = (
                f"{best.name} scores best ({says(best)}), and its interval does not reach that of any cheaper shape."
                if not bare
                else f"{best.name} scores best ({says(best)}).{doubt}"
            )
        else:
            reason = f"{best.name} scores best ({says(best)}) and no other shape costs less in {cost}."
        if dearer:
            reason += (
                f" {' and '.join(dearer)} cost more, and the intervals overlap: that {best.name} scores higher is not "
                "shown, only that paying more is not shown to gain anything."
            )
        if not bare and not seeds_known:
            reason += " With one seed for each shape, chance in training is not ruled out."
        return Recommendation(
            name=best.name, best=best.name, reason=reason, settled=not bare and seeds_known and not dearer
        )
    pick = tied[0]
    share = f"{show_cost(pick.cost)} against {show_cost(best.cost)}"
    reason = (
        f"{best.name} scores best ({says(best)}), but {pick.name} costs less ({share}) and the data cannot tell the "
        f"two apart ({says(pick)}): the intervals overlap; more items or seeds would be needed to rank them."
    )
    names = tuple(one.name for one in tied)
    return Recommendation(name=pick.name, best=best.name, reason=reason, settled=False, tied=names)


def over_seeds(
    scores: Mapping[str, Sequence[Measured]], *, least: float = -math.inf, most: float = math.inf
) -> dict[str, Quality]:
    """One `Quality` for each shape from the scores of its seeds; how, is told at the top of this file. No interval
    reaches beyond `least` and `most`, the ends of the metric's scale.

    >>> one = over_seeds({"a": [Measured(50.0, 47.0, 53.0, 100)]})["a"]
    >>> one.low, one.high, one.seeds_known
    (47.0, 53.0, False)
    """
    deviation, freedom = pooled_deviation([[one.value for one in seeds] for seeds in scores.values()])
    found = {name: _quality(seeds, deviation, freedom) for name, seeds in scores.items() if seeds}

    def within(end: float | None) -> float | None:
        return None if end is None else min(max(end, least), most)

    return {name: one._replace(low=within(one.low), high=within(one.high)) for name, one in found.items()}


def _quality(seeds: Sequence[Measured], deviation: float, freedom: int) -> Quality:
    value = math.fsum(one.value for one in seeds) / len(seeds)
    doubt = student(freedom) * deviation / math.sqrt(len(seeds)) if freedom else 0.0
    below = [one.value - one.low for one in seeds if one.low is not None]
    above = [one.high - one.value for one in seeds if one.high is not None]
    low = high = None
    if freedom or (below and above):
        low = value - math.hypot(doubt, _mean(below))
        high = value + math.hypot(doubt, _mean(above))
    items = min((one.items for one in seeds if one.items is not None), default=None)
    return Quality(value, low, high, len(seeds), items, freedom > 0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def pooled_deviation(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups and its degrees of freedom; (0.0, 0) where no group has two values.

    >>> pooled_deviation([[1.0, 3.0], [5.0, 7.0], [9.0]])
    (1.4142135623730951, 2)
    """
    squares, freedom = 0.0, 0
    for group in groups:
        if len(group) > 1:
            mean = math.fsum(group) / len(group)
            squares += math.fsum((value - mean) ** 2 for value in group)
            freedom += len(group) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t: a table to 10 degrees of freedom, then Fisher's expansion around the normal.

    >>> round(student(1), 3), round(student(20), 3), round(student(10**9), 3)
    (12.706, 2.086, 1.96)
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2
