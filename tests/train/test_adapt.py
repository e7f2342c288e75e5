"""Light adaptation: only what is small learns and is kept; stopped = never stopped; two ranks are as one."""

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model.decode import Greedy, generate
from deepnarrow.model.folder import Opened, open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.lora import adapted
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.text.tokenizer import load
from deepnarrow.train import checkpoint, recipes
from deepnarrow.train.config import Config
from deepnarrow.train.finetune import Lesson, finetune
from deepnarrow.train.interrupt import Interrupted
from deepnarrow.train.loop import Result
from deepnarrow.train.parallel import Execution
from deepnarrow.train.pretrain import weights_fingerprint

Jobs = Callable[[Path, list[dict]], list[dict]]
SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v384"
PAIRS = [
    Pair(f"sst2 sentence: {word} {n}", [label])
    for n in range(20)
    for word, label in (("good", "positive"), ("bad", "negative"))
]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapt": "lora", "lora_rank": 4, "lora_targets": "all", "lora_dropout": 0.1, "learning_rate": 0.01},
    "prompt": {"adapt": "prompt", "prompt_length": 10, "prompt_init": "labels"},
}


def base(folder: Path) -> Opened:
    """A model to adapt, made once."""
    if not folder.exists():
        model = T5(parse(SHAPE))
        initialise(model, 0)
        save_model(model, load("bytes"), folder)
    return open_model(folder)


def config(kind: str, **values: object) -> Config:
    usual = {"steps": 12, "batch": 8, "input_length": 32, "target_length": 12, "save_every": 4, "log_every": 1}
    return recipes.finetune_miniature(SHAPE, **{**usual, **KINDS[kind], **values})


def tune(made: Config, out: Path, **options: object) -> Result:
    """A run over the base beside it. The ranks of test_two_ranks call this too."""
    opened = options.pop("opened", None) or base(out.parent / "base")
    lessons = [Lesson(tasks.get("sst2"), PAIRS, PAIRS[:4])]
    return finetune(made, opened, lessons, out, device="cpu", tensorboard=False, quiet=True, **options)  # type: ignore[arg-type]


def last(out: Path) -> Path:
    return out / "checkpoints" / read_json(out / "checkpoints.json")["last"]


