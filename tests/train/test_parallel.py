"""Several ranks: the same run as one process but for rounding, one log, one set of checkpoints, one end.

The work is done by real processes over gloo, in one job for all tests of this file (ranks_at_work.py).
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model import noise
from deepnarrow.model.folder import open_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import checkpoint
from deepnarrow.train.config import Config
from deepnarrow.train.optim import build
from deepnarrow.train.parallel import Execution, check_divides, packed_together, ranks, share
from deepnarrow.train.tracking import TIMINGS

Jobs = Callable[[Path, list[dict]], list[dict]]
HERE = Path(__file__).parent
SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v512"
GATED = "tiny-dm32-ff64-kv16-nh4-kh2-nl2-v512-untied-geglu"
ADAM = {"optimizer": "adamw", "learning_rate": 0.001}
FSDP = {"parallel": "fsdp"}
TENSOR = {"tensor_parallel": 2}
ALL = [  # every job once; a run whose folder exists goes on with it
    {
        "size": 1,
        "runs": [
            {"into": "one"},
            {"into": "gated-one", "config": {"shape": GATED, **ADAM}},
            {"into": "packed-one", "packed": True, "config": ADAM},
            {"into": "adam-one", "config": ADAM},
            {"into": "one-then-two", "config": {"steps": 2, **ADAM}},
        ],
    },
    {
        "size": 2,
        "runs": [
            {"into": "ddp"},
            {"into": "fsdp", "execution": FSDP},
            {"into": "tensor", "execution": TENSOR},
            {"into": "gated-fsdp", "execution": FSDP, "config": {"shape": GATED, "recompute": True, **ADAM}},
            {"into": "packed-fsdp", "execution": FSDP, "packed": True, "config": ADAM},
            {"into": "one-then-two", "execution": FSDP, "config": ADAM},
            {"into": "two-then-one", "execution": FSDP, "config": {"steps": 2, **ADAM}},
            {"into": "stopped", "execution": FSDP, "stop": 2},
            {"into": "stopped", "execution": {**FSDP, "async_save": True}},
        ],
    },
    {"size": 1, "runs": [{"into": "two-then-one", "config": ADAM}]},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, jobs: Jobs) -> Path:
    """The folder of all runs. Test workers beside each other share it: the first does the work."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "several-ranks"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "outcome.json").exists():
            jobs(folder, ALL)
    return folder


def log(out: Path) -> list[dict]:
    rows = read_json_lines(out / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def weights(out: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / checkpoint.name(step) / "model.safetensors")


@pytest.mark.parametrize(
    ("alone", "together"),
    [
        ("one", "ddp"),
        ("one", "fsdp"),
        ("one", "tensor"),
        ("gated-one", "gated-fsdp"),
        ("packed-one", "packed-fsdp"),
        ("adam-one", "one-then-two"),
        ("adam-one", "two-then-one"),
        ("one", "stopped"),
    ],
)
def test_the_loss_curve_is_that_of_one_process(done: Path, alone: str, together: str) -> None:
    """With dropout, and with three rows for two ranks: same rows, same noise, same sums, to float32's rounding."""
    expected, found = log(done / alone), log(done / together)
    assert len(expected) == len(found) == 6
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        assert one.get("tokens") == two.get("tokens")
        for key, most in (("loss", 1e-5), ("held_out_loss", 1e-5), ("grad_norm", 1e-3)):
            if key in one:
                assert two[key] == pytest.approx(one[key], rel=most)


@pytest.mark.parametrize("name", ["gated-fsdp", "packed-fsdp"])
def test_every_weight_moves_as_in_one_process(done: Path, name: str) -> None:
    """Also the position tables, sums over all rows, heads and layers; under AdamW, which forgives no factor."""
    alone, together = (weights(done / each) for each in (name.replace("fsdp", "one"), name))
    fresh = T5(parse(GATED if name.startswith("gated") else SHAPE))
    initialise(fresh, 0)
    assert alone.keys() == together.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=0, atol=2e-5)
    table = together["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    moved = (table - fresh.decoder.position.table.detach()).abs()  # type: ignore[union-attr]
    assert moved[:8].min() > 1e-4  # near distances occur in every batch, for every head


@pytest.mark.parametrize("name", ["tensor", "fsdp"])
def test_position_tables_have_their_gradient(done: Path, name: str) -> None:
    for stack in ("encoder", "decoder"):
        key = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        torch.testing.assert_close(weights(done / name, 2)[key], weights(done / "one", 2)[key], rtol=0, atol=2e-5)


def test_stopped_and_gone_on_equals_never_stopped_to_the_bit(done: Path) -> None:
    """On two ranks, stopped by a Ctrl-C that only one of them got; then saved beside training."""
    marks = sorted(path.name for path in (done / "stopped").glob("stopped-*"))
    assert marks == ["stopped-0", "stopped-1"]
    steps = {(done / "stopped" / mark).read_text() for mark in marks}
    assert len(steps) == 1  # together
    assert int(steps.pop()) in (2, 3)
    straight, stopped = weights(done / "fsdp"), weights(done / "stopped")
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)
    assert log(done / "fsdp") == log(done / "stopped")


