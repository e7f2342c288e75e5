"""How far a score may be trusted, and whether two differ: intervals and tests over the items they were measured on.

`interval` and `difference` speak of the choice of items alone: what the score would have been on other items drawn
alike. `over_seeds` and `compare` also count the training seed as chance, where several runs are given.

Which method where, and how often each holds what it promises, was found by simulation (docs/statistics.md):

- scores whose items are all right or wrong: Wilson's interval (Wilson 1927). The bootstrap of 0 right answers out of
  1,000 is the empty claim [0, 0], Wilson's is [0, 0.38].
- other scores: the bias-corrected and accelerated bootstrap, BCa (Efron 1987), because plain percentiles of skewed
  scores, such as a low F1, miss the truth too often on one side; its quantiles expanded for few items (Hesterberg
  2015, arXiv:1411.5279, section 5.2).
- differences: expanded percentiles without BCa, whose acceleration is unsteady where most items are ties.
- seeds: a t interval for their part, since the standard deviation of three runs is hardly known.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil, exp, log, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.tasks.distributions import beta_quantile, root, student_beyond, student_quantile
from deepnarrow.tasks.resampling import (
    MEAN,
    Combine,
    acceleration,
    at_least_one,
    coins,
    columns,
    resampled,
    resamples,
    scores,
    width,
)

POWER = 0.8  # the chance to see a difference that is there, for which `Comparison.needed` asks
NORMAL = NormalDist()


class Interval(NamedTuple):
    """A score with the bounds of its interval, and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """Two systems on the same items: how far a is above b, and whether that may be chance.

    difference  a - b in points, its interval paired over items and, with several seeds, over seeds too
    p           two-sided
    adjusted    p after Holm's correction over the comparisons made together; p itself for one
    test        its name
    n           items, or groups of them
    seeds       runs of a and of b
    needed      items at which a difference of this size would show; None where it already does, where there is none,
                and where no number of items would do because the seeds differ too much
    together    comparisons made together, over which p was corrected
    alike       every item is scored alike on both sides
    """

    difference: Interval
    p: float
    adjusted: float
    test: str
    n: int
    seeds: tuple[int, int]
    needed: int | None
    together: int = 1
    alike: bool = False