def sums(out: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors")
    return {name: hashlib.sha256((last(out) / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batching", ["packed", "bucketed"])
def test_only_what_is_small_learns_and_is_kept(kind: str, batching: str, tmp_path: Path) -> None:
    opened = base(tmp_path / "base")
    before = weights_fingerprint(opened.model)
    made = config(
        kind, steps=30, save_every=30, batching=batching, **({"learning_rate": 1.0} if kind == "prompt" else {})
    )
    result = tune(made, tmp_path / "run", opened=opened)
    losses = [row["loss"] for row in read_json_lines(tmp_path / "run" / "log.jsonl") if "loss" in row]
    least = 0.8 if kind == "lora" else 0.9  # a prompt can do little with a model that was never trained
    assert losses[-1] < least * losses[0]
    assert weights_fingerprint(opened.model) == before
    kept = sum(file.stat().st_size for file in last(tmp_path / "run").iterdir())
    assert kept < 200_000 < (tmp_path / "base" / "model.safetensors").stat().st_size
    moments = {name.rpartition("/")[0] for name in load_file(last(tmp_path / "run") / "optimizer.safetensors")}
    assert all(name == "prompt" or name.endswith((".up.weight", ".down.weight")) for name in moments)
    found = open_model(tmp_path / "run")
    assert found.adapter == last(tmp_path / "run")
    assert not adapted(found.model)
    assert (found.model.prompt is not None) == (kind == "prompt")
    assert found.tokenizer is not None
    assert result.held_out_loss is not None
    assert result.held_out_loss < least * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_gone_on_equals_never_stopped(kind: str, tmp_path: Path) -> None:
    made = config(kind, eval_every=5)

    def scores(stop: bool) -> Callable[[T5], dict[str, float]]:
        def judge(model: T5) -> dict[str, float]:
            if stop:
                os.kill(os.getpid(), signal.SIGINT)
            return {"accuracy": float(len(generate(model, [[5, 1]], Greedy(), max_tokens=3)))}

        return judge

    straight = tune(made, tmp_path / "straight", evaluate=scores(False))
    with pytest.raises(Interrupted) as stopped:
        tune(made, tmp_path / "stopped", evaluate=scores(True))
    assert stopped.value.step == 5
    assert checkpoint.steps(tmp_path / "stopped") == [4, 5]
    gone_on = tune(made, tmp_path / "stopped", evaluate=scores(False), execution=Execution(async_save=True))
    assert gone_on.step == straight.step == 12
    assert sums(tmp_path / "straight") == sums(tmp_path / "stopped")


def test_going_on_needs_the_same_adapter_and_base(tmp_path: Path) -> None:
    tune(config("lora"), tmp_path / "run")
    with pytest.raises(UserError, match=r"another config: lora_rank \(was 4, now 2\)"):
        tune(config("lora", lora_rank=2), tmp_path / "run")
    other = T5(parse(SHAPE))
    initialise(other, 1)
    with pytest.raises(UserError, match="the model changed since"):
        tune(config("lora"), tmp_path / "run", opened=base(tmp_path / "base")._replace(model=other))


def test_old_runs_have_no_word_of_it(tmp_path: Path) -> None:
    new = ("adapt", "lora_", "prompt_", "parameter_scale")
    values = recipes.finetune_miniature(SHAPE).to_json()
    old = {name: value for name, value in values.items() if not name.startswith(new)}
    assert len(old) < len(values)
    assert Config.from_json(old).to_json() == values


def test_two_ranks_are_as_one(tmp_path: Path, jobs: Jobs) -> None:
    base(tmp_path / "base")
    runs = {
        size: [{"tune": kind, "config": {"batching": "padded"}, "into": f"{kind}-of-{size}"} for kind in KINDS]
        for size in (1, 2)
    }
    jobs(tmp_path, [{"size": size, "runs": each} for size, each in runs.items()])
    for kind in KINDS:
        one, two = (load_file(last(tmp_path / f"{kind}-of-{size}") / "adapter_model.safetensors") for size in (1, 2))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trains too little to be spread over devices"):
        tune(config("lora"), tmp_path / "run", execution=Execution(parallel="fsdp"))
    with pytest.raises(UserError, match="lora_rank means something with adapt 'lora' only"):
        config("prompt", lora_rank=2)
    with pytest.raises(UserError, match="unknown adapt 'lorra'; did you mean lora"):
        config("lora", adapt="lorra")
    with pytest.raises(UserError, match="LoRA cannot adapt 'x'"):
        tune(config("lora", lora_targets="q,x"), tmp_path / "run")
    with pytest.raises(UserError, match="unknown prompt init"):
        tune(config("prompt", prompt_init="nothing"), tmp_path / "run")
    with pytest.raises(UserError, match="pretraining trains all of it"):
        recipes.miniature("tiny", adapt="lora")
    tune(config("prompt"), tmp_path / "prompt")
    with pytest.raises(UserError, match="an adapter over another model already"):
        tune(config("lora"), tmp_path / "twice", opened=open_model(tmp_path / "prompt"))
    full = recipes.finetune_miniature(SHAPE, steps=2)
    with pytest.raises(UserError, match="fine-tune its base instead"):
        tune(full, tmp_path / "twice", opened=open_model(tmp_path / "prompt"))


def test_recipes_are_the_papers() -> None:
    lora, prompt = recipes.lora("base"), recipes.prompt_tuning("base")
    assert (lora.optimizer, lora.learning_rate, lora.schedule, lora.warmup) == ("adamw", 5e-4, "linear", 1200)
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_targets, lora.weight_decay) == (8, 16.0, "q,v", 0.1)
    assert (prompt.steps, prompt.batch, prompt.learning_rate, prompt.schedule) == (30_000, 32, 0.3, "constant")
    assert (prompt.prompt_length, prompt.weight_decay, prompt.dropout, prompt.parameter_scale) == (
        100,
        1e-5,
        0.1,
        False,
    )
    assert recipes.lora("base", steps=100).warmup == 6
    small = recipes.finetune_miniature("tiny", adapt="prompt")
    assert (small.steps, small.learning_rate, small.parameter_scale) == (500, 0.3, False)
    assert recipes.lora("base", schedule="constant").learning_rate == 5e-4
