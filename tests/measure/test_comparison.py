"""Only like is set beside like, and what is left out is said."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from deepnarrow.errors import UserError
from deepnarrow.measure.comparison import COSTS, compare, find_measures
from deepnarrow.measure.ledger import Record
from deepnarrow.shapes import counts, parse

Records = Callable[..., list[Record]]


def test_every_shape_has_its_costs_and_its_mean_over_seeds(records: Records) -> None:
    found = compare(records())
    assert [row.parameters for row in found.rows] == sorted(row.parameters for row in found.rows)
    row = next(row for row in found.rows if row.shape == "tiny-v4096")
    shape = parse(row.shape)
    assert row.parameters == counts.parameters(shape).total
    assert row.flops == counts.generate_flops(shape, input_length=128, target_length=32)
    values = [one.value for one in records() if one.shape == row.shape and one.metric == "exact_match"]
    measure = found.measures[0]
    assert row.scores[measure].value == pytest.approx(sum(values) / 3)
    assert row.scores[measure].seeds == 3


def test_measures_come_in_the_ledgers_order_losses_last(records: Records) -> None:
    found = compare(records())
    assert [one.key for one in found.measures] == [
        "squad:exact_match",
        "squad:token_f1",
        "sst2:accuracy",
        "held_out_loss",
    ]
    assert [one.key for one in find_measures(found)] == ["squad:exact_match", "sst2:accuracy", "held_out_loss"]
    assert [one.key for one in find_measures(found, ["token_f1", "sst2"])] == ["squad:token_f1", "sst2:accuracy"]
    with pytest.raises(UserError, match="no score called 'squad:f1'; did you mean squad or squad:token_f1"):
        find_measures(found, ["squad:f1"])


def test_a_shape_out_of_memory_is_told_and_not_drawn(records: Records) -> None:
    found = compare(records())
    assert found.absent(found.measures[0], COSTS["milliseconds"]) == ["small-v4096 (OOM)"]
    assert found.cost(found.measures[0]) == COSTS["parameters"], "time cannot decide where one has none"
    fitting = compare([one for one in records() if one.shape != "small-v4096"])
    assert fitting.cost(fitting.measures[0]) == COSTS["milliseconds"]


def test_a_loss_is_turned_round(records: Records) -> None:
    found = compare(records())
    loss = found.measures[-1]
    assert loss.lower_is_better
    points = found.points(loss, COSTS["parameters"])
    assert all(point.quality < 0 for point in points)
    assert all(point.low is None or point.low <= point.quality <= (point.high or 0) for point in points)
    best = found.recommend(loss, COSTS["parameters"]).best
    assert best == min(found.rows, key=lambda row: row.scores[loss].value).shape


def test_older_task_versions_do_not_count(records: Records) -> None:
    old = [replace(one, task_version=0, value=99.0) for one in records() if one.task == "squad"]
    found = compare([*old, *records()])
    assert all(score.value < 90 for row in found.rows for score in row.scores.values())
    assert "older task versions are left out: squad version 0" in " ".join(found.notes)


def test_scores_under_other_conditions_do_not_mix(records: Records) -> None:
    quick = [
        replace(one, value=99.0, extra={**one.extra, "conditions": {"limit": 10}})
        for one in records()
        if one.metric == "accuracy" and one.shape == "tiny-v4096"
    ]
    found = compare([*records(), *quick])
    assert all(score.value < 95 for row in found.rows for score in row.scores.values())
    assert any("sst2 accuracy scores under 2 different conditions" in note for note in found.notes)


def test_timings_of_another_machine_do_not_mix(records: Records) -> None:
    slow = [
        replace(one, value=1e6, machine={"processor": "slow"})
        for one in records()
        if one.kind == "timing" and one.shape == "tiny-v4096"
    ]
    found = compare([*records(), *slow])
    assert all((row.milliseconds or 0) < 1e5 for row in found.rows)
    assert found.timed_on["processor"] == "Invented CPU at 2 GHz"
    assert any("timings under 2 different conditions" in note for note in found.notes)


def test_a_number_measured_again_replaces_the_old_one(records: Records) -> None:
    again = [replace(one, value=10.0, date="2027-01-01T00:00:00Z") for one in records() if one.metric == "end_to_end"]
    found = compare([*records(), *again])
    assert {row.milliseconds for row in found.rows if row.shape != "small-v4096"} == {10.0}


def test_scores_alone_are_enough_and_timings_alone_are_not(records: Records) -> None:
    scored = compare([one for one in records() if one.kind == "score"])
    assert scored.lengths == (512, 114)
    assert all(row.outcome == "not measured" for row in scored.rows)
    with pytest.raises(UserError, match="holds no score"):
        compare([one for one in records() if one.kind == "timing"])


def test_a_shape_without_a_value_is_named(records: Records) -> None:
    broken = replace(records()[0], value=None, shape="mini-nl2-v4096", extra={"outcome": "nan"})
    assert "Without a score: mini-nl2-v4096 (nan)." in compare([*records(), broken]).notes
