"""The plan: every number against the counts, the real batches, the real network and a real run's folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.model import native
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.shapes.counts import parameters, training_bytes, training_step_flops
from deepnarrow.text.batches import CorpusBatches
from deepnarrow.text.building import build
from deepnarrow.text.corpus import Corpus, open_corpus
from deepnarrow.text.tokenizer import load
from deepnarrow.train import optim
from deepnarrow.train.config import OPTIMIZERS, Config
from deepnarrow.train.plan import activation_bytes, plan, pretended_step, product_flops
from deepnarrow.train.pretrain import pretrain
from deepnarrow.train.recipes import PRETRAINING, miniature, t5_efficient

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v384"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": f"the cat number {n} sat on the mat and saw {n * n} dogs. " * (1 + n % 5)} for n in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([folder / "text.jsonl"], load("bytes"), folder / "corpus", held_out=0.05)
    return open_corpus(folder / "corpus")


def test_the_published_recipe_by_hand() -> None:
    found = plan(t5_efficient("base-dl2"), devices=4, device_flops=1e14)
    assert (found.step.rows, found.step.input_length, found.step.target_length) == (128, 512, 114)
    assert found.inputs == 524_288 * 65_536  # 34.4 G, as FACTS of the family say
    assert found.targets == 524_288 * 128 * 114
    each = training_step_flops(parse("base-dl2"), input_length=512, target_length=114)
    assert (found.step_flops, found.flops) == (128 * each, 524_288 * 128 * each)
    assert found.hours == pytest.approx(found.flops / 4e14 / 3600)
    weights = 4 * parameters(parse("base-dl2")).total
    assert (found.memory.weights, found.memory.gradients) == (weights, weights)
    assert found.memory_sharded.weights == weights / 4
    assert found.checkpoint == weights + training_bytes(parse("base-dl2"), "adafactor").moments
    assert (found.checkpoints_kept, found.disk) == (3, 4 * found.checkpoint)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_state_is_as_large_as_the_real_one(name: str) -> None:
    shape = "v1_1-small-nl2-dm128-ff160-kv16-nh4-v200"
    config = Config(shape=shape, steps=9, batch=1, input_length=8, optimizer=name)
    model = T5(parse(shape))
    optimizer = optim.build(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = optim.state_tensors(optimizer, model)
    real = sum(tensor.nbytes for key, tensor in tensors.items() if not key.endswith("/step"))
    assert plan(config).memory.optimizer == real


@pytest.mark.parametrize("objective", ["span", "iid", "lm", "prefix_lm", "ul2"])
@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_pretended_batches_are_close_to_real_ones(corpus: Corpus, objective: str, batching: str) -> None:
    """Of documents they are the fullest possible; the others are the same text to an objective."""
    config = miniature(SHAPE, batch=16, input_length=64, objective=objective, batching=batching)
    batches = CorpusBatches(
        corpus=corpus, seed=0, batch=16, input_length=64, objective=objective, batching=batching, options={}
    )
    found = plan(config, batches=batches, corpus_tokens=corpus.tokens)
    real = [batches(n) for n in range(4)]
    assert found.step.inputs == pytest.approx(np.mean([np.count_nonzero(batch.inputs) for batch in real]))
    assert found.step.target_length == np.mean([batch.targets.shape[1] for batch in real])
    pretended = pretended_step(config)
    assert pretended.inputs + pretended.targets == pytest.approx(found.step.inputs + found.step.targets, rel=0.25)
    if objective == "span":
        assert pretended == found.step
        assert found.epochs == pytest.approx(1000 * 16 * 70 / corpus.tokens)  # 70: 60 visible, 3 sentinels, EOS


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_can_be_planned(name: str) -> None:
    config = PRETRAINING[name]()
    found = plan(config, device_flops=1e14)
    assert found.step.examples == config.batch
    assert found.step.input_length <= config.input_length
    assert found.step.rows <= config.batch
    assert found.hours > 0
    json.dumps(found.to_json())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "rows", "inputs", "targets"),
    [
        ("tiny-dm64-ff256-nh4-kv32-nl2-v96", 4, 64, 32),
        ("v1_1-small-dm64-ff256-nh4-kv32-nl2-v96", 4, 64, 32),
        ("tiny-dm64-ff64-nh4-kv16-el4-dl1-v96", 2, 128, 30),
        ("tiny-nl2-v96", 2, 64, 16),
    ],
)
def test_activations_are_what_the_network_keeps(
    shape: str, rows: int, inputs: int, targets: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the bytes that autograd stores in one real forward pass, the logits left out: within 15 %.

    That is of plain PyTorch, which a GPU runs; our kernels for a CPU keep less.
    """
    monkeypatch.setattr(native, "library", lambda: None)
    model = T5(parse(shape))
    initialise(model, 0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids = torch.ones(rows, inputs, dtype=torch.long), torch.ones(rows, targets, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        model.hidden(*ids)
    real = sum(storage.nbytes() for storage in kept.values())
    logits = 3 * 4 * rows * targets * 96
    estimate = activation_bytes(
        parse(shape), rows=rows, input_length=inputs, target_length=targets, dtype=dtype, recompute=False
    )
    assert (estimate - logits) / real == pytest.approx(1, abs=0.15)


def test_recomputing_keeps_less_and_computes_more() -> None:
    plain, again = (plan(t5_efficient("base", recompute=recompute)) for recompute in (False, True))
    assert again.memory.activations < plain.memory.activations / 5
    assert 1.2 < again.step_flops / plain.step_flops < 4 / 3
    halves = plan(t5_efficient("base", accumulate=2))
    assert halves.memory.activations < 0.55 * plain.memory.activations
    assert halves.flops == plain.flops


def test_a_real_runs_folder_is_as_large_as_planned(corpus: Corpus, tmp_path: Path) -> None:
    """The tensors to the byte but for safetensors' headers, tokenizer and JSON, which the plan leaves out."""
    for name in ("adafactor", "muon"):
        shape = "tiny-dm128-ff256-kv32-nh4-nl2-v384"
        config = miniature(shape, steps=4, batch=4, input_length=64, save_every=1, keep=2, optimizer=name)
        pretrain(config, corpus, tmp_path / name, device="cpu", tensorboard=False, quiet=True)
        found = plan(config)
        folders = sorted((tmp_path / name / "checkpoints").iterdir())
        assert len(folders) <= found.checkpoints_kept
        tensors = sum(path.stat().st_size for path in folders[-1].glob("*.safetensors"))
        headers = 200 * 2 * len(list(T5(parse(shape)).parameters()))
        assert found.checkpoint < tensors < found.checkpoint + 2 * headers


def test_product_flops_is_a_speed_of_this_planet() -> None:
    assert 1e8 < product_flops(0.01) < 1e15


@pytest.mark.parametrize(
    ("values", "message"), [({"devices": 0}, "at least 1"), ({"device_flops": 0.0}, "greater than 0")]
)
def test_mistakes(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(miniature("tiny"), **values)
    with pytest.raises(UserError, match="a plan is of pretraining"):
        plan(Config(shape="tiny", steps=1, batch=1, input_length=8, objective="pairs"))


# The verb


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--plan", *map(str, arguments)])
    return int(stopped.value.code or 0), *capsys.readouterr()


def test_the_verb_needs_neither_corpus_nor_folder(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--recipe", "t5_efficient", "--shape", "base", "--flops", "150T", "--devices", 8)
    assert code == 0
    for words in ("34.36 G", "222.9 M", "128 x 512 in, 114 out", "fsdp", "activations, bfloat16 (estimate)"):
        assert words in out
    code, out, _ = run(capsys, "--recipe", "t5_efficient", "--shape", "base", "--flops", "150T", "--json")
    found = json.loads(out)
    expected = plan(t5_efficient("base"), device_flops=150e12, device_flops_source="given")
    assert code == 0
    assert found.pop("config") == t5_efficient("base").to_json()
    assert found == json.loads(json.dumps(expected.to_json()))


def test_the_verb_measures_where_nothing_is_said_and_counts_a_corpus(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--corpus", corpus.folder, "--shape", "tiny-nl1", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["shape"] == "tiny-nl1-v384"  # as many rows as the corpus' tokenizer needs
    assert found["epochs"] == pytest.approx(1000 * 32 * 142 / corpus.tokens, rel=0.01)
    assert found["device_flops_source"].startswith("numpy's matrix product here")


def test_a_run_that_was_begun_gives_its_own_speed(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = miniature(SHAPE, steps=6, batch=4, input_length=64)
    pretrain(config, corpus, tmp_path / "run", device="cpu", tensorboard=False, quiet=True)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-2])
    code, out, _ = run(capsys, "--shape", SHAPE, "--out", tmp_path / "run", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["device_flops_source"] == f"reached by {tmp_path / 'run'}"
    assert last["step"] == 6
    assert found["device_flops"] == pytest.approx(plan(config).step_flops * 6 / last["seconds"], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flops", "much"], "cannot read 'much' as FLOP/s"),
        (["--devices", "0"], "devices must be at least 1"),
        (["--recipe", "t5"], "unknown recipe 't5'"),
        (["--corpus", "nowhere"], "nowhere is not a corpus"),
    ],
)
def test_the_verb_explains_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_flags_of_the_plan_alone_are_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--shape", "tiny", "--flops", "3T"])
    assert stopped.value.code == 2
    assert "add --plan" in capsys.readouterr().err
