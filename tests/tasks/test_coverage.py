"""Do 95 % intervals hold the truth in 95 of 100 worlds, and do tests cry wolf in 5? Simulated, with fixed seeds.

The quick versions guard the methods; the slow ones measured the tables of docs/statistics.md, whose numbers they print:
`pytest -m slow -s tests/tasks/test_coverage.py`.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
from scipy.stats import binom

from deepnarrow.tasks import metrics
from deepnarrow.tasks.correlation import moments, pearson_percent
from deepnarrow.tasks.resampling import MEAN, OfMeans
from deepnarrow.tasks.significance import compare, difference, exact, interval, over_seeds, wilson

World = Callable[[np.random.Generator, int], np.ndarray]


def overlap(none: float, whole: float) -> tuple[World, float]:
    """Token F1: a share of items 0, a share 1, the others between."""

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        chance, between = generator.random(n), generator.beta(2, 2, n)
        return np.where(chance < none, 0.0, np.where(chance < none + whole, 1.0, between))

    return draw, 100 * (whole + (1 - none - whole) / 2)


def labels(positive: float, right: float) -> tuple[World, float]:
    """Matthews' correlation of a binary task, of a model right at this rate whatever the label."""
    one_hot, predicted = np.eye(3), positive * right + (1 - positive) * (1 - right)

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        true = (generator.random(n) < positive).astype(int)
        found = np.where(generator.random(n) < right, true, 1 - true)
        return np.concatenate([(true == found)[:, None], one_hot[found], one_hot[true]], axis=1)

    means = np.array([right, 1 - predicted, predicted, 0, 1 - positive, positive, 0])
    return draw, float(metrics.matthews_percent(means))


def positives(positive: float, right: float) -> tuple[World, float]:
    predicted = positive * right + (1 - positive) * (1 - right)

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        true = generator.random(n) < positive
        found = np.where(generator.random(n) < right, true, ~true)
        return np.stack([true & found, found, true], axis=1).astype(float)

    return draw, float(metrics.f1_percent(np.array([positive * right, predicted, positive])))


def correlated(rho: float) -> tuple[World, float]:
    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        y, noise = generator.normal(size=(2, n))
        return moments(np.stack([rho * y + sqrt(1 - rho**2) * noise, y], axis=1))

    return draw, 100 * rho


def summaries() -> tuple[World, float]:
    return lambda generator, n: generator.beta(2, 6, n), 25.0


SCORES = {
    "token F1 of 40": (overlap(0.5, 0.3), MEAN),
    "token F1 of 10": (overlap(0.85, 0.05), MEAN),
    "token F1 of 90": (overlap(0.05, 0.85), MEAN),
    "ROUGE of 25": (summaries(), MEAN),
    "Matthews of 56": (labels(0.3, 0.8), OfMeans(metrics.matthews_percent)),
    "F1 of 71": (positives(0.3, 0.8), OfMeans(metrics.f1_percent)),
    "Pearson of 85": (correlated(0.85), OfMeans(pearson_percent)),
}


def held_by_score(name: str, n: int, runs: int, samples: int) -> float:
    (draw, truth), combine = SCORES[name]
    generator = np.random.default_rng(n)
    found = [interval(draw(generator, n), combine, samples=samples, seed=run) for run in range(runs)]
    return sum(one.low <= truth <= one.high for one in found) / runs