def test_tied_embeddings_stay_tied(done: Path) -> None:
    for name in ("fsdp", "two-then-one", "one-then-two", "tensor"):
        opened = open_model(done / name)
        assert opened.shape.tied
        assert opened.model.output is None
        assert "lm_head.weight" not in weights(done / name)
    shards = done / "fsdp" / "checkpoints" / checkpoint.name(4) / "shards"
    names = {key for file in shards.iterdir() for key in load_file(file) if key.startswith("model/")}
    assert names == {f"model/{key}" for key in T5(parse(SHAPE)).state_dict()}


def test_every_rank_writes_a_part_and_nothing_is_pickled(done: Path) -> None:
    folder = done / "fsdp" / "checkpoints" / checkpoint.name(4)
    assert not list((done / "fsdp" / "checkpoints").glob(".*"))
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    parts = [load_file(path) for path in sorted((folder / "shards").iterdir())]
    assert len(parts) == 2
    whole = weights(done / "fsdp")["shared.weight"]
    assert torch.equal(torch.cat([part["model/embedding.weight"] for part in parts]), whole)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_or_cut_part_is_noticed(done: Path, tmp_path: Path, lost: int) -> None:
    """Whichever of the two it is: what the other one holds looks whole to a reader that asks for no more."""
    model = T5(parse(SHAPE))
    out = tmp_path / "run"
    shutil.copytree(done / "fsdp", out)
    parts = sorted((out / "checkpoints" / checkpoint.name(4) / "shards").iterdir())
    data = parts[lost].read_bytes()
    optimizer = build(config(), model)
    parts[lost].write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"shards cannot be read.*damaged: delete the folder .*step-00000004 and run"):
        checkpoint.restore(out, model, optimizer)
    parts[lost].unlink()
    with pytest.raises(UserError, match=r"is missing|is not what this model needs"):
        checkpoint.restore(out, model, optimizer)
    parts[lost].write_bytes(data)
    assert checkpoint.restore(out, model, optimizer).step == 4
    assert torch.equal(model.embedding.weight, weights(done / "fsdp")["shared.weight"])


def config() -> Config:
    return Config(shape=SHAPE, steps=4, batch=6, input_length=24, factored_from=32)


@pytest.mark.slow
def test_four_ranks_as_two_by_two(done: Path, tmp_path: Path, jobs: Jobs) -> None:
    """Weights spread over two ranks, and each layer split between two; then one process goes on."""
    run = {"into": "grid", "config": {"shape": GATED, **ADAM}}
    spread = {"parallel": "fsdp", "tensor_parallel": 2}
    short = {"into": "short", "config": {"shape": GATED, **ADAM, "steps": 2}, "execution": spread}
    four = {"size": 4, "runs": [{**run, "execution": spread}, short]}
    jobs(tmp_path, [four, {"size": 1, "runs": [{**run, "into": "short"}]}])
    for name in ("grid", "short"):
        found, alone = weights(tmp_path / name), weights(done / "gated-one")
        for key, tensor in alone.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": f"{SHAPE}-shkv", **ADAM},
        {"optimizer": "muon", "learning_rate": 0.001, "schedule": "linear", "warmup": 2},
        {"optimizer": "adamw_scale"},
        {"clip": 0.5, "normaliser": "positions", "batch": 2, "accumulate": 2, **ADAM},  # a rank without a row
    ],
    ids=["shared-stacks", "muon", "adamw_scale", "clipped"],
)
def test_other_configs_are_those_of_one_process_too(tmp_path: Path, jobs: Jobs, changes: dict) -> None:
    ways = {"ddp": {}, "fsdp": FSDP, "tensor": TENSOR}
    together = [{"into": name, "config": changes, "execution": way} for name, way in ways.items()]
    jobs(tmp_path, [{"size": 1, "runs": [{"into": "one", "config": changes}]}, {"size": 2, "runs": together}])
    expected = [row.get("loss") for row in log(tmp_path / "one")]
    for name in ways:
        found = [row.get("loss") for row in log(tmp_path / name)]
        assert [loss for loss in found if loss] == pytest.approx([loss for loss in expected if loss], rel=1e-5)


