"""Training a head: it learns what can be learned, stops and goes on to the bit, and says what cannot be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.files import read_json
from deepnarrow.measure.heads import evaluate_head
from deepnarrow.model.folder import Opened
from deepnarrow.model.heads import Head, open_head, with_head
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.tasks.tagging import tagged, tagging_pair
from deepnarrow.text.batches import Batch
from deepnarrow.text.tokenizer import load
from deepnarrow.train.config import Config
from deepnarrow.train.finetune import Lesson
from deepnarrow.train.heads import HeadLearner, examples, finetune_head, held_out_batches, losses, paired
from deepnarrow.train.loop import Result
from deepnarrow.train.parallel import Execution
from deepnarrow.train.recipes import finetune_miniature

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2-v384"
ALONE = "tiny-dm32-ff64-kv16-nh2-el2-dl0-v384"
NAMES = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Paris", "Emmy Noether", "Kurt", "Zola", "New York")
SENTENCES = tuple(f"{words} {name} {rest}." for name in NAMES for words, rest in (
    ("yesterday we met", "in the library on 5 July 1843"),
    ("the letter to", "was never sent"),
    ("few had heard of", "before the war"),
))  # fmt: skip


def opened(shape: str = SHAPE) -> Opened:
    model = T5(parse(shape))
    initialise(model, 0)
    return Opened(model.eval(), load("bytes"), model.shape, "nowhere")


def lesson(kind: str) -> Lesson:
    """What a small model can learn in a minute of these: the sentiment of a word, capital letters, a shared word."""
    if kind == "classify":
        pairs = [
            Pair(f"sst2 sentence: {word} {n}", [label])
            for n in range(20)
            for word, label in (("good", "positive"), ("bad", "negative"))
        ]
        return Lesson(tasks.get("sst2"), pairs, pairs[:8])
    if kind == "tag":
        pairs = [tagging_pair(tagged(sentence)) for sentence in SENTENCES]
        return Lesson(tasks.get("stdlib_names"), pairs, pairs[:8])
    pairs = [Pair(letter * 6 + " asks", [letter.upper() * 4]) for letter in "abcdefghijkl"]
    return Lesson(tasks.get("nq_open"), pairs, pairs)


def config(**values: object) -> Config:
    usual = {
        "steps": 12, "batch": 8, "input_length": 64, "learning_rate": 0.03, "save_every": 6, "batching": "bucketed",
    }  # fmt: skip
    return finetune_miniature(ALONE, **{**usual, **values})


def run(made: Config, kind: str, out: Path, given: Lesson | None = None, **options: object) -> Result:
    wanted = given or lesson(kind)
    return finetune_head(made, opened(), wanted, out, kind=kind, device="cpu", tensorboard=False, quiet=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "steps"), [("classify", 40), ("tag", 60), ("embed", 40)])
def test_learns(kind: str, steps: int, tmp_path: Path) -> None:
    one = lesson(kind)
    result = run(config(steps=steps, log_every=50, save_every=steps), kind, tmp_path / "run")
    assert result.held_out_loss is not None
    head = open_head(tmp_path / "run")
    found = evaluate_head(head, one.task, one.pairs, samples=50, progress=False)
    assert found.main.value > 85 > found.baseline[next(iter(found.scores))]
    said = read_json(tmp_path / "run" / "run.json")
    assert (said["kind"], said["shape"], said["origin"]["head"]) == ("finetune", ALONE, kind)
    assert head.head.task == one.task.name


@pytest.mark.parametrize("kind", ["classify", "tag", "embed"])
def test_stopped_equals_never_stopped(kind: str, tmp_path: Path) -> None:
    """To the bit, with dropout, and with a head whose weights are saved beside the encoder's."""
    run(config(), kind, tmp_path / "whole")
    run(config(steps=6), kind, tmp_path / "parts")
    run(config(), kind, tmp_path / "parts")
    last = "checkpoints/step-00000012"  # by name: the best of the second one may be its sixth step
    whole, parts = (open_head(tmp_path / name / last).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    start = with_head(opened().model, open_head(tmp_path / "whole" / last).head, seed=0).state_dict()
    assert not any(torch.equal(whole[name], start[name]) for name in whole if name != "linear.bias")


def test_accumulating_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for parts in (1, 2):
        run(config(steps=3, accumulate=parts, dropout=0.0), "tag", tmp_path / str(parts))
    one, two = (open_head(tmp_path / name).model.state_dict() for name in ("1", "2"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_the_metric_chooses_the_best(tmp_path: Path) -> None:
    scores = iter([1.0, 9.0, 5.0])
    result = run(
        config(steps=9, eval_every=3, save_every=3, keep=1), "classify", tmp_path / "run",
        evaluate=lambda model: {"accuracy": next(scores)},
    )  # fmt: skip
    assert result.best is not None
    assert (result.best.step, result.best.metric) == (6, "accuracy")
    assert open_head(tmp_path / "run").origin.endswith("step-00000006")


def test_losses_are_those_by_hand(random_headed: Callable) -> None:
    """Cross-entropy over what is labelled, and nothing for padding and rows that fill a batch up."""
    device, dtype = torch.device("cpu"), torch.float32
    inputs = np.array([[5, 6, 1, 0], [7, 1, 0, 0], [0, 0, 0, 0]])
    ids = torch.from_numpy(inputs)
    model = random_headed(Head(kind="classify", labels=("a", "b", "c")))
    _, nll = losses(model, Batch(inputs, np.array([[2], [3], [0]])), device=device, dtype=dtype, z_loss=0.0)
    assert torch.allclose(
        nll, torch.nn.functional.cross_entropy(model(ids[:2]), torch.tensor([1, 2]), reduction="none")
    )
    model = random_headed(Head(kind="tag", labels=("a", "b", "c")))
    targets = np.array([[1, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    _, nll = losses(model, Batch(inputs, targets), device=device, dtype=dtype, z_loss=0.0)
    wanted = torch.nn.functional.cross_entropy(model(ids[:2])[:, 0], torch.tensor([0, 2]), reduction="none")
    assert torch.allclose(nll, wanted)
    sums = HeadLearner().sums(model, Batch(inputs, targets), device=device, dtype=dtype)
    assert (float(sums.nll), sums.tokens) == (pytest.approx(float(nll.sum().detach())), 2)


def test_the_loss_of_vectors(random_headed: Callable) -> None:
    """Each first text against all seconds, but for a second that is the same text as its own."""
    firsts, seconds = np.array([[5, 6, 1], [7, 1, 0], [8, 1, 0]]), np.array([[9, 1], [9, 1], [4, 1]])
    model = random_headed(Head(kind="embed"))
    batch = paired(Batch(firsts, seconds))
    _, nll = losses(model, batch, device=torch.device("cpu"), dtype=torch.float32, z_loss=0.0)
    a, b = (torch.nn.functional.normalize(model(torch.from_numpy(side)), dim=-1) for side in (firsts, seconds))
    logits = 20 * a @ b.T
    logits[0, 1] = logits[1, 0] = -torch.inf
    assert torch.allclose(nll, torch.nn.functional.cross_entropy(logits, torch.arange(3), reduction="none"), atol=1e-5)


@pytest.fixture
def random_headed() -> Callable:
    def build(head: Head) -> object:
        model = T5(parse(SHAPE))
        initialise(model, 2)
        return with_head(model, head, seed=1).eval()

    return build


def test_tags_stand_at_first_pieces() -> None:
    tokenizer, head = load("bytes"), Head(kind="tag", labels=("O", "B-X"), input_tokens=9)
    made = examples(head, [Pair("ab c de", ["O B-X unknown"])], tokenizer)
    # of "ab c de", the last with a tag that nobody knows: 0, as for bytes that begin no word
    assert made == [([100, 101, 35, 102, 35, 103, 104, 1], [1, 0, 0, 2, 0, 0, 0, 0])]
    assert held_out_batches(head, [Pair("ab", ["B-X"])], tokenizer)[0].targets.tolist() == [[2, 0, 0, 0, 0, 0, 0, 0]]


def test_going_on_needs_the_same_head(tmp_path: Path) -> None:
    run(config(), "embed", tmp_path / "run")
    with pytest.raises(UserError, match="the head changed since"):
        run(config(), "embed", tmp_path / "run", normalise=False)


def test_mistakes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match='use the batching "bucketed"'):
        run(config(batching="packed"), "classify", out)
    with pytest.raises(UserError, match="--parallel ddp"):
        run(config(), "classify", out, execution=Execution(parallel="fsdp"))
    with pytest.raises(UserError, match="the encoder of nowhere is a"):
        run(config().override({"shape": "tiny"}), "classify", out)
    with pytest.raises(UserError, match="12 different answers in 12 pairs"):
        run(config(), "classify", out, lesson("embed"))
    with pytest.raises(UserError, match="pair 1, has 4 words and 1 tags"):
        run(config(), "tag", out, lesson("classify"))
    with pytest.raises(UserError, match="at least 2 are needed"):
        run(config(batch=8, accumulate=8), "embed", out)
    with pytest.raises(UserError, match="unknown head 'sort'"):
        run(config(), "sort", out)