def pair_of(kind: str, generator: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two systems to the same items: a fifth of the items answered unlike, a better by `gain` on average."""
    unlike, better = generator.random(n) < 0.2, generator.random(n) < 0.5 + gain / 0.4
    if kind == "accuracy":
        both = (generator.random(n) < 0.6).astype(float)
        return np.where(unlike, better, both).astype(float), np.where(unlike, ~better, both).astype(float)
    base, step = generator.uniform(0.3, 0.7, n), generator.uniform(0.1, 0.3, n) * unlike
    return base + step * np.where(better, 1, 0), base + step * np.where(better, 0, 1)


def held_by_difference(kind: str, n: int, runs: int, samples: int, gain: float = 0.05) -> float:
    generator, held = np.random.default_rng(n), 0
    truth = 100 * gain * (1.0 if kind == "accuracy" else 0.2)
    for run in range(runs):
        a, b = pair_of(kind, generator, n, gain)
        if kind == "accuracy":
            found = compare({"a": [a], "b": [b]}, samples=1)["a", "b"].difference
        else:
            found = difference(a, b, samples=samples, seed=run)
        held += found.low <= truth <= found.high
    return held / runs


def runs_of(
    generator: np.random.Generator, seeds: int, hard: np.ndarray, gain: float, spread: float
) -> list[np.ndarray]:
    """Right or wrong answers of several training runs: items differ in how hard they are, runs in how good."""
    good = generator.normal(gain, spread, seeds)
    return [(generator.random(len(hard)) < np.clip(hard + one, 0, 1)).astype(float) for one in good]


def held_over_seeds(kind: str, seeds: int, spread: float, runs: int, samples: int, n: int = 300) -> float:
    generator, held = np.random.default_rng(seeds), 0
    for run in range(runs):
        hard = generator.uniform(0.3, 0.7, n)
        a = runs_of(generator, seeds, hard, 0.03, spread)
        if kind == "score":
            found, truth = over_seeds(a, samples=samples, seed=run), 53.0
        else:
            b = runs_of(generator, seeds, hard, 0.0, spread)
            found, truth = compare({"a": a, "b": b}, samples=samples, seed=run)["a", "b"].difference, 3.0
        held += found.low <= truth <= found.high
    return held / runs


@pytest.mark.parametrize(("p", "n"), [(p, n) for p in (0.1, 0.3, 0.5, 0.8, 0.9) for n in (50, 100, 300, 1000)])
def test_accuracy(p: float, n: int) -> None:
    """Exactly, by summing over every number of right answers. Clopper and Pearson's never falls short."""
    chance = binom.pmf(np.arange(n + 1), n, p)
    likely = [k for k in range(n + 1) if chance[k] > 1e-9]
    held = sum(chance[k] for k in likely if wilson(k, n).low <= 100 * p <= wilson(k, n).high)
    assert 0.93 < held < 0.971
    assert sum(chance[k] for k in likely if exact(k, n).low <= 100 * p <= exact(k, n).high) > 0.9499


@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str) -> None:
    assert 0.9 <= held_by_score(name, 100, runs=200, samples=200) <= 0.99


@pytest.mark.parametrize("kind", ["accuracy", "overlap"])
def test_differences(kind: str) -> None:
    assert 0.9 <= held_by_difference(kind, 200, runs=200, samples=300) <= 0.99


@pytest.mark.parametrize("kind", ["score", "difference"])
@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_three_seeds(kind: str, spread: float) -> None:
    assert 0.9 <= held_over_seeds(kind, 3, spread, runs=60, samples=200) <= 1.0


def test_resampling_seeds_alone_would_not_do() -> None:
    """What `over_seeds` is for: items alone leave out the seeds, and resampling three of them is not enough."""
    generator, items_only, hierarchical, runs = np.random.default_rng(0), 0, 0, 200
    for _ in range(runs):
        a = np.stack(runs_of(generator, 3, generator.uniform(0.3, 0.7, 300), 0.03, 0.1))
        rows, seeds = generator.integers(0, 300, (300, 300)), generator.integers(0, 3, (300, 3))
        plain = a.mean(axis=0)[rows].mean(axis=1)
        both = a[seeds[:, :, None], rows[:, None, :]].mean(axis=(1, 2))
        for drawn, add in ((plain, "items"), (both, "both")):
            low, high = np.quantile(drawn, [0.025, 0.975])
            items_only += add == "items" and low <= 0.53 <= high
            hierarchical += add == "both" and low <= 0.53 <= high
    assert items_only / runs < 0.6
    assert hierarchical / runs < 0.9


