"""Heads in other libraries' formats: what these make of the folder is what we compute."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.hub.heads import to_hugging_face, to_sentence_transformers
from deepnarrow.model.encoding import embed
from deepnarrow.model.folder import Opened
from deepnarrow.model.heads import Head, OpenedHead, open_head, with_head
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import Tokenizer, train

SHAPES = ["tiny-nl2-dm32-ff64-kv8-nh4-v384", "tiny-nl2-dm32-ff64-kv8-nh4-v384-kh2-shkv"]
GATED = "v1_1-small-nl2-dm32-ff64-kv8-nh4-v384"
TEXTS = ["the fox", "a lazy dog watches", "bridge " * 200, "Seven other animals, under the old bridge."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train((Path(__file__).parents[2] / "docs" / "house.md").read_text().splitlines(), vocab=240, sentinels=10)


@pytest.fixture
def make(tokenizer: Tokenizer) -> Callable[..., OpenedHead]:
    def build(shape: str, head: Head) -> OpenedHead:
        model = T5(parse(shape))
        initialise(model, 5)
        headed = with_head(model, head, seed=3, dropout=0.1).eval()
        return OpenedHead(headed, tokenizer, head, headed.shape, "made here")

    return build


@pytest.mark.parametrize("shape", [*SHAPES, GATED])
def test_tags_are_those_of_t5_for_token_classification(make: Callable, tmp_path: Path, shape: str) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    opened = make(shape, Head(kind="tag", labels=("O", "B-X", "I-X")))
    to_hugging_face(opened, tmp_path / "out")
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "T5ForTokenClassification"
    assert theirs.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    assert theirs.dropout.p == pytest.approx(0.1)
    given = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[:2], return_tensors="pt", padding=True)
    ids = [[*opened.tokenizer.encode(text), 1] for text in TEXTS[:2]]
    assert [row[: len(own)].tolist() for row, own in zip(given["input_ids"], ids, strict=True)] == ids
    with torch.no_grad():
        found, own = theirs(**given).logits, opened.model(given["input_ids"])
    real = given["attention_mask"].bool()
    assert (found - own)[real].abs().max() < 1e-5


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, GATED])
def test_vectors_are_those_of_sentence_transformers(
    make: Callable, tmp_path: Path, shape: str, normalise: bool
) -> None:
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers, the oracle, is not installed")
    opened = make(shape, Head(kind="embed", normalise=normalise, input_tokens=48))
    to_sentence_transformers(opened, tmp_path / "out")
    model = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.max_seq_length == 48
    own = embed(opened, TEXTS)
    assert np.abs(model.encode(TEXTS) - own).max() < 1e-5 * np.abs(own).max()
    assert model.similarity_fn_name == "cosine"


def test_a_classifier_stays_our_own_folder(make: Callable, tmp_path: Path) -> None:
    opened = make(SHAPES[0], Head(kind="classify", labels=("a", "b")))
    to_hugging_face(opened, tmp_path / "out")
    assert open_head(tmp_path / "out").head == opened.head
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"head.json", "head.safetensors", "spiece.model"}


def test_mistakes(make: Callable, tmp_path: Path) -> None:
    opened = make(SHAPES[0], Head(kind="classify", labels=("a", "b")))
    with pytest.raises(UserError, match="was trained to classify; sentence-transformers takes vectors"):
        to_sentence_transformers(opened, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds more than a model"):
        to_hugging_face(opened, tmp_path / "full")
    assert isinstance(opened, OpenedHead)
    assert not isinstance(opened, Opened)
