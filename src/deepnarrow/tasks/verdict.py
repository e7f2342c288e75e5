"""A comparison in one sentence, for people: who is better, by how much, and whether to believe it."""

from deepnarrow.tasks.significance import Comparison


def sentence(a: str, b: str, what: str, comparison: Comparison, *, level: float = 0.95) -> str:
    """Say what `comparison` (of a less b) found; the winner is named first. `what` is the task and its metric.

    The verdict rests on the corrected p; the interval is that of one comparison.

    >>> from deepnarrow.tasks.significance import Interval
    >>> won = Comparison(Interval(-2.1, -3.9, -0.4, 632), 0.0098, 0.0098, "exact McNemar", 632, (1, 1), None)
    >>> sentence("B", "A", "squad exact_match", won)
    'A beats B on squad exact_match by 2.1 [0.4, 3.9], p = 0.01, n = 632'
    >>> even = Comparison(Interval(0.6, -1.1, 2.3, 632), 0.48, 0.48, "exact McNemar", 632, (1, 1), 13_777)
    >>> sentence("A", "B", "squad exact_match", even)
    'A and B are not distinguishable on squad exact_match: 0.6 [-1.1, 2.3], p = 0.48, n = 632; about 14,000 items would be needed'
    """  # noqa: E501
    if comparison.alike:
        return f"{a} and {b} score every item alike on {what}{conditions(comparison)}"
    found = comparison.difference
    if found.value < 0:
        a, b = b, a
        found = found._replace(value=-found.value, low=-found.high, high=-found.low)
    size = f"{points(found.value)} [{points(found.low)}, {points(found.high)}]"
    facts = f"{chance(comparison.adjusted)}{conditions(comparison)}"
    if comparison.adjusted < 1 - level and found.value:
        return f"{a} beats {b} on {what} by {size}, {facts}"
    if not found.value and comparison.p == 1:
        said = f"{a} and {b} score the same on {what}: {size}, {facts}"
    else:
        said = f"{a} and {b} are not distinguishable on {what}: {size}, {facts}"
    if comparison.needed:
        return f"{said}; about {rounded(comparison.needed):,} items would be needed"
    return f"{said}; more seeds would be needed, not items" if found.value and max(comparison.seeds) > 1 else said


def conditions(comparison: Comparison) -> str:
    seeds = "" if comparison.seeds == (1, 1) else " over {} and {} seeds".format(*comparison.seeds)
    corrected = f" (corrected for {comparison.together} comparisons)" if comparison.together > 1 else ""
    return f"{corrected}, n = {comparison.n}{seeds}"


def points(value: float) -> str:
    """One decimal, or as many as show that it is not 0.

    >>> points(2.149), points(-0.04), points(0.0), points(-7e-15)
    ('2.1', '-0.04', '0.0', '0.0')
    """
    value = round(value, 9) + 0.0  # what is left below is rounding
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.05 else f"{value:.1g}"


def chance(p: float) -> str:
    """
    >>> chance(0.4812), chance(0.0098), chance(0.0012), chance(0.00003)
    ('p = 0.48', 'p = 0.01', 'p = 0.001', 'p < 0.001')
    """
    if p < 0.0005:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.0095 and round(p, 2) != 0.05 else f"p = {p:.3f}"


def rounded(items: int) -> int:
    """To two digits: the estimate is worth no more.

    >>> rounded(13_777), rounded(86)
    (14000, 86)
    """
    below = 10 ** max(len(str(items)) - 2, 0)
    return round(items / below) * below
