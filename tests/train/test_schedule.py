import math

import pytest

from deepnarrow.train.config import Config
from deepnarrow.train.schedule import rate


def config(**values: object) -> Config:
    return Config.from_json({"shape": "tiny", "steps": 100, "batch": 1, "input_length": 8, "warmup": 0, **values})


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01), (9_999, 0.01), (10_000, 0.01), (40_000, 0.005), (524_287, 0.0013810693)],  # 1 / sqrt(524,287)
)
def test_inverse_square_root_is_flat_then_falls(step: int, expected: float) -> None:
    t5 = config(schedule="inverse_sqrt", learning_rate=1.0, warmup=10_000, steps=524_288)
    assert rate(t5, step) == pytest.approx(expected, rel=1e-6)


def test_inverse_square_root_without_warmup_starts_at_the_base() -> None:
    assert [rate(config(schedule="inverse_sqrt", learning_rate=0.5), step) for step in (0, 1, 4)] == [0.5, 0.5, 0.25]


def test_constant_rises_in_its_warmup_and_stays() -> None:
    flat = config(schedule="constant", learning_rate=0.01, warmup=10)
    assert [rate(flat, step) for step in (0, 5, 10, 99, 10**9)] == [0.0, 0.005, 0.01, 0.01, 0.01]


def test_warmup_may_start_at_a_share() -> None:
    nano = config(schedule="cosine", learning_rate=0.02, warmup=10, warmup_start=0.5)
    assert [rate(nano, step) for step in (0, 5, 10)] == pytest.approx([0.01, 0.015, 0.02])


def test_cosine_by_hand() -> None:
    falling = config(schedule="cosine", learning_rate=0.02, learning_rate_end=1e-5, warmup=20)
    assert rate(falling, 60) == pytest.approx((0.02 + 1e-5) / 2)  # half of the 80 steps after the warmup
    quarter = 1e-5 + (0.02 - 1e-5) * (1 + math.sqrt(0.5)) / 2
    assert rate(falling, 40) == pytest.approx(quarter)
    assert rate(falling, 100) == pytest.approx(1e-5)
    assert rate(falling, 500) == pytest.approx(1e-5)


def test_linear_by_hand() -> None:
    falling = config(schedule="linear", learning_rate=0.02, warmup=20)
    assert [rate(falling, step) for step in (10, 20, 60, 100)] == pytest.approx([0.01, 0.02, 0.01, 0.0])
