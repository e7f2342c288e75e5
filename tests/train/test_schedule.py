import math
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.train.config import Config
from deepnarrow.train.run_folder import check_same
from deepnarrow.train.schedule import open_ended, ramp, rate


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


def test_mesh_tensorflow_ramp_by_hand() -> None:
    """`learning_rate_schedule_noam` with its defaults: 1 / sqrt(max(step, 10,000)), and the last tenth falls to 0."""
    noam = config(schedule="inverse_sqrt", learning_rate=1.0, warmup=10_000, steps=1_000_000, ramp_down=0.1)
    assert rate(noam, 0) == 0.01
    assert rate(noam, 640_000) == pytest.approx(1 / 800)
    assert rate(noam, 900_000) == pytest.approx(900_000**-0.5)
    assert rate(noam, 902_500) == pytest.approx(1 / 950 * 0.975)
    assert rate(noam, 950_000) == pytest.approx(950_000**-0.5 / 2)
    assert rate(noam, 1_000_000) == rate(noam, 1_000_001) == 0.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_any_schedule_may_be_ramped_down(schedule: str) -> None:
    level = config(schedule=schedule, learning_rate=0.01, learning_rate_end=0.01, ramp_down=0.25)
    assert [rate(level, step) for step in (0, 75, 80, 90, 100)] == pytest.approx([0.01, 0.01, 0.008, 0.004, 0.0])


def test_a_ramp_of_all_steps_is_a_straight_line() -> None:
    falling = config(schedule="constant", learning_rate=0.01, ramp_down=1.0)
    assert [rate(falling, step) for step in (0, 50, 100)] == pytest.approx([0.01, 0.005, 0.0])


def test_steps_of_the_checkpoint_before_are_counted_on() -> None:
    """As T5 was adapted: steps 1,000,000 to 1,100,000 of one schedule."""
    adapt = config(schedule="inverse_sqrt", learning_rate=1.0, warmup=10_000, steps=100_000, steps_before=1_000_000)
    assert rate(adapt, 0) == pytest.approx(0.001)
    assert rate(adapt, 102_500 - 10_000) == pytest.approx(1_092_500**-0.5)
    ramped = adapt.override({"ramp_down": 0.1})  # mesh-TF's ramp would have begun 10,000 steps before this run
    assert ramp(ramped, 0) == pytest.approx(100_000 / 110_000)
    assert ramp(ramped, 100_000) == 0.0


@pytest.mark.parametrize(
    ("schedule", "ramp_down", "expected"),
    [
        ("inverse_sqrt", 0.0, True),
        ("constant", 0.0, True),
        ("inverse_sqrt", 0.1, False),
        ("constant", 0.1, False),
        ("cosine", 0.0, False),
        ("linear", 0.0, False),
    ],
)
def test_open_ended_means_that_the_past_does_not_depend_on_the_end(
    schedule: str, ramp_down: float, expected: bool
) -> None:
    short = config(schedule=schedule, learning_rate=0.01, ramp_down=ramp_down)
    long = short.override({"steps": 200})
    assert open_ended(short) == expected
    assert ([rate(short, step) for step in range(100)] == [rate(long, step) for step in range(100)]) == expected


def test_a_run_with_a_ramp_cannot_be_prolonged() -> None:
    ramped = config(ramp_down=0.1)
    with pytest.raises(UserError, match="its inverse_sqrt schedule with its final ramp was laid out for them"):
        check_same(Path("runs/a"), ramped, ramped.override({"steps": 200}), 50)
    plain = config()
    check_same(Path("runs/a"), plain, plain.override({"steps": 200}), 50)
