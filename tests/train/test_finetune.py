"""Fine-tuning a small model on a task's pairs."""

from dataclasses import replace
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
from deepnarrow.train.finetune import Lesson, encoded, finetune, ordered_batches
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


def run(
    made: Config,
    opened: Opened,
    out: Path,
    pairs: list[Pair] = PAIRS,
    held_out: list[Pair] | None = None,
    **options: object,
) -> Result:
    return learn(made, opened, out, [Lesson(tasks.get("sst2"), pairs, held_out or [])], **options)


def learn(made: Config, opened: Opened, out: Path, lessons: list[Lesson], **options: object) -> Result:
    return finetune(made, opened, lessons, out, device="cpu", tensorboard=False, quiet=True, **options)  # type: ignore[arg-type]


def test_learns_and_leaves_the_opened_model_alone(opened: Opened, tmp_path: Path) -> None:
    before = weights_fingerprint(opened.model)
    result = run(config(steps=60, eval_every=20), opened, tmp_path / "run", held_out=PAIRS)
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
        held_out=PAIRS, evaluate=lambda model: {"accuracy": next(scores)},
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


COPY = [Pair(f"copy: {word} {n}", [word]) for n in range(15) for word in ("red", "blue")]


def mixture(held_out: bool = True) -> list[Lesson]:
    """Two tasks of unlike sizes and lengths; one teaches every accepted answer, and nothing of what is negated."""
    many = replace(tasks.get("sst2"), name="many", input_tokens=24, target_tokens=6, every_answer=True)
    wrong = Pair("copy: no", ["never"], negated=True)
    pairs = [*COPY, Pair("copy: both", ["one", "two"]), wrong]
    return [Lesson(tasks.get("sst2"), PAIRS, PAIRS if held_out else []), Lesson(many, pairs, [*COPY, wrong])]


def test_a_mixture_learns_both_tasks_and_says_so(opened: Opened, tmp_path: Path) -> None:
    made = config(steps=80, batch=16, eval_every=40, batching="packed", mixture="equal", target_length=8)
    result = learn(made, opened, tmp_path / "run", mixture())
    assert result.held_out_loss is not None
    assert result.held_out_loss < 1.5
    origin = read_json(tmp_path / "run" / "run.json")["origin"]
    assert (origin["task"], origin["pairs"]) == (["sst2", "many"], [40, 32])
    assert origin["fingerprints"]["task"] == "sst2 version 1, many version 1"


def test_each_task_of_a_mixture_is_cut_to_its_own_lengths(opened: Opened, tmp_path: Path) -> None:
    long = [Pair("x" * 200, ["y" * 50])]
    lessons = [lesson._replace(pairs=long) for lesson in mixture()]
    made = config(input_length=100, target_length=20)
    assert opened.tokenizer is not None
    found = [encoded(made, one, tasks.targets(one.task, long), opened.tokenizer, lessons)[0] for one in lessons]
    assert [(len(inputs), len(targets)) for inputs, targets in found] == [(100, 8), (24, 6)]
    alone = encoded(made, lessons[0], tasks.targets(lessons[0].task, long), opened.tokenizer, lessons[:1])[0]
    assert (len(alone[0]), len(alone[1])) == (100, 20)


def test_a_mixture_stopped_and_gone_on_equals_one_that_was_not(opened: Opened, tmp_path: Path) -> None:
    made = config(steps=12, batch=16, batching="packed", dropout=0.1, mixture="0.7,0.3", accumulate=2, save_every=5)
    learn(made, opened, tmp_path / "whole", mixture())
    learn(made.override({"steps": 7}), opened, tmp_path / "halves", mixture())
    learn(made, opened, tmp_path / "halves", mixture())
    whole, halves = (tmp_path / name / "checkpoints" / "step-00000012" for name in ("whole", "halves"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (whole / file).read_bytes() == (halves / file).read_bytes()


def test_patience_ends_a_run_and_keeps_its_best(opened: Opened, tmp_path: Path) -> None:
    scores = iter([1.0, 9.0, 8.0, 9.0, 7.0])
    made = config(steps=40, eval_every=2, save_every=100, patience=2)
    options = {"held_out": PAIRS, "evaluate": lambda model: {"accuracy": next(scores)}}
    result = run(made, opened, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert result.best is not None
    assert (result.step, result.best.step) == (8, 4)  # an equal is not better
    assert open_model(tmp_path / "run").origin.endswith("step-00000004")
    again = run(made, opened, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert (again.step, next(scores)) == (8, 7.0)  # nothing was trained or judged once more


def test_a_named_metric_chooses(opened: Opened, tmp_path: Path) -> None:
    found = iter([{"accuracy": 1.0, "macro_f1": 5.0}, {"accuracy": 2.0, "macro_f1": 4.0}])
    made = config(steps=10, eval_every=5, save_every=5)
    result = run(made, opened, tmp_path / "run", held_out=PAIRS, evaluate=lambda model: next(found), best="macro_f1")
    assert result.best is not None
    assert (result.best.step, result.best.metric) == (5, "macro_f1")
    by_loss = run(made, opened, tmp_path / "loss", held_out=PAIRS, evaluate=lambda model: {"accuracy": 0.0},
                  best="held_out_loss")  # fmt: skip
    assert by_loss.best is not None
    assert (by_loss.best.metric, by_loss.best.step) == ("held_out_loss", 10)
    with pytest.raises(UserError, match=r"no evaluation gives 'f1'; .*accuracy"):
        run(made, opened, tmp_path / "no", held_out=PAIRS, evaluate=lambda model: {"accuracy": 0.0}, best="f1")


def test_mistakes_of_mixtures(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stands twice"):
        learn(config(), opened, tmp_path / "run", [Lesson(tasks.get("sst2"), PAIRS)] * 2)
    with pytest.raises(UserError, match="name at least one task"):
        learn(config(), opened, tmp_path / "run", [])
    with pytest.raises(UserError, match=r"has 1 rate\(s\), but there are 2"):
        learn(config(mixture="0.5"), opened, tmp_path / "run", mixture())
    with pytest.raises(UserError, match="patience counts evaluations"):
        config(patience=2)