def interval(
    items: np.ndarray, combine: Combine = MEAN, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval to print: Wilson's where every item is 0 or 1 and the score is their mean, else the bootstrap.

    Wilson's also serves scores between 0 and 1 that happen to be all 0 or 1: it is then too wide, never too narrow,
    since no variable on [0, 1] varies more than a coin of the same mean.
    """
    items = at_least_one(items)
    if combine == MEAN and items.ndim == 1 and np.isin(items, (0.0, 1.0)).all():
        return wilson(int(items.sum()), len(items), level=level)
    return bootstrap(items, combine, samples=samples, seed=seed, level=level)


def bootstrap(
    items: np.ndarray, combine: Combine = MEAN, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """BCa bootstrap: score `samples` resamples of the items, drawn with replacement, and take corrected quantiles.

    `items` is [n] or [n, k]; `combine` takes such an array to one score. The same seed gives the same interval. One
    item, or items all alike, give an interval of no width. No items are a `UserError`.

    >>> found = bootstrap(np.array([0.0, 0.5, 1.0, 0.5] * 25))
    >>> found.value, found.low < 50 < found.high, found.n
    (50.0, True, 100)
    """
    items = at_least_one(items)
    value = float(combine(items))
    if (items == items[:1]).all():
        return Interval(value, value, value, len(items))
    drawn = np.concatenate(
        [scores(items, combine, rows) for rows in resamples(len(items), width(items), samples, seed)]
    )
    low, high = quantiles(drawn, corrected(drawn, value, acceleration(items, combine), len(items), level))
    return Interval(value, min(low, value), max(high, value), len(items))


def resampled_median(
    items: np.ndarray, combine: Combine = MEAN, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """What `rouge-score`'s bootstrap aggregator reports, and so T5's ROUGE: the median of the resamples for the score,
    plain percentiles for its bounds. It is the mean, but for noise in the second decimal.
    """
    items = at_least_one(items)
    drawn = np.concatenate([scored[0] for (scored,) in resampled(((items,),), combine, samples, seed)])
    low, middle, high = np.quantile(drawn, [0.5 - checked(level) / 2, 0.5, 0.5 + level / 2])
    return Interval(float(middle), float(low), float(high), len(items))


def difference(
    items_a: np.ndarray,
    items_b: np.ndarray,
    combine: Combine = MEAN,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Paired bootstrap of score a minus score b, where item i of both is the same question; expanded percentiles.

    What both find hard cancels, so this is sharper than laying two intervals side by side: where it excludes 0, the
    models differ on such items.

    >>> difference(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0]))
    Interval(value=100.0, low=100.0, high=100.0, n=3)
    """
    a, b = at_least_one(items_a), at_least_one(items_b)
    if len(a) != len(b):
        raise UserError(f"a paired comparison needs the same items on both sides: {len(a)} and {len(b)} were given")
    value, drawn, _ = over(((a,), (b,)), combine, samples, seed)
    low, high = quantiles(drawn, expanded(len(a), level))
    return Interval(value, low, high, len(a))


def wilson(right: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, in percent.

    >>> round(wilson(0, 1000).high, 2)
    0.38
    """
    if n < 1 or not 0 <= right <= n:
        raise UserError(f"{right} right out of {n} is no share; at least one item is needed")
    z = NORMAL.inv_cdf(0.5 + checked(level) / 2)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else 100 * (centre - half)
    high = 100.0 if right == n else 100 * (centre + half)
    return Interval(100 * share, low, high, n)


def exact(right: int, n: int, *, level: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of a share, in percent (1934): never too narrow, and so wider than Wilson's.

    >>> found = exact(0, 1000)
    >>> round(found.low, 2), round(found.high, 2)
    (0.0, 0.37)
    """
    if n < 1 or not 0 <= right <= n:
        raise UserError(f"{right} right out of {n} is no share; at least one item is needed")
    tail = (1 - checked(level)) / 2
    low = 100 * beta_quantile(tail, right, n - right + 1) if right else 0.0
    high = 100 * beta_quantile(1 - tail, right + 1, n - right) if right < n else 100.0
    return Interval(100 * right / n, low, high, n)


def paired_shares(a: np.ndarray, b: np.ndarray, *, level: float = 0.95) -> Interval:
    """Difference of two shares of right answers on the same items (Bonett and Price 2012), in points.

    One imagined disagreement is added each way, so that systems which happen to agree on every item of few are not
    said to be equal for certain.
    """
    n, better, worse = len(a), float((a > b).sum()), float((a < b).sum())
    up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = 100 * NORMAL.inv_cdf(0.5 + checked(level) / 2) * sqrt((up + down - (up - down) ** 2) / (n + 2))
    value, centre = 100 * (better - worse) / n, 100 * (up - down)
    return Interval(value, max(centre - half, -100.0), min(centre + half, 100.0), n)


def over_seeds(
    items: Sequence[np.ndarray],
    combine: Combine = MEAN,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean score of several runs on the same items, with items and training seeds in its interval.

    The interval of the items and a t interval of the seeds are joined as independent errors are, each side by itself
    (Zou and Donner 2008). Resampling the seeds as well would be too narrow: of three runs it sees two thirds of their
    variance, and does not know how little three runs say of it. One run has the plain `interval`.

    >>> runs = [np.array([1.0, 0.0, 1.0, 1.0] * 50), np.array([1.0, 0.0, 0.0, 1.0] * 50)]
    >>> over_seeds(runs).value, over_seeds(runs[:1]) == interval(runs[0])
    (62.5, True)
    """
    runs = same_items("the runs", items)
    if len(runs) == 1:
        return interval(runs[0], combine, samples=samples, seed=seed, level=level)
    value, drawn, (spread,) = over((runs,), combine, samples, seed)
    first, n = runs[0], len(runs[0])
    if all((one == first[:1]).all() for one in runs):
        low, high = interval(first, combine, level=level)[1:3]
    elif combine == MEAN:
        mean = np.mean(runs, axis=0)
        low, high = quantiles(drawn, corrected(drawn, value, acceleration(mean, combine), n, level))
    else:
        low, high = quantiles(drawn, expanded(n, level))
    between = Between.of((spread,))
    within = combine == MEAN and all(((one >= 0) & (one <= 1)).all() for one in runs)  # a share: 0 to 100
    found = between.widened(Interval(value, low, high, n), level)
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 100.0)) if within else found


def compare(
    systems: Mapping[str, Sequence[np.ndarray]],
    combine: Combine = MEAN,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[tuple[str, str], Comparison]:
    """Every pair of systems on the same items, with Holm's correction over all pairs.

    `systems` holds, by name, one array of items [n] or [n, k] for each training seed. Keys of the result are pairs of
    names, in the order given.

    >>> a, b = np.array([1.0, 1.0, 0.0, 1.0] * 50), np.array([1.0, 0.0, 0.0, 1.0] * 50)
    >>> found = compare({"a": [a], "b": [b]})["a", "b"]
    >>> found.difference.value, found.test, found.p < 0.001, found.needed
    (25.0, 'exact McNemar', True, None)
    """
    if len(systems) < 2:
        raise UserError(f"a comparison needs two systems or more; {len(systems)} given")
    runs = {name: same_items(name, items) for name, items in systems.items()}
    sizes = {name: len(one[0]) for name, one in runs.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise UserError(f"a paired comparison needs the same items on all sides; given are {counts}")
    pairs = list(combinations(runs, 2))
    found = [against(runs[a], runs[b], combine, samples, seed, level) for a, b in pairs]
    adjusted = holm([one.p for one, _ in found])
    rank = np.argsort(np.argsort([one.p for one, _ in found], kind="stable"), kind="stable")
    done = {}
    for pair, (one, spread), p, place in zip(pairs, found, adjusted, rank, strict=True):
        share = (1 - level) / (len(pairs) - int(place))  # the p that Holm asks of this one
        needed = None if p < 1 - level else items_needed(one.difference.value, one.n, spread, share)
        a, b = (runs[name] for name in pair)
        alike = len(a) == len(b) and all(map(np.array_equal, a, b))
        done[pair] = one._replace(adjusted=p, needed=needed, together=len(pairs), alike=alike)
    return done


def against(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], combine: Combine, samples: int, seed: int, level: float
) -> tuple[Comparison, tuple[float, "Between"]]:
    """One comparison, not yet corrected, and the variance of its difference: by items, and between seeds."""
    n, seeds = len(a[0]), (len(a), len(b))
    if seeds == (1, 1):
        one, other = a[0], b[0]
        if combine == MEAN and all(items.ndim == 1 and np.isin(items, (0.0, 1.0)).all() for items in (one, other)):
            p, test = mcnemar(one, other), "exact McNemar"
            found, variance = paired_shares(one, other, level=level), 1e4 * float((one - other).var()) / n
        else:
            p, test = randomisation(one, other, combine, samples=samples, seed=seed), "approximate randomisation"
            value, drawn, _ = over((a, b), combine, samples, seed)
            low, high = quantiles(drawn, expanded(n, level))
            found, variance = Interval(value, low, high, n), float(drawn.var())
        return Comparison(found, p, p, test, n, seeds, None), (variance, Between(0.0, 1.0))
    value, drawn, spreads = over((a, b), combine, samples, seed)
    low, high = quantiles(drawn, expanded(n, level))
    between, variance = Between.of(spreads), float(drawn.var()) * n / max(n - 1, 1)
    found = between.widened(Interval(value, low, high, n), level)
    p = max(between.p(value, variance, n), 0.5 ** min(n - 1, 1000))  # n items all one way: swaps could say no more
    return Comparison(found, p, p, "t over seeds and items", n, seeds, None), (variance, between)


class Spread(NamedTuple):
    """Runs of one system: how many, the variance of their scores, and the part of it that the choice of items made."""

    runs: int
    variance: float
    noise: float


class Between(NamedTuple):
    """The part of a score's variance, or a difference's, that the training seeds make, and its degrees of freedom."""

    variance: float
    df: float

    @classmethod
    def of(cls, spreads: Sequence[Spread]) -> "Between":
        """Of one system or two; degrees of freedom by Welch and Satterthwaite.

        A system with a single run is taken to vary as the other does: with its own unknown, 0 would be a guess, and
        the boldest one.
        """
        known = [one for one in spreads if one.runs > 1]
        if not known:
            return cls(0.0, 1.0)
        scale = {id(one): 1 / one.runs for one in known}
        for one in spreads:
            if one.runs == 1:
                scale[id(known[0])] += 1.0
        raw = [one.variance * scale[id(one)] for one in known]
        true = [max(one.variance - one.noise, 0.0) * scale[id(one)] for one in known]
        below = sum(part**2 / (one.runs - 1) for part, one in zip(raw, known, strict=True))
        return cls(sum(true), sum(raw) ** 2 / below if below > 0 else 1.0)

    def widened(self, found: Interval, level: float) -> Interval:
        """An interval over items, with the seeds' part joined to each side."""
        if self.variance == 0:
            return found
        seeds = student_quantile(1 - checked(level), self.df) ** 2 * self.variance
        low = found.value - sqrt((found.value - found.low) ** 2 + seeds)
        return found._replace(low=low, high=found.value + sqrt((found.high - found.value) ** 2 + seeds))

    def p(self, value: float, items: float, n: int) -> float:
        """Where an interval of that kind would just touch 0; `items` is the variance over items."""
        if self.variance == 0:
            return student_beyond(value / sqrt(items), n - 1) if items > 0 and n > 1 else float(value == 0)
        if value == 0:
            return 1.0

        def short(power: float) -> float:
            p = exp(power)
            half = self.variance * student_quantile(p, self.df) ** 2
            return value**2 - half - (items * student_quantile(p, n - 1) ** 2 if n > 1 else 0.0)

        return exp(root(short, log(1e-12), 0.0))


def over(
    sides: Sequence[Sequence[np.ndarray]], combine: Combine, samples: int, seed: int
) -> tuple[float, np.ndarray, tuple[Spread, ...]]:
    """The mean score over one side's runs, or the first's less the second's: its value, resamples, the runs' spread.

    All runs of both sides are resampled by the same rows. The noise is how far apart resampling drives runs of a side.
    """
    signs = (1.0, -1.0)
    whole = [np.array([float(combine(one)) for one in side]) for side in sides]
    drawn: list[np.ndarray] = []
    apart: list[list[np.ndarray]] = [[] for _ in sides]
    for scored in resampled(sides, combine, samples, seed):
        means = [each.mean(axis=0) for each in scored]
        drawn.append(sum(sign * mean for sign, mean in zip(signs, means, strict=False)))
        for parts, each, mean in zip(apart, scored, means, strict=True):
            parts.append(each - mean)
    spreads = []
    for each, parts in zip(whole, apart, strict=True):
        runs = len(each)
        noise = np.concatenate(parts, axis=1).var(axis=1).sum() / (runs - 1) if runs > 1 else 0.0
        spreads.append(Spread(runs, float(each.var(ddof=1)) if runs > 1 else 0.0, float(noise)))
    value = sum(sign * float(each.mean()) for sign, each in zip(signs, whole, strict=False))
    return value, np.concatenate(drawn), tuple(spreads)


def randomisation(
    a: np.ndarray, b: np.ndarray, combine: Combine = MEAN, *, samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of approximate randomisation (Noreen 1989): how often a difference as large arises from swapping.

    If the systems were alike, the two answers to an item could change places. (1 + count) / (1 + samples), so it is
    never 0, and the test is exact at any level.

    >>> randomisation(np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2, 0.3]), samples=999) > 0.2  # 3 items cannot tell
    True
    """
    a, b = same_items("the systems", (a, b))
    n = len(a)
    seen = abs(float(combine(a)) - float(combine(b))) * (1 - 1e-12) - 1e-12  # ties by rounding count as ties
    count = 0
    if combine == MEAN:
        gains = (100 / n) * (columns(a) - columns(b))[:, 0]
        gains = gains[gains != 0]  # where both answer alike, a swap changes nothing
        for swap in coins(len(gains), 1, samples, seed):
            count += int((np.abs(gains.sum() - 2 * (swap @ gains)) >= seen).sum())
        return (1 + count) / (1 + samples)
    both, own, other = np.concatenate([a, b]), np.arange(n), np.arange(n, 2 * n)
    for swap in coins(n, 2 * width(a), samples, seed):
        one = scores(both, combine, np.where(swap, other, own))
        count += int((np.abs(one - scores(both, combine, np.where(swap, own, other))) >= seen).sum())
    return (1 + count) / (1 + samples)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test: of the items that one alone has right, is half each way plausible?

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0]))
    0.0625
    """
    better, worse = int((a > b).sum()), int((a < b).sum())
    n, ways, term = better + worse, 0, 1
    for place in range(min(better, worse) + 1):
        ways += term
        term = term * (n - place) // (place + 1)
    return min(1.0, 2 * ways / 2**n)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the chance of any false claim among all stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    done, floor = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        floor = max(floor, min(1.0, (len(ps) - rank) * ps[place]))
        done[place] = floor
    return done


def items_needed(value: float, n: int, spread: tuple[float, Between], level: float) -> int | None:
    """Items at which a difference of this size has 80 % power at a two-sided level, from its paired variance.

    None where there is no difference, and where the seeds' variance alone would hide it.
    """
    variance, between = spread
    reach = NORMAL.inv_cdf(1 - level / 2) + NORMAL.inv_cdf(POWER)
    left = (value / reach) ** 2 - between.variance
    return max(n + 1, ceil(n * variance / left)) if value and left > 0 else None


def same_items(what: str, items: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    runs = tuple(at_least_one(one) for one in items)
    if len({one.shape for one in runs}) != 1:
        shapes = ", ".join(str(one.shape) for one in runs) or "none"
        raise UserError(f"a paired comparison needs the same items in all runs of {what}; their shapes are {shapes}")
    return runs


def expanded(n: int, level: float) -> tuple[float, float]:
    """The quantiles to take of resamples so that few items get the width that Student's t would give them.

    >>> [round(share, 4) for share in expanded(20, 0.95)], [round(share, 4) for share in expanded(10_000, 0.95)]
    ([0.0159, 0.9841], [0.025, 0.975])
    """
    if n < 2:
        return 0.5 - checked(level) / 2, 0.5 + level / 2
    low = NORMAL.cdf(-sqrt(n / (n - 1)) * student_quantile(1 - checked(level), n - 1))
    low = max(low, 1e-9)  # two items have no quantile wide enough
    return low, 1 - low


def quantiles(drawn: np.ndarray, shares: Sequence[float]) -> tuple[float, float]:
    """Two quantiles, as the (samples + 1) * share-th resample: of few resamples, others hold a little too little."""
    low, high = np.quantile(drawn, shares, method="weibull")
    return float(low), float(high)


def corrected(drawn: np.ndarray, value: float, acceleration: float, n: int, level: float) -> list[float]:
    """BCa's quantiles: moved by how far the resamples lie off the score, and by how their spread changes with it."""
    below = float((drawn < value).mean() + (drawn == value).mean() / 2)
    off = NORMAL.inv_cdf(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn))) if len(drawn) > 1 else 0.0
    shares = []
    for share in expanded(n, level):
        z = off + NORMAL.inv_cdf(share)
        shares.append(NORMAL.cdf(off + z / max(1 - acceleration * z, 0.1)))
    return shares


def checked(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"a confidence level lies between 0 and 1, as 0.95 does; {level} was given")
    return level
