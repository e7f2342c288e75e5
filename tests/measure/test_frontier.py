"""The frontier against hand cases and brute force; recommendations that say what is not known; honest intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deepnarrow.measure.frontier import (
    Measured,
    Point,
    dominates,
    frontier,
    over_seeds,
    overlap,
    pooled_deviation,
    recommend,
    student,
)


def names(points: list[Point]) -> list[str]:
    return [point.name for point in points]


def test_hand_cases() -> None:
    cheap, bad, good = Point("cheap", 1, 50), Point("bad", 2, 40), Point("good", 3, 60)
    assert names(frontier([good, bad, cheap])) == ["cheap", "good"]
    assert frontier([]) == []
    assert names(frontier([bad])) == ["bad"]


def test_equal_cost_keeps_the_better_and_equal_points_stay_together() -> None:
    assert names(frontier([Point("a", 1, 50), Point("b", 1, 60)])) == ["b"]
    assert names(frontier([Point("a", 1, 60), Point("b", 2, 60)])) == ["a"]
    assert names(frontier([Point("b", 1, 60), Point("a", 1, 60)])) == ["a", "b"]


planes = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(planes)
def test_the_frontier_is_what_a_sweep_finds(plane: list[tuple[int, int]]) -> None:
    points = [Point(str(at), cost, quality) for at, (cost, quality) in enumerate(plane)]
    best = frontier(points)
    swept, highest = set(), -1.0
    for cost in sorted({point.cost for point in points}):
        top = max(point.quality for point in points if point.cost == cost)
        if top > highest:
            swept |= {point.name for point in points if point.cost == cost and point.quality == top}
            highest = top
    assert set(names(best)) == swept
    assert all(any(dominates(one, other) for one in best) for other in points if other not in best)
    assert [point.cost for point in best] == sorted(point.cost for point in best)


def test_a_clear_winner_is_settled() -> None:
    found = recommend([Point("a", 1, 50, 48, 52), Point("b", 4, 60, 57, 63)], quality="EM", cost="ms")
    assert (found.name, found.best, found.settled, found.tied) == ("b", "b", True, ())
    assert "b scores best (EM 60.0, 57.0 to 63.0)" in found.reason


def test_overlap_recommends_the_cheaper_and_says_so() -> None:
    points = [
        Point("a", 1, 40, 38, 42),
        Point("b", 2, 58, 55, 61),
        Point("c", 4, 60, 57, 63),
        Point("d", 3, 59, 56, 62),
    ]
    found = recommend(points, quality="EM", cost="ms", show_cost=lambda cost: f"{cost} ms")
    assert (found.name, found.best, found.settled) == ("b", "c", False)
    assert found.tied == ("b", "d")
    assert "2 ms against 4 ms" in found.reason
    assert "intervals overlap; more items or seeds would be needed" in found.reason


def test_a_costlier_shape_that_overlaps_does_not_change_the_choice_but_leaves_it_open() -> None:
    found = recommend([Point("a", 1, 60, 57, 63), Point("b", 4, 59, 56, 62)], cost="ms")
    assert (found.name, found.settled) == ("a", False)
    assert "no other shape costs less" in found.reason


def test_touching_intervals_overlap() -> None:
    assert overlap(Point("a", 1, 50, 48, 52), Point("b", 1, 54, 52, 56))
    assert not overlap(Point("a", 1, 50, 48, 51.9), Point("b", 1, 54, 52, 56))


def test_without_intervals_nothing_is_proven() -> None:
    found = recommend([Point("a", 1, 50), Point("b", 4, 60)])
    assert (found.name, found.settled) == ("b", False)
    assert "not proven" in found.reason


def test_one_seed_settles_nothing() -> None:
    points = [Point("a", 1, 50, 48, 52), Point("b", 4, 60, 57, 63)]
    found = recommend(points, seeds_known=False)
    assert (found.name, found.settled) == ("b", False)
    assert "chance in training is not ruled out" in found.reason


def test_one_shape_alone_is_no_comparison() -> None:
    found = recommend([Point("a", 1, 50, 48, 52)])
    assert (found.name, found.settled) == ("a", False)
    assert "only shape" in found.reason
    with pytest.raises(ValueError, match="at least one"):
        recommend([])


def test_a_loss_turned_round_reads_low_to_high() -> None:
    points = [Point("a", 1, -3.2, -3.3, -3.1), Point("b", 2, -2.9, -2.95, -2.85)]
    found = recommend(points, quality="loss", show_quality=lambda value: f"{abs(value):.2f}")
    assert "loss 2.90, 2.85 to 2.95" in found.reason


def test_student_is_scipys() -> None:
    for freedom in (1, 2, 5, 10, 11, 15, 30, 100, 10_000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_pooled_deviation_by_hand() -> None:
    # squares 2 and 8 over 1 + 2 degrees of freedom; a group of one says nothing
    deviation, freedom = pooled_deviation([[1.0, 3.0], [4.0, 6.0, 8.0], [5.0]])
    assert freedom == 3
    assert deviation == pytest.approx((10 / 3) ** 0.5)
    assert pooled_deviation([[1.0], []]) == (0.0, 0)


def test_seeds_by_hand() -> None:
    one = over_seeds({"a": [Measured(50, 47, 54, 100), Measured(52, 48, 55, 90)]})["a"]
    assert (one.value, one.seeds, one.items, one.seeds_known) == (51, 2, 90, True)
    doubt = 12.706 * 2**0.5 / 2**0.5
    assert one.low == pytest.approx(51 - (doubt**2 + 3.5**2) ** 0.5)
    assert one.high == pytest.approx(51 + (doubt**2 + 3.5**2) ** 0.5)


def test_a_single_seed_borrows_the_spread_of_the_others() -> None:
    found = over_seeds(
        {"a": [Measured(50, 49, 51, 10)], "b": [Measured(60 + d, 59 + d, 61 + d, 10) for d in (-2, 0, 2)]}
    )
    assert found["a"].seeds_known
    assert found["a"].high is not None
    assert found["a"].high - 50 > 4.303 * 2 * 0.99, "one seed is not surer than three"


def test_unknown_intervals_stay_unknown_with_one_seed() -> None:
    one = over_seeds({"a": [Measured(3.1, None, None, None)]})["a"]
    assert (one.low, one.high, one.seeds_known) == (None, None, False)
    assert over_seeds({"a": []}) == {}


def test_intervals_cover_what_they_promise() -> None:
    """Draw items and seeds over and over: the true score lies within at least as often as 95 % promise, and the
    intervals are not absurdly wide.
    """
    draw = np.random.default_rng(0)
    items, seeds, shapes, rounds = 400, 3, 4, 300
    covered, widths = [], []
    for _ in range(rounds):
        hard = draw.normal(0, 0.35, items)  # shared by all seeds: some items are hard for all
        scores = {}
        for shape in range(shapes):
            runs = []
            for luck in draw.normal(0, 0.02, seeds):
                right = draw.random(items) < np.clip(0.6 + luck + hard, 0, 1)
                error = 1.96 * right.std() / items**0.5
                runs.append(Measured(right.mean(), right.mean() - error, right.mean() + error, items))
            scores[str(shape)] = runs
        truth = np.clip(0.6 + np.random.default_rng(1).normal(0, 0.35, 100_000), 0, 1).mean()
        for one in over_seeds(scores).values():
            assert one.low is not None
            assert one.high is not None
            covered.append(one.low <= truth <= one.high)
            widths.append(one.high - one.low)
    assert np.mean(covered) >= 0.95
    assert np.mean(widths) < 0.2


def test_the_cheapest_best_shape_does_not_claim_more_than_the_intervals_show() -> None:
    found = recommend([Point("a", 1, 60, 57, 63), Point("b", 4, 59, 56, 62), Point("c", 5, 40, 37, 43)], cost="ms")
    assert found.name == found.best == "a"
    assert "b cost more, and the intervals overlap" in found.reason
    assert not found.settled
    assert recommend([Point("a", 1, 60, 57, 63), Point("c", 5, 40, 37, 43)], cost="ms").settled


def test_no_interval_leaves_the_scale() -> None:
    scores = {"a": [Measured(0.2, 0.0, 0.9, 50), Measured(0.9, 0.1, 1.5, 50)]}
    wide, cut = over_seeds(scores)["a"], over_seeds(scores, least=0.0, most=100.0)["a"]
    assert wide.low is not None
    assert wide.low < 0.0
    assert cut.low == 0.0
    assert cut.high == wide.high