def wolf(kind: str, n: int, runs: int, samples: int) -> float:
    """How often systems that are alike are said to differ."""
    generator, cried = np.random.default_rng(n), 0
    for run in range(runs):
        if kind == "seeds":
            hard = generator.uniform(0.3, 0.7, n)
            systems = {name: runs_of(generator, 3, hard, 0.0, 0.03) for name in "ab"}
        else:
            systems = {name: [one] for name, one in zip("ab", pair_of(kind, generator, n, 0.0), strict=True)}
        cried += compare(systems, samples=samples, seed=run)["a", "b"].p < 0.05
    return cried / runs


@pytest.mark.parametrize("kind", ["accuracy", "overlap", "seeds"])
def test_alike_systems_seldom_differ(kind: str) -> None:
    assert 0.0 < wolf(kind, 200, runs=100, samples=199) <= 0.1


def any_wolf(n: int, runs: int, samples: int, *, corrected: bool) -> float:
    """How often any of the six differences between four systems that are alike is claimed."""
    generator, cried = np.random.default_rng(n), 0
    for run in range(runs):
        hard = generator.uniform(0.2, 0.8, n)
        systems = {name: [np.clip(hard + generator.normal(0, 0.2, n), 0, 1)] for name in "abcd"}
        found = compare(systems, samples=samples, seed=run).values()
        cried += any((one.adjusted if corrected else one.p) < 0.05 for one in found)
    return cried / runs


def test_holm_keeps_the_family_at_its_level() -> None:
    assert any_wolf(50, runs=60, samples=399, corrected=True) <= 0.1
    assert any_wolf(50, runs=60, samples=399, corrected=False) > 0.1


def test_the_items_needed_show_a_difference_four_times_in_five() -> None:
    """So often does the test find it in as many items as `needed` names, drawn from those that named it."""
    generator = np.random.default_rng(5)
    a, b = pair_of("overlap", generator, 200, 0.03)
    found = compare({"a": [a], "b": [b]}, samples=999)["a", "b"]
    assert found.p > 0.05
    assert found.needed is not None
    assert found.needed > 200
    shown = 0
    for run in range(100):
        rows = generator.integers(0, 200, found.needed)
        shown += compare({"a": [a[rows]], "b": [b[rows]]}, samples=399, seed=run)["a", "b"].p < 0.05
    assert 68 <= shown <= 92


WORLDS = 600
SLACK = 0.018  # two standard deviations of a share of 95 % in so many


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100, 300, 1000])
@pytest.mark.parametrize("name", SCORES)
def test_scores_thoroughly(name: str, n: int) -> None:
    held = held_by_score(name, n, runs=WORLDS, samples=500)
    print(f"\n| {name} | {n} | {100 * held:.1f} |")
    assert 0.93 - SLACK <= held <= 0.97 + SLACK


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100, 300, 1000])
@pytest.mark.parametrize("kind", ["accuracy", "overlap"])
def test_differences_thoroughly(kind: str, n: int) -> None:
    held = held_by_difference(kind, n, runs=WORLDS, samples=500)
    print(f"\n| difference, {kind} | {n} | {100 * held:.1f} |")
    assert 0.93 - SLACK <= held <= 0.97 + SLACK


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["score", "difference"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03, 0.1])
def test_seeds_thoroughly(kind: str, seeds: int, spread: float) -> None:
    held = held_over_seeds(kind, seeds, spread, runs=WORLDS, samples=200)
    print(f"\n| {kind}, {seeds} seeds, {100 * spread:.0f} points apart | {100 * held:.1f} |")
    assert 0.93 - SLACK <= held <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("kind", ["accuracy", "overlap", "seeds"])
def test_alike_systems_thoroughly(kind: str, n: int) -> None:
    cried = wolf(kind, n, runs=WORLDS, samples=399)
    print(f"\n| {kind} | {n} | {100 * cried:.1f} |")
    assert 0.01 <= cried <= 0.05 + SLACK


@pytest.mark.slow
def test_holm_thoroughly() -> None:
    cried = any_wolf(100, runs=500, samples=999, corrected=True)
    print(
        f"\n| any of six | 100 | {100 * cried:.1f} |, uncorrected {100 * any_wolf(100, 500, 999, corrected=False):.1f}"
    )
    assert cried <= 0.05 + SLACK
