"""The loop's promises: stopped = never stopped, bad numbers stop, book-keeping holds."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model.folder import open_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.text.batches import Batch, PairBatches
from deepnarrow.text.tokenizer import load
from deepnarrow.train import checkpoint
from deepnarrow.train.config import Config
from deepnarrow.train.interrupt import Interrupted
from deepnarrow.train.loop import Result, train
from deepnarrow.train.pretrain import model_of
from deepnarrow.train.tracking import TIMINGS

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v512"
CPU = torch.device("cpu")


def pairs(number: int = 24) -> list[tuple[list[int], list[int]]]:
    generator = np.random.default_rng(1)

    def side(longest: int) -> list[int]:
        return [*generator.integers(3, 380, generator.integers(2, longest)).tolist(), 1]

    return [(side(20), side(9)) for _ in range(number)]


def config(**values: object) -> Config:
    usual = {
        "shape": SHAPE,
        "steps": 20,
        "batch": 4,
        "accumulate": 2,
        "input_length": 24,
        "objective": "pairs",
        "dropout": 0.1,
        "learning_rate": 0.01,
        "schedule": "constant",
        "warmup": 0,
        "factored_from": 32,
        "save_every": 5,
        "log_every": 3,
    }
    return Config.from_json({**usual, **values})


def run(made: Config, out: Path, **options: object) -> tuple[Result, T5]:
    model = model_of(made)
    initialise(model, made.seed)
    keywords = {
        "tokenizer": load("bytes"),
        "device": CPU,
        "kind": "finetune",
        "origin": {"fingerprints": {"data": "one"}},
        "tensorboard": False,
        "quiet": True,
    }
    data = options.pop("batches", PairBatches(sources=[pairs()], seed=made.seed, batch=made.batch))
    return train(made, model, data, out, **{**keywords, **options}), model  # type: ignore[arg-type]


def stop_at(step: int) -> object:
    """Data that sends this process a Ctrl-C while it makes the batch after `step`'s."""
    data = PairBatches(sources=[pairs()], seed=0, batch=4)

    def batches(n: int) -> Batch:
        if n == step:
            os.kill(os.getpid(), signal.SIGINT)
        return data(n)

    return batches


def log(out: Path) -> list[dict]:
    rows = read_json_lines(out / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def contents(out: Path, step: int) -> dict[str, object]:
    folder = out / "checkpoints" / checkpoint.name(step)
    state = read_json(folder / "state.json")
    timings = [key for key in state if "seconds" in key or "per_second" in key]
    files = {
        name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "config.json")
    }
    return {**files, "state": {key: value for key, value in state.items() if key not in timings}}


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "adamw_scale"])
def test_stopped_and_gone_on_equals_never_stopped(tmp_path: Path, optimizer: str) -> None:
    made = config(optimizer=optimizer, learning_rate=0.001 if optimizer == "adamw" else 0.01, eval_every=4)
    held_out = [PairBatches(sources=[pairs()], seed=9, batch=8)(0)]
    straight, _ = run(made, tmp_path / "straight", held_out=held_out)
    with pytest.raises(Interrupted):
        run(made, tmp_path / "stopped", held_out=held_out, batches=stop_at(10))
    stopped_at = checkpoint.steps(tmp_path / "stopped")[-1]
    assert 9 <= stopped_at <= 11  # the batch is made one step ahead
    resumed, _ = run(made, tmp_path / "stopped", held_out=held_out)
    assert contents(tmp_path / "straight", 20) == contents(tmp_path / "stopped", 20)
    assert log(tmp_path / "straight") == log(tmp_path / "stopped")
    assert (straight.loss, straight.held_out_loss, straight.best) == (resumed.loss, resumed.held_out_loss, resumed.best)


