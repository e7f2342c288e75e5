"""Bits per byte: equal to a sum by hand, the same for any batch, and nothing special for a vocabulary."""

import json
import math
from pathlib import Path

import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.measure.text_loss import text_bytes, text_loss
from deepnarrow.model.folder import Opened, open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import fixed_batches
from deepnarrow.text.building import build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.corpus import Corpus
from deepnarrow.train import loss

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("text_loss") / "model"
    model = T5(parse("tiny-nl1-dm32-ff64-nh2-kv16-v384"))
    initialise(model, 0)
    save_model(model, BYTES, folder)
    return open_model(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("text_loss_corpus")
    texts = [f"Zürich has {n} bridges, and the river runs under {n + 1} of them. " * 3 for n in range(20)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build([folder / "a.jsonl"], BYTES, folder / "corpus")


@pytest.mark.parametrize("objective", ["span", "prefix_lm"])
def test_it_is_the_held_out_loss_in_other_units(opened: Opened, corpus: Corpus, objective: str) -> None:
    found = text_loss(opened, corpus, objective=objective, input_length=64, batch=7)
    batches = fixed_batches(corpus, batch=4, input_length=64, objective=objective)
    with torch.no_grad():  # as a training run does for its held-out loss
        sums = [loss.sums(opened.model, batch, device=torch.device("cpu"), dtype=torch.float32) for batch in batches]
    expected = sum(float(one.nll) for one in sums) / sum(one.tokens for one in sums)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.loss * found.target_tokens / math.log(2) / found.target_bytes)
    assert found.low < found.bits_per_byte < found.high
    again = text_loss(opened, corpus, objective=objective, input_length=64, batch=3)
    assert again.bits_per_byte == pytest.approx(found.bits_per_byte, rel=1e-6)


def test_bytes_are_counted_without_sentinels_and_eos() -> None:
    assert text_bytes([*BYTES.encode("Zürich"), BYTES.sentinel(0), *BYTES.encode("!"), BYTES.eos], BYTES) == 8


def test_another_tokenizer_is_refused(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("some text\n" * 100)
    other = build([tmp_path / "b.txt"], ByteTokenizer(sentinels=50), tmp_path / "other")
    with pytest.raises(UserError, match="different tokenizers"):
        text_loss(opened, other, input_length=64)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    return int(ended.value.code or 0)


def test_the_verb(opened: Opened, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(opened.origin), "--corpus", str(corpus.folder), "--input-length", "64"]
    assert run(*asked, "--limit", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 5
    assert found["bits_per_byte"] > 1
    assert run(*asked, "--objective", "prefix_lm") == 0
    assert "bits per byte" in capsys.readouterr().out
    assert run(*asked, "--task", "sst2") == 2
    assert "or a corpus (--corpus)" in capsys.readouterr().err
