"""Fine-tuning a small model on a task's pairs."""

from pathlib import Path

import pytest

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.files import read_json
from deepnarrow.model.folder import Opened, open_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.text.tokenizer import load
from deepnarrow.train.config import Config
from deepnarrow.train.finetune import finetune, ordered_batches
from deepnarrow.train.loop import Result
from deepnarrow.train.pretrain import weights_fingerprint
from deepnarrow.train.recipes import finetune_miniature

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v384"
PAIRS = [
    Pair(f"sst2 sentence: {word} {n}", [label]) for n in range(20) for word, label in (("good", "1"), ("bad", "0"))
]


@pytest.fixture
def opened() -> Opened:
    model = T5(parse(SHAPE))
    initialise(model, 0)
    return Opened(model.eval(), load("bytes"), model.shape, "nowhere")


def config(**values: object) -> Config:
    usual = {"steps": 20, "batch": 8, "input_length": 32, "learning_rate": 0.02, "save_every": 10}
    return finetune_miniature(SHAPE, **{**usual, **values})


def run(made: Config, opened: Opened, out: Path, pairs: list[Pair] = PAIRS, **options: object) -> Result:
    return finetune(made, opened, tasks.get("sst2"), pairs, out, device="cpu", tensorboard=False, quiet=True, **options)  # type: ignore[arg-type]


def test_learns_and_leaves_the_opened_model_alone(opened: Opened, tmp_path: Path) -> None:
    before = weights_fingerprint(opened.model)
    result = run(config(steps=60, eval_every=20), opened, tmp_path / "run", held_out_pairs=PAIRS)
    assert weights_fingerprint(opened.model) == before
    assert result.held_out_loss is not None
    assert result.held_out_loss < 1.0
    found = read_json(tmp_path / "run" / "run.json")
    assert (found["kind"], found["origin"]["task"], found["origin"]["pairs"]) == ("finetune", "sst2", 40)
    assert open_model(tmp_path / "run").model.dropout == 0.0


def test_the_first_score_chooses_the_best(opened: Opened, tmp_path: Path) -> None:
    scores = iter([1.0, 9.0, 5.0, 2.0])
    result = run(
        config(eval_every=5, save_every=5, keep=1), opened, tmp_path / "run",
        held_out_pairs=PAIRS, evaluate=lambda model: {"accuracy": next(scores)},
    )  # fmt: skip
    assert result.best is not None
    assert (result.best.step, result.best.metric) == (10, "accuracy")
    assert open_model(tmp_path / "run").origin.endswith("step-00000010")


def test_going_on_needs_the_same_model_data_and_task(opened: Opened, tmp_path: Path) -> None:
    run(config(), opened, tmp_path / "run")
    with pytest.raises(UserError, match="the training data changed since"):
        run(config(), opened, tmp_path / "run", PAIRS[:-1])
    other = T5(parse(SHAPE))
    initialise(other, 1)
    with pytest.raises(UserError, match="the model changed since"):
        run(config(), opened._replace(model=other), tmp_path / "run")


def test_mistakes(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        run(config(), opened._replace(tokenizer=None), tmp_path / "run")
    with pytest.raises(UserError, match="no pairs to train on"):
        run(config(), opened, tmp_path / "run", [])
    with pytest.raises(UserError, match="the config is for a"):
        run(config().override({"shape": "tiny"}), opened, tmp_path / "run")
    with pytest.raises(UserError, match='the objective "pairs"'):
        run(config(objective="span"), opened, tmp_path / "run")


def test_held_out_pairs_are_each_read_once() -> None:
    pairs = [([5] * length + [1], [6, 1]) for length in (3, 30, 7, 12, 1)]
    batches = ordered_batches(pairs, 2)
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert sum(int((batch.inputs == 5).sum()) for batch in batches) == 53
