"""Killed at any moment and gone on: nothing after the last checkpoint is lost, and the end is the same to the bit."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from deepnarrow.files import read_json, read_json_lines
from deepnarrow.text.batches import Batch, PairBatches
from deepnarrow.train.loop import Lookahead
from deepnarrow.train.tracking import TIMINGS

Jobs = Callable[[Path, list[dict]], list[dict]]
HALF_WRITTEN = ".step-*"  # what a checkpoint is called until it is whole


def log(out: Path) -> list[dict]:
    rows = read_json_lines(out / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def contents(out: Path) -> dict[str, object]:
    """The last checkpoint, but for what time it took."""
    folder = out / "checkpoints" / read_json(out / "checkpoints.json")["last"]
    state = read_json(folder / "state.json")
    tensors = {
        f"{path.relative_to(folder)}: {name}": tensor.numpy().tobytes()
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    timings = [key for key in state if "seconds" in key or "per_second" in key]
    return {**tensors, "state": {key: value for key, value in state.items() if key not in timings}}


def killed(kills: int, size: int, run: dict) -> list[dict]:
    """Jobs that are killed at random moments, the first of them during a save; then one that may finish.

    Checkpoints are by turns written at once and beside training, which a run may change whenever it goes on.
    """
    numbers = random.Random(kills)
    moments = [{"during": HALF_WRITTEN}, *({"after": numbers.random() * 0.3 * size} for _ in range(kills - 1))]
    turns = [
        {**run, "into": "killed", "execution": {**run["execution"], "async_save": number % 2 == 1}}
        for number in range(kills + 1)
    ]
    numbered = zip(turns, [*moments, None], strict=True)
    return [{"size": size, "runs": [turn], "kill": moment} for turn, moment in numbered]


def check(folder: Path, attempts: list[dict]) -> None:
    assert all(attempt.get("killed") or set(attempt["codes"]) == {0} for attempt in attempts)
    assert attempts[0]["half_written"]
    assert contents(folder / "straight") == contents(folder / "killed")
    assert log(folder / "straight") == log(folder / "killed")
    assert not list((folder / "killed" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_gone_on_equals_never_stopped(tmp_path: Path, jobs: Jobs, kills: int) -> None:
    run = {"config": {"steps": 24 if kills < 10 else 120, "save_every": 3, "eval_every": 7}, "execution": {}}
    outcome = jobs(tmp_path, [{"size": 1, "runs": [{**run, "into": "straight"}]}, *killed(kills, 1, run)])
    check(tmp_path, outcome[1:-1])


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_two_ranks_killed_and_gone_on_equal_never_stopped(tmp_path: Path, jobs: Jobs, kills: int) -> None:
    """Each rank writes its part of a checkpoint, and both are killed."""
    adam = {"optimizer": "adamw", "learning_rate": 0.001}
    run = {"config": {"steps": 6 if kills < 10 else 60, "save_every": 3, **adam}, "execution": {"parallel": "fsdp"}}
    outcome = jobs(tmp_path, [{"size": 2, "runs": [{**run, "into": "straight"}]}, *killed(kills, 2, run)])
    check(tmp_path, outcome[1:-1])


@pytest.mark.parametrize("loaders", [1, 2, 5])
def test_loaders_make_the_same_batches_in_the_same_order(loaders: int) -> None:
    rows = [([3 + n, 1], [4 + n, 1]) for n in range(40)]
    batches = PairBatches(sources=[rows], seed=5, batch=4)

    def uneven(n: int) -> Batch:
        time.sleep(0.002 * (n * 7 % 3))  # so that later ones are finished before earlier ones
        return batches(n)

    with Lookahead(uneven, 20, loaders) as ahead:
        found = [ahead(n) for n in range(3, 20)]
    for n, batch in enumerate(found, start=3):
        assert np.array_equal(batch.inputs, batches(n).inputs)
        assert np.array_equal(batch.targets, batches(n).targets)


def test_loaders_work_beside_each_other_and_ahead() -> None:
    """Three batches are made at the same time, and none beyond the run's end."""
    together, made = threading.Barrier(3, timeout=10), []

    def batches(n: int) -> Batch:
        if n > 0:
            together.wait()  # passes only where three are made at once
        made.append(n)
        return Batch(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))

    with Lookahead(batches, 7, 3) as ahead:
        for n in range(7):
            ahead(n)
    assert sorted(made) == list(range(7))


def test_a_step_waits_for_its_batch_only_where_loaders_are_too_few() -> None:
    def batches(n: int) -> Batch:
        time.sleep(0.04)
        return Batch(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))

    def seconds(loaders: int) -> float:
        began = time.monotonic()
        with Lookahead(batches, 12, loaders) as ahead:
            for n in range(12):
                ahead(n)
        return time.monotonic() - began

    assert seconds(4) < 0.7 * seconds(1)
