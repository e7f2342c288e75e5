"""A timing's shares and its way into the ledger, by hand."""

import json
from dataclasses import replace

import pytest

from deepnarrow.measure.ledger import select
from deepnarrow.measure.timing import Conditions, Phase, Spread, Timing, to_records

PHASE = Phase(milliseconds=Spread(2.0, 1.9, 2.2, 5), flops=10**9, gemm_gflops=1000.0)
TIMING = Timing(
    name="runs/a",
    shape="tiny",
    parameters=100,
    conditions=Conditions(input_length=64, target_length=16, batch=2, threads=2),
    weights_mb=62.3,
    encode=PHASE,
    first_token=PHASE,
    per_token=replace(PHASE, bytes=40 * 10**6, bandwidth_gbs=40.0),
    end_to_end=replace(PHASE, milliseconds=None, outcome="OOM"),
    train_step=replace(PHASE, milliseconds=Spread(100.0, 99.0, 101.0, 5)),
    peak_memory_mb=70.0,
    train_peak_memory_mb=None,
)


def test_shares_by_hand() -> None:
    assert PHASE.gflops == pytest.approx(500)  # 10**9 FLOP in 2 ms
    assert PHASE.gemm_share == pytest.approx(0.5)
    assert TIMING.per_token.gbs == pytest.approx(20)  # 40 MB in 2 ms
    assert TIMING.per_token.bandwidth_share == pytest.approx(0.5)
    assert TIMING.end_to_end.gflops is None
    assert TIMING.end_to_end.gemm_share is None
    assert TIMING.encode.bandwidth_share is None
    assert TIMING.train_tokens_per_second == pytest.approx(2 * 80 / 0.1)


def test_every_phase_and_size_is_a_record() -> None:
    records = to_records(TIMING, seed=3)
    assert [one.metric for one in records] == [
        "encode", "first_token", "per_token", "end_to_end", "train_step",
        "weights", "peak_memory", "train_peak_memory", "train_tokens_per_second",
    ]  # fmt: skip
    assert {(one.kind, one.shape, one.model, one.seed, one.parameters) for one in records} == {
        ("timing", "tiny", "runs/a", 3, 100)
    }
    (token,) = select(records, metric="per_token")
    assert (token.value, token.low, token.high, token.n, token.unit) == (2.0, 1.9, 2.2, 5, "ms")
    assert token.extra["share_of_bandwidth"] == pytest.approx(0.5)
    assert token.conditions == {
        "input_length": 64, "target_length": 16, "batch": 2, "dtype": "float32", "device": "cpu", "threads": 2,
        "optimizer": "adafactor",
    }  # fmt: skip
    (whole,) = select(records, metric="end_to_end")
    assert (whole.value, whole.n, whole.extra["outcome"]) == (None, None, "OOM")
    (peak,) = select(records, metric="train_peak_memory")
    assert (peak.value, peak.extra["outcome"]) == (None, "not measured")


def test_what_was_not_asked_is_no_record() -> None:
    metrics = {one.metric for one in to_records(replace(TIMING, train_step=None))}
    assert not any(metric.startswith("train") for metric in metrics)


def test_json_is_plain() -> None:
    found = json.loads(json.dumps(TIMING.to_json()))
    assert found["encode"]["ms"] == {"median": 2.0, "low": 1.9, "high": 2.2, "n": 5}
    assert found["end_to_end"]["ms"] is None
    assert found["end_to_end"]["outcome"] == "OOM"


def test_quartiles_of_few() -> None:
    assert Spread.of([3.0]) == (3.0, 3.0, 3.0, 1)
    assert Spread.of([1.0, 3.0]) == (2.0, 1.5, 2.5, 2)
