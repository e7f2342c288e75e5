"""Fine-tuning beside `transformers`: the same weights, batches and optimizer give the same loss at every step."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from deepnarrow.files import read_json_lines
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text import builtin
from deepnarrow.text.batches import PairBatches, encode_pairs
from deepnarrow.text.tokenizer import load
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.loop import train

SHAPE = "tiny-dm48-ff96-kv16-nh3-nl2-v384"
STEPS, AIM = 20, 1e-4  # nats per target token
CONFIG = Config(
    shape=SHAPE, steps=STEPS, batch=8, objective=PAIRS, input_length=160, target_length=48, z_loss=0.0,
    optimizer="adamw", learning_rate=1e-3, schedule="constant", warmup=0, log_every=1, save_every=STEPS,
)  # fmt: skip


@pytest.fixture(scope="module")
def examples() -> list[tuple[list[int], list[int]]]:
    """A paragraph of the language reference in, its first words out: inputs and targets of many lengths."""
    paragraphs = [text for spoken in islice(builtin.topics(), 12) for text in builtin.paragraphs(spoken.text)]
    pairs = [(text[: 40 + 23 * n % 110], " ".join(text.split()[: 1 + n % 5])) for n, text in enumerate(paragraphs)]
    return encode_pairs(pairs, load("bytes"), CONFIG.input_length, CONFIG.target_length or 0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "start"
    model = T5(parse(SHAPE))
    initialise(model, 0)
    save_model(model, None, folder)
    return folder


def batches(examples: list, batching: str) -> PairBatches:
    return PairBatches(
        sources=[examples], seed=0, batch=CONFIG.batch, batching=batching,
        input_length=CONFIG.input_length, target_length=CONFIG.target_length,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(start: Path, examples: list) -> list[float]:
    return list(theirs(start, batches(examples, "padded")))


def theirs(folder: Path, padded: PairBatches) -> Iterator[float]:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder, dropout_rate=0.0).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), CONFIG.learning_rate, (CONFIG.beta1, CONFIG.beta2), CONFIG.epsilon, weight_decay=0.0
    )
    for number in range(STEPS):
        inputs, targets = (torch.from_numpy(side) for side in padded(number)[:2])
        labels = targets.masked_fill(targets == 0, -100)
        loss = model(input_ids=inputs, attention_mask=inputs != 0, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_losses_of_every_step_equal_those_of_transformers(
    batching: str, start: Path, examples: list, reference: list[float], tmp_path: Path
) -> None:
    """Packed rows hold the same examples in every update as their padded ones."""
    train(
        CONFIG, open_model(start).model, batches(examples, batching), tmp_path, tokenizer=None,
        device=torch.device("cpu"), kind="finetune", origin={"fingerprints": {}}, tensorboard=False, quiet=True,
    )  # fmt: skip
    losses = [row["loss"] for row in read_json_lines(tmp_path / "log.jsonl") if "loss" in row]
    assert len(losses) == len(reference) == STEPS
    assert reference[-1] < reference[0] - 0.5  # something was learnt, so the weights have moved
    assert max(abs(mine - other) for mine, other in zip(losses, reference, strict=True)) < AIM
