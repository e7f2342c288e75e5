"""Names in plots never cover each other, whatever the points."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.measure.labels import Box, place, short_names, spread

FRAME = Box(0, 0, 400, 300)
spots = st.lists(st.tuples(st.integers(5, 395), st.integers(5, 295)), min_size=1, max_size=14)


@given(spots)
def test_placed_names_touch_neither_each_other_nor_the_points_nor_the_edge(points: list[tuple[int, int]]) -> None:
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    placed = [spot for spot in place(points, [(70, 13)] * len(points), frame=FRAME, hard=marks) if spot]
    for at, spot in enumerate(placed):
        assert spot.box.inside(FRAME)
        assert not any(spot.box.overlap(mark) for mark in marks)
        assert not any(spot.box.overlap(other.box) for other in placed[at + 1 :])


def test_a_lone_name_stands_close_and_to_the_right() -> None:
    (spot,) = place([(100, 100)], [(50, 12)], frame=FRAME)
    assert spot is not None
    assert not spot.tied
    assert spot.box.left > 100


def test_a_name_without_room_is_left_out() -> None:
    assert place([(20, 20)], [(500, 12)], frame=FRAME) == [None]


def test_a_bar_is_avoided() -> None:
    bar = Box(97, 60, 103, 140)
    (spot,) = place([(100, 100)], [(50, 12)], frame=FRAME, soft=[bar])
    assert spot is not None
    assert not spot.box.overlap(bar)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_spread_keeps_the_gap_the_order_and_the_bounds(wanted: list[float]) -> None:
    placed = spread(wanted, gap=10, low=0, high=100)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    ranked = [placed[at] for at in order]
    assert all(high - low >= 10 - 1e-9 for low, high in pairwise(ranked))
    assert min(placed) >= -1e-9
    assert max(placed) <= 100 + 1e-9


def test_spread_moves_nothing_that_has_room() -> None:
    assert spread([10.0, 50.0, 90.0], gap=10, low=0, high=100) == [10.0, 50.0, 90.0]


def test_short_names_stay_different() -> None:
    assert short_names(["tiny-v4096"]) == {"tiny-v4096": "tiny-v4096"}
    assert short_names(["tiny-dm128-nl2", "tiny-dm128-nl4"])["tiny-dm128-nl2"] == "tiny-nl2"
    same = ["tiny-nl2", "tiny-nl2-nl2"]
    assert len(set(short_names(same).values())) == 2