def test_accumulation_changes_memory_and_not_the_update(tmp_path: Path) -> None:
    """Without dropout, parts or no parts: the same losses, whatever the padding in each part."""
    run(config(accumulate=1, dropout=0.0, steps=5, log_every=1), tmp_path / "whole")
    run(config(accumulate=4, dropout=0.0, steps=5, log_every=1), tmp_path / "parts")
    for whole, parts in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
        assert whole["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-3)
        assert whole["tokens"] == parts["tokens"]


GOLDEN = {
    "adafactor": [6.295536, 6.663089, 6.688565, 6.638356, 6.265171],
    "adamw_scale": [6.295536, 6.665295, 6.642593, 6.603013, 6.264178],
}


@pytest.mark.parametrize("optimizer", list(GOLDEN))
def test_golden_losses(tmp_path: Path, optimizer: str) -> None:
    """A two-layer model's first five losses. A change here is a change of what training means: say so in the log."""
    made = config(optimizer=optimizer, dropout=0.0, steps=5, log_every=1)
    run(made, tmp_path / "run")
    assert [row["loss"] for row in log(tmp_path / "run")] == pytest.approx(GOLDEN[optimizer], abs=1e-5)


def test_a_small_model_learns_its_pairs(tmp_path: Path) -> None:
    """Eight pairs by heart: the loss of a uniform guess is log 512 = 6.2."""
    few = pairs(8)
    data = PairBatches(sources=[few], seed=0, batch=8)
    made = config(batch=8, steps=150, dropout=0.0, learning_rate=0.05, log_every=150, save_every=150)
    result, _ = run(made, tmp_path / "run", batches=data)
    rows = log(tmp_path / "run")
    assert rows[0]["step"] == 1
    assert rows[0]["loss"] > 5.5
    last = run(made.override({"steps": 160}), tmp_path / "run", batches=data)[0].loss
    assert result.step == 150
    assert last is not None
    assert last < 2.0


def test_run_folder_has_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result, model = run(config(eval_every=10), out, held_out=[PairBatches(sources=[pairs()], seed=9, batch=8)(0)])
    found = read_json(out / "run.json")
    wanted = {"format", "kind", "config", "shape", "origin", "versions", "machine", "commit", "started"}
    assert wanted == set(found)
    assert (found["kind"], found["shape"]) == ("finetune", SHAPE)
    assert Config.from_json(found["config"]) == config(eval_every=10)
    marks = read_json(out / "checkpoints.json")
    assert marks["last"] == "step-00000020"
    assert result.best is not None
    assert marks["best"] == checkpoint.name(result.best.step)
    folder = out / "checkpoints" / marks["last"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "optimizer.safetensors", "state.json"} <= names
    opened = open_model(folder)
    assert opened.tokenizer is not None
    assert all(torch.equal(a, b) for a, b in zip(opened.model.parameters(), model.parameters(), strict=True))
    assert open_model(out).origin.endswith(marks["best"])
    assert not list(out.rglob("*.tmp"))
    row = next(row for row in read_json_lines(out / "log.jsonl") if "loss" in row)
    assert set(row) == {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds"}


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    scores = iter([10.0, 50.0, 30.0, 20.0])
    out = tmp_path / "run"
    result, _ = run(config(eval_every=5, keep=1), out, evaluate=lambda model: {"exact_match": next(scores), "f1": 1.0})
    assert checkpoint.steps(out) == [10, 20]
    assert read_json(out / "checkpoints.json") == {"last": "step-00000020", "best": "step-00000010"}
    assert result.best == (10, "exact_match", 50.0) or (result.best is not None and result.best.value == 50.0)
    assert result.scores == {"exact_match": 20.0, "f1": 1.0}


def test_best_is_saved_even_where_no_save_is_due(tmp_path: Path) -> None:
    scores = iter([10.0, 50.0, 30.0, 20.0, 10.0])
    out = tmp_path / "run"
    run(config(eval_every=4, save_every=100), out, evaluate=lambda model: {"exact_match": next(scores)})
    assert read_json(out / "checkpoints.json") == {"last": "step-00000020", "best": "step-00000008"}


def test_evaluation_sees_an_evaluating_model_and_does_not_disturb_training(tmp_path: Path) -> None:
    def evaluate(model: T5) -> dict[str, float]:
        assert not model.training
        torch.manual_seed(123)
        torch.rand(5)
        return {"score": 1.0}

    run(config(), tmp_path / "quiet")
    run(config(eval_every=1), tmp_path / "nosy", evaluate=evaluate)
    quiet, nosy = (contents(tmp_path / name, 20)["model.safetensors"] for name in ("quiet", "nosy"))
    assert quiet == nosy


def test_signal_during_an_evaluation_breaks_it_off_and_it_is_made_up_for(tmp_path: Path) -> None:
    made, out = config(eval_every=10, save_every=100), tmp_path / "run"

    def interrupted(model: T5) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal did not break the evaluation off")

    with pytest.raises(Interrupted):
        run(made, out, evaluate=interrupted)
    assert checkpoint.steps(out) == [10]
    seen = []
    result, _ = run(made, out, evaluate=lambda model: seen.append(1) or {"score": 5.0 - len(seen)})
    assert len(seen) == 2
    assert result.best is not None
    assert result.best.step == 10
    assert [row["step"] for row in log(out) if "score" in row] == [10, 20]


def test_second_signal_leaves_at_once_and_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in the middle of the saving that the first one asked for."""
    out = tmp_path / "run"
    write = checkpoint.save_file

    def again(tensors: dict, path: Path) -> None:
        write(tensors, path)
        if "step-00000005" not in str(path):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    monkeypatch.setattr(checkpoint, "save_file", again)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(config(), out, batches=stop_at(7))
    assert not isinstance(caught.value, Interrupted)
    monkeypatch.undo()
    assert checkpoint.steps(out) == [5]
    run(config(), out)
    run(config(), tmp_path / "straight")
    assert contents(out, 20) == contents(tmp_path / "straight", 20)


def test_signal_handlers_and_random_numbers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    drawn = []

    def batches(n: int) -> Batch:  # the first call comes after everything outside `train` has drawn its numbers
        drawn.append(torch.get_rng_state()) if n == 0 else None
        return PairBatches(sources=[pairs()], seed=0, batch=4)(n)

    run(config(steps=2), tmp_path / "run", batches=batches)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_not_a_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def poison(model: T5) -> dict[str, float]:
        with torch.no_grad():
            model.embedding.weight[:] = float("inf")
        return {"score": 1.0}

    expected = (
        r"stopped at step 8: the weights are no longer finite; .*step-00000005; try a lower learning rate than 0.01"
    )
    with pytest.raises(UserError, match=expected):
        run(config(eval_every=8), out, evaluate=poison)
    assert checkpoint.steps(out) == [5]
    assert all(torch.isfinite(p).all() for p in open_model(out).model.parameters())


def test_a_loss_that_is_no_number_stops_before_it_reaches_a_weight(tmp_path: Path) -> None:
    def poison(model: T5) -> dict[str, float]:
        with torch.no_grad():
            model.embedding.weight[:] = float("nan")
        return {}

    made = config(eval_every=1, save_every=100, optimizer="adamw", dtype="bfloat16")
    expected = (
        r"stopped at step 2: the loss is no longer finite; no checkpoint was saved before; try .*clip 1.0, "
        r"or a warmup, or dtype float32, or optimizer adafactor or adamw_scale"
    )
    with pytest.raises(UserError, match=expected):
        run(made, tmp_path / "run", evaluate=lambda model: poison(model) or {"score": float("nan")})


def test_another_config_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(), out)
    with pytest.raises(UserError, match=r"learning_rate \(was 0.01, now 0.02\), optimizer|optimizer .*learning_rate"):
        run(config(learning_rate=0.02, optimizer="adamw_scale"), out)
    with pytest.raises(UserError, match="the data changed since"):
        run(config(), out, origin={"fingerprints": {"data": "two"}})
    with pytest.raises(UserError, match="is a finetune run; choose another --out to pretrain"):
        run(config(), out, kind="pretrain")


def test_book_keeping_may_change(tmp_path: Path) -> None:
    run(config(), tmp_path / "run")
    run(config(save_every=3, keep=5, log_every=1), tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["config"]["save_every"] == 3


def test_prolonging_equals_having_asked_for_more(tmp_path: Path) -> None:
    run(config(steps=10), tmp_path / "short")
    run(config(steps=20), tmp_path / "short")
    run(config(steps=20), tmp_path / "long")
    short, long = (contents(tmp_path / name, 20) for name in ("short", "long"))
    assert short["model.safetensors"] == long["model.safetensors"]
    assert short["optimizer.safetensors"] == long["optimizer.safetensors"]
    with pytest.raises(UserError, match="already at step 20, past the 15 steps"):
        run(config(steps=15), tmp_path / "long")


def test_a_schedule_with_an_end_cannot_be_prolonged(tmp_path: Path) -> None:
    run(config(schedule="cosine"), tmp_path / "run")
    with pytest.raises(UserError, match="its cosine schedule was laid out for them; only inverse_sqrt and constant"):
        run(config(schedule="cosine", steps=40), tmp_path / "run")


def test_a_finished_run_is_returned_as_it_is(tmp_path: Path) -> None:
    first, model = run(config(), tmp_path / "run")
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    again, reloaded = run(config(), tmp_path / "run")
    assert first == again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reloaded.parameters(), strict=True))
    assert marks == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_cut_file_is_named_and_the_checkpoint_before_serves(tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    run(config(), out)
    broken = out / "checkpoints" / "step-00000020"
    data = (broken / name).read_bytes()
    (broken / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{name}.*damaged: delete the folder .*step-00000020 and run the same"):
        run(config(), out)
    shutil.rmtree(broken)
    run(config(), out)
    run(config(), tmp_path / "straight")
    assert contents(out, 20) == contents(tmp_path / "straight", 20)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    out = tmp_path / "run"

    def full(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run(config(steps=10), out)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(config(steps=20), out)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert checkpoint.steps(out) == [5, 10]
    assert not [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]
    run(config(steps=20), out)
    run(config(steps=20), tmp_path / "straight")
    assert contents(out, 20)["model.safetensors"] == contents(tmp_path / "straight", 20)["model.safetensors"]


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    def nested(model: T5) -> dict[str, float]:
        with pytest.raises(UserError, match="another process is training in"):
            run(config(), tmp_path / "run")
        return {"score": 1.0}

    run(config(), tmp_path / "run", evaluate=nested)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' but no run.json"):
        run(config(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_share_of_peak_and_tensorboard(tmp_path: Path) -> None:
    run(config(steps=4, log_every=2), tmp_path / "run", peak_flops=1e12, tensorboard=True)
    shares = [row["share_of_peak"] for row in read_json_lines(tmp_path / "run" / "log.jsonl")]
    assert all(0 < share < 1 for share in shares)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 4]


def test_shared_stacks_and_tied_keys_survive_a_stop(tmp_path: Path) -> None:
    """Exotic shapes are written out as published tensors and read back; the optimizer's names must still fit."""
    made = config(shape="tiny-dm32-ff64-kv16-nh2-nl2-v512-shkv", steps=6, save_every=3)
    run(made, tmp_path / "straight")
    run(made.override({"steps": 3}), tmp_path / "stopped")
    run(made, tmp_path / "stopped")
    straight, stopped = (contents(tmp_path / name, 6)["model.safetensors"] for name in ("straight", "stopped"))
    assert straight == stopped


def test_log_is_plain_json(tmp_path: Path) -> None:
    run(config(), tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == [1, 3, 6, 9, 12, 15, 18, 20]