@pytest.mark.slow
def test_the_command_under_torchrun_and_then_without(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"In the year {n}, nothing happened here." for n in range(900)))
    deepnarrow = [sys.executable, "-m", "deepnarrow"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert call(*deepnarrow, "corpus", "build", "text.txt", "--tokenizer", "bytes", "--out", "corpus").returncode == 0
    pretrain = shlex.split("pretrain --shape tiny-nl1-dm32-ff64-kv16-nh2 --corpus corpus --out run --batch 4")
    pretrain += shlex.split("--input-length 64 --schedule constant --learning-rate 0.01")
    torchrun = [sys.executable, *shlex.split("-m torch.distributed.run --standalone --nproc-per-node 2 -m deepnarrow")]
    two = call(*torchrun, *pretrain, "--steps", "6", "--parallel", "fsdp", "--async-save", "--loaders", "2")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("step 6: loss") == 1
    one = call(*deepnarrow, *pretrain, "--steps", "9")
    assert one.returncode == 0, one.stderr
    assert "going on from step 6 to 9" in one.stderr
    assert call(*deepnarrow, "generate", "run", "In the year").returncode == 0
    odd = call(*torchrun, *pretrain[:2], "tiny-nl1-dm32-ff64-kv16-nh3", *pretrain[3:], "--tensor-parallel", "2")
    assert "deepnarrow: --tensor-parallel 2 gives each rank whole heads, but num_heads is 3" in odd.stderr


def test_one_rank_keeps_the_records(done: Path) -> None:
    assert read_json(done / "fsdp" / "run.json")["kind"] == "finetune"
    assert [row["step"] for row in log(done / "fsdp") if "loss" in row] == [1, 2, 3, 4]
    assert read_json(done / "fsdp" / "checkpoints.json")["last"] == checkpoint.name(4)


UNDER_TORCHRUN = """
import os, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from deepnarrow.text.batches import PairBatches
from deepnarrow.train.config import Config
from deepnarrow.train.optim import build
from deepnarrow.train.parallel import Execution
from test_loop import config, pairs, run

def batches(n):
    if n == 8 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise RuntimeError("the disk is on fire")
    return PairBatches(sources=[pairs()], seed=0, batch=4)(n)

run(config(steps=12, save_every=3), Path({out!r}), batches=batches, execution=Execution(parallel="ddp"))
"""


@pytest.mark.slow
def test_a_dead_rank_is_named_and_torchrun_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = tmp_path / "script.py"
    script.write_text(UNDER_TORCHRUN.format(here=str(HERE), out=str(out)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    assert "deepnarrow: rank 1 of 2 failed: RuntimeError: the disk is on fire" in finished.stderr
    assert re.search(r"failed \(exitcode: 1\) local_rank: 1", finished.stderr)  # torchrun blames the same one
    assert [row["step"] for row in log(out) if "loss" in row] == [1, 3, 6, 9, 12]
    assert checkpoint.steps(out)[-1] == 12


def test_tensor_parallel_needs_heads_that_divide_and_ranks() -> None:
    check_divides(parse("tiny-nh4-kh2"), 2)
    with pytest.raises(UserError, match="--tensor-parallel 3 gives each rank whole heads, but num_heads is 4"):
        check_divides(parse("tiny-nh4"), 3)
    with pytest.raises(UserError, match="but kv_heads is 1"):
        check_divides(parse("tiny-nh4-kh1"), 2)
    with pytest.raises(UserError, match="an equal part of the feed-forward, but d_ff is 1022"):
        check_divides(parse("tiny-nh4-ff1022"), 4)
    alone = ranks(Execution(tensor_parallel=2), torch.device("cpu"))
    with pytest.raises(UserError, match="does not divide the 1 process of this job; start them with torchrun"):
        alone.__enter__()
    with pytest.raises(UserError, match="unknown parallel 'fdsp'; did you mean fsdp"):
        Execution(parallel="fdsp")
    with pytest.raises(UserError, match="loaders must be at least 1, not 0"):
        Execution(loaders=0)


@pytest.mark.parametrize(("rows", "size"), [(6, 2), (5, 2), (2, 3), (1, 4)])
def test_shares_are_equal_and_lose_no_row(rows: int, size: int) -> None:
    generator = np.random.default_rng(0)
    batch = Batch(*(generator.integers(1, 9, (rows, width)) for width in (4, 3, 4, 3)))
    parts = [share(batch, rank, size)[0] for rank in range(size)]
    assert len({part.inputs.shape for part in parts}) == 1
    for whole, *pieces in zip(batch, *parts, strict=True):
        joined = np.concatenate(pieces)
        assert np.array_equal(joined[:rows], whole)
        assert not joined[rows:].any()


def test_noise_is_that_of_the_whole_batch() -> None:
    def drawn(**part: int) -> torch.Tensor:
        torch.manual_seed(1)
        with noise.part(**part):
            return noise.kept((3, 1, 8), 0.3, torch.device("cpu"))

    torch.manual_seed(1)
    whole = noise.kept((5, 1, 8), 0.3, torch.device("cpu"))
    assert torch.equal(drawn(first=0, rows=5), whole[:3])
    assert torch.equal(drawn(first=3, rows=5), torch.cat([whole[3:], torch.ones(1, 1, 8)]))


def test_buckets_hold_each_parameter_once_and_no_more_than_they_may() -> None:
    sizes = [3, 5, 40, 1, 1, 7]
    parameters = [torch.zeros(size) for size in sizes]
    buckets = packed_together(parameters, 32)
    assert [[len(p) for p in bucket] for bucket in buckets] == [[3, 5], [40], [1, 1], [7]] or all(
        len(bucket) == 1 or sum(4 * len(p) for p in bucket) <= 32 for bucket in buckets
    )
    assert [id(p) for bucket in buckets for p in bucket] == [id(p) for p in parameters]
