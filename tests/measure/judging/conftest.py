"""Two runs of one fine-tuning and a third, written as fine-tuning writes them, and items to judge them on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepnarrow import tasks
from deepnarrow.measure.judging.judge import Wanted
from deepnarrow.model.folder import open_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.text.tokenizer import ByteTokenizer
from deepnarrow.train.finetune import Lesson, finetune
from deepnarrow.train.recipes import finetune_miniature

SHAPE = "tiny-nl1-dm32-ff64-nh2-kv16-v384"
ROWS = [{"sentence": f"{'good' if n % 3 else 'bad'} film {n}", "label": int(n % 3 > 0)} for n in range(24)]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `seeds/seed-0`, `seeds/seed-1` and `short`, fine-tuned on sst2, and `blank`, a model folder."""
    from deepnarrow.model.folder import save_model

    place = tmp_path_factory.mktemp("runs")
    model = T5(parse(SHAPE))
    initialise(model, seed=0)
    save_model(model, ByteTokenizer(), place / "blank")
    task = tasks.get("sst2")
    pairs = [pair for row in ROWS if (pair := task.to_pair(row))]
    torch.manual_seed(0)
    for name, seed, steps in (("seeds/seed-0", 0, 30), ("seeds/seed-1", 1, 30), ("short", 0, 1)):
        config = finetune_miniature(
            SHAPE, seed=seed, steps=steps, batch=8, input_length=40, target_length=12, learning_rate=3e-3, dropout=0.0
        )
        finetune(
            config, open_model(place / "blank"), [Lesson(task, pairs)], place / name, device="cpu", quiet=True,
            tensorboard=False,
        )  # fmt: skip
    (place / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    return place


@pytest.fixture
def wanted(runs: Path) -> Callable[..., Wanted]:
    """`wanted()` asks for sst2 on the items above; anything of it may be changed."""

    def make(**changes: object) -> Wanted:
        asked = {"task": tasks.get("sst2"), "split": "validation", "data": runs / "validation.jsonl"}
        return Wanted(**{**asked, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def pairs() -> list[Pair]:
    return [pair for row in ROWS if (pair := tasks.get("sst2").to_pair(row))]
