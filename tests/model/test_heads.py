"""Encoders under a head: the same encoder, saved and opened to the bit, and used in any batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.model.encoding import embed, probabilities, tags
from deepnarrow.model.folder import Opened, open_model, save_model
from deepnarrow.model.heads import Head, OpenedHead, open_head, save_head, with_head
from deepnarrow.text.tokenizer import load

SHAPE = "tiny-nl2-dm32-ff64-kv8-nh4-v384"
SHAPES = [SHAPE, f"{SHAPE}-sh", f"{SHAPE}-kh2-skv", "v1_1-small-nl2-dm32-ff64-kv8-nh4-v384"]
TEXTS = ["a", "a rather longer text than the first one is", "one of three", "b " * 90]
HEADS = {
    "classify": Head(kind="classify", labels=("no", "yes", "maybe"), input_tokens=64),
    "tag": Head(kind="tag", labels=("O", "B-X", "I-X"), input_tokens=24),
    "embed": Head(kind="embed", normalise=True, input_tokens=64),
}

Make = Callable[..., OpenedHead]


@pytest.fixture
def make(random_model: Callable) -> Make:
    def build(kind: str, shape: str = SHAPE) -> OpenedHead:
        model = with_head(random_model(shape), HEADS[kind], seed=3).eval()
        return OpenedHead(model, load("bytes"), model.head, model.shape, "made here")

    return build


@pytest.mark.parametrize("shape", SHAPES)
def test_the_encoder_is_the_models(random_model: Callable, ids: Callable, shape: str) -> None:
    model, batch = random_model(shape), ids([7, 3], 8, 384)
    headed = with_head(model, HEADS["embed"]).eval()
    with torch.no_grad():
        assert torch.equal(headed.body.encode(batch), model.encode(batch))
        wanted = torch.stack([model.encode(row[None, :n])[0].mean(0) for row, n in zip(batch, (7, 3), strict=True)])
        assert torch.allclose(headed(batch), torch.nn.functional.normalize(wanted, dim=-1), atol=1e-5)
    assert sum(p.numel() for p in headed.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_saved_and_opened_to_the_bit(make: Make, ids: Callable, tmp_path: Path, kind: str, shape: str) -> None:
    before, batch = make(kind, shape), ids([9, 4], 9, 384)
    save_head(before.model, before.tokenizer, tmp_path / "head")
    after = open_head(tmp_path / "head")
    assert (after.head, after.shape) == (before.head, before.shape)
    with torch.no_grad():
        assert torch.equal(after.model(batch), before.model(batch))
    save_head(after.model, after.tokenizer, tmp_path / "head")  # over itself


def test_transformers_opens_the_encoder(make: Make, ids: Callable, tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    opened, batch = make("classify"), ids([9, 4], 9, 384)
    save_head(opened.model, opened.tokenizer, tmp_path / "head")
    theirs = T5EncoderModel.from_pretrained(tmp_path / "head").eval()
    with torch.no_grad():
        found = theirs(batch, attention_mask=(batch != 0).long()).last_hidden_state
        assert torch.allclose(found[batch != 0], opened.model.body.encode(batch)[batch != 0], atol=1e-5)


def test_answers_do_not_depend_on_the_batch(make: Make) -> None:
    opened = make("classify")
    together = probabilities(opened, TEXTS)
    assert np.allclose(together.sum(1), 1)
    assert np.allclose(together, np.concatenate([probabilities(opened, [text]) for text in TEXTS]), atol=1e-5)
    opened = make("embed")
    together = embed(opened, TEXTS, tokens=64)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, np.concatenate([embed(opened, [text]) for text in TEXTS]), atol=1e-5)


def test_every_word_of_a_long_sentence_has_a_tag(make: Make) -> None:
    opened = make("tag")
    sentences = [["one", "word", "and", "another"] * 9, ["three"], ["a", "b"]]
    found = tags(opened, sentences)
    assert [len(one.tags) for one in found] == [36, 1, 2]
    assert {tag for one in found for tag in one.tags} <= set(opened.head.labels)
    assert all(one.log_probability < 0 for one in found)
    # the second row of ids is read as it is alone
    assert found[2].tags == tags(opened, sentences[2:])[0].tags


def test_any_plain_model_embeds(random_model: Callable, make: Make) -> None:
    model = random_model(SHAPE)
    plain = Opened(model, load("bytes"), model.shape, "made here")
    vectors = embed(plain, TEXTS[:2])
    ids = torch.tensor([[*plain.tokenizer.encode(TEXTS[1]), 1]])
    with torch.no_grad():
        assert np.allclose(vectors[1], model.encode(ids)[0].mean(0).numpy(), atol=1e-5)
    with_own = embed(make("classify"), TEXTS[:2])  # the vectors below a head that was not made for them
    assert np.allclose(vectors, with_own, atol=1e-5)
    assert np.allclose(np.linalg.norm(embed(plain, TEXTS, normalise=True), axis=1), 1, atol=1e-5)


def test_each_kind_of_folder_says_what_it_is(make: Make, random_model: Callable, tmp_path: Path) -> None:
    opened = make("classify")
    save_head(opened.model, opened.tokenizer, tmp_path / "head")
    save_model(random_model(SHAPE), opened.tokenizer, tmp_path / "plain")
    with pytest.raises(UserError, match="an encoder with a head, which writes no text: score it with `deepnarrow eval"):
        open_model(tmp_path / "head")
    with pytest.raises(UserError, match=r"has no head \(no head.json\); give it one with `deepnarrow finetune"):
        open_head(tmp_path / "plain")
    with pytest.raises(UserError, match="holds more than a model"):
        save_model(random_model(SHAPE), opened.tokenizer, tmp_path / "head")
    with pytest.raises(UserError, match="was trained to classify, not to tag"):
        tags(opened, [["a"]])


def test_broken_folders(make: Make, tmp_path: Path) -> None:
    opened, folder = make("tag"), tmp_path / "head"
    save_head(opened.model, opened.tokenizer, folder)
    said = read_json(folder / "head.json")
    for changed, message in (
        ({**said, "labels": ["O", "B-X"]}, "but head.json and config.json ask for"),
        ({**said, "label": []}, "unknown key 'label'; did you mean labels"),
        ({**said, "kind": "tagg"}, "unknown head 'tagg'; did you mean tag"),
        ({**said, "format": 2}, "not a head of format 1"),
    ):
        write_json(folder / "head.json", changed)
        with pytest.raises(UserError, match=message):
            open_head(folder)
    write_json(folder / "head.json", said)
    (folder / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks head\.safetensors"):
        open_head(folder)


def test_heads_that_cannot_be() -> None:
    for values, message in (
        ({"kind": "sort"}, "unknown head 'sort'"),
        ({"kind": "tag", "labels": ("O",)}, "needs two labels or more"),
        ({"kind": "classify", "labels": ("a", "a")}, "needs two labels or more"),
        ({"kind": "embed", "labels": ("a", "b")}, "has no labels"),
        ({"kind": "embed", "input_tokens": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            Head(**values)
