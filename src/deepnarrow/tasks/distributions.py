"""The two distributions that intervals and tests need, in a page of arithmetic: beta's and Student's.

Both rest on the regularised incomplete beta function, computed by its continued fraction (DLMF 8.17.22, evaluated from
the front by Lentz's method). Quantiles are found by root finding. Nine digits or more.
"""

from collections.abc import Callable
from functools import lru_cache
from math import exp, lgamma, log, log1p

TINY = 1e-300


def beta_below(x: float, a: float, b: float) -> float:
    """P(X <= x) for X of Beta(a, b).

    >>> round(beta_below(0.5, 2, 2), 12), round(beta_below(0.2, 1, 3), 12)
    (0.5, 0.488)
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction is quick on one side of the mean; mirror into it
        return 1 - beta_below(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(100_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / (1 + term * lower or TINY)
        upper = 1 + term / upper or TINY
        value *= upper * lower
        if abs(1 - upper * lower) < 1e-14:
            break
    return front * (value - 1)


def beta_quantile(share: float, a: float, b: float) -> float:
    """The x with P(X <= x) = share.

    >>> round(beta_quantile(0.95, 1, 1), 12)
    0.95
    """
    return root(lambda x: beta_below(x, a, b) - share, 0.0, 1.0)


def student_beyond(t: float, df: float) -> float:
    """P(|T| >= |t|) with df degrees of freedom: a two-sided p.

    >>> round(student_beyond(12.7062047, 1), 6)
    0.05
    """
    return beta_below(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=4096)
def student_quantile(beyond: float, df: float) -> float:
    """The t with P(|T| >= t) = beyond: 1.96 for 0.05 and endless degrees of freedom.

    >>> round(student_quantile(0.05, 2), 4), round(student_quantile(0.05, 1e6), 4)
    (4.3027, 1.96)
    """
    if beyond >= 1:
        return 0.0
    most = 1.0
    while student_beyond(most, df) > beyond:
        most *= 10
    return exp(root(lambda power: log(beyond / max(student_beyond(exp(power), df), TINY)), -40.0, log(most)))


def root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function passes 0: by the chord, halving the weight of an end that stays (Illinois), and every
    third time by halving, so that no function can stall it."""
    at_low, at_high, kept, x = rising(low), rising(high), 0, high
    if at_low >= 0 or at_high <= 0:
        return low if at_low >= 0 else high
    for step in range(300):
        last, x = x, (low + high) / 2 if step % 3 == 2 else (low * at_high - high * at_low) / (at_high - at_low)
        value = rising(x)
        if value == 0 or abs(x - last) <= 1e-13 * abs(x) or high - low <= 1e-13 * max(abs(low), abs(high)):
            break
        if value > 0:
            high, at_high = x, value
            at_low *= 0.5 if kept > 0 else 1.0
            kept = 1
        else:
            low, at_low = x, value
            at_high *= 0.5 if kept < 0 else 1.0
            kept = -1
    return x
