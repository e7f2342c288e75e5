"""Log-likelihoods: equal to the plain computation, whatever the batch, and each input encoded once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.model import likelihood
from deepnarrow.model.inference import pad
from deepnarrow.model.init import initialise
from deepnarrow.model.likelihood import choose, rank, score
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse

SHAPES = ["tiny-nl2-dm64-ff128-kv16-v96", "v1_1-small-nl2-dm48-ff96-kv8-v64", "tiny-el3-dl1-dm64-ff96-kv16-kh1-skv-v80"]


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> T5:
    model = T5(parse(request.param))
    initialise(model, seed=2)
    return model.eval()


def rows(count: int, longest: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, 60, rng.integers(0, longest)).tolist(), 1] for _ in range(count)]


@torch.no_grad()
def plain(model: T5, source: list[int], target: list[int]) -> float:
    """One pair alone, straight from the logits."""
    logits = model(torch.tensor([source]), torch.tensor([target]))[0].double()
    return float(logits.log_softmax(-1)[range(len(target)), target].sum())


def test_score_equals_the_plain_computation(model: T5) -> None:
    inputs, targets = rows(25, 12, 0), rows(25, 9, 1)
    expected = [plain(model, *pair) for pair in zip(inputs, targets, strict=True)]
    for batch in (1, 4, 32):
        np.testing.assert_allclose(score(model, inputs, targets, batch=batch), expected, atol=1e-4)
    per_token = score(model, inputs, targets, normalise=True)
    np.testing.assert_allclose(per_token, np.array(expected) / [len(target) for target in targets], atol=1e-4)


def test_score_is_minus_the_loss_of_transformers(model: T5, tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import T5ForConditionalGeneration

    from deepnarrow.model.folder import save_model

    folder = tmp_path_factory.mktemp("reference") / "model"
    save_model(model, None, folder)
    reference = T5ForConditionalGeneration.from_pretrained(folder).eval()
    inputs, targets = rows(6, 12, 0), rows(6, 9, 1)
    input_BL, labels = pad(inputs), pad(targets)
    mask = (input_BL != 0).long()
    with torch.no_grad():
        loss = reference(input_ids=input_BL, attention_mask=mask, labels=labels.masked_fill(labels == 0, -100)).loss
    mean = -sum(score(model, inputs, targets)) / sum(map(len, targets))
    assert mean == pytest.approx(loss.item(), abs=1e-5)


def test_rank_scores_every_pair(model: T5) -> None:
    inputs, choices = rows(9, 12, 0), rows(5, 7, 1)
    expected = [[plain(model, source, choice) for choice in choices] for source in inputs]
    for batch in (1, 2, 4, 8, 64):  # with 64, several choices share a step; with less than 9 inputs, a batch is short
        found = rank(model, inputs, choices, batch=batch)
        assert found.shape == (9, 5)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    per_token = rank(model, inputs, choices, normalise=True)
    np.testing.assert_allclose(per_token, np.array(expected) / [len(choice) for choice in choices], atol=1e-4)
    assert choose(found) == np.argmax(expected, axis=1).tolist()


def test_neighbours_do_not_matter(model: T5) -> None:
    inputs, choices = rows(12, 30, 0), rows(4, 7, 1)
    found = rank(model, inputs, choices, batch=12)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(rank(model, [inputs[i] for i in order], choices, batch=5), found[order], atol=1e-4)
    np.testing.assert_allclose(rank(model, inputs, choices[::-1], batch=7), found[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(score(model, inputs, [choices[0]] * 12, batch=12), found[:, 0], atol=1e-4)


def test_rank_encodes_each_input_once(model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(encoded=0, crossed=0)
    encode, attention = model.encode, model.decoder.blocks[0].cross_attention
    look = attention.look_at

    def counted_encode(ids: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        seen.encoded += len(ids)
        return encode(ids, *rest, **named)

    def counted_look(memory: torch.Tensor) -> object:
        seen.crossed += len(memory)
        return look(memory)

    monkeypatch.setattr(model, "encode", counted_encode)
    monkeypatch.setattr(attention, "look_at", counted_look)
    rank(model, rows(11, 9, 0), rows(6, 5, 1), batch=4)
    assert seen.encoded == seen.crossed == 11


def test_few_logits_at_once(model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = rows(10, 12, 0), rows(10, 9, 1)
    whole = score(model, inputs, targets)
    sizes = []
    logits = model.logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(model, "logits", counted)
    monkeypatch.setattr(likelihood, "LOGITS", 7 * model.shape.vocab)
    np.testing.assert_allclose(score(model, inputs, targets), whole, atol=1e-5)
    assert max(sizes) == 7
    assert sum(sizes) == sum(map(len, targets)), "padding is not multiplied"


def test_bfloat16_is_near(model: T5) -> None:
    inputs, targets = rows(6, 12, 0), rows(6, 9, 1)
    exact = score(model, inputs, targets, normalise=True)
    rough = T5(model.shape)
    rough.load_state_dict(model.state_dict())
    np.testing.assert_allclose(score(rough.to(torch.bfloat16), inputs, targets, normalise=True), exact, atol=0.2)


def test_progress_and_empty(model: T5, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepnarrow.progress.PLAIN_EVERY", 0.0)
    rank(model, rows(3, 5, 0), rows(2, 5, 1), batch=2, progress=True)
    score(model, rows(3, 5, 0), rows(3, 5, 1), batch=2, progress=True)
    assert capsys.readouterr().err.count("3/3") == 2
    assert score(model, [], []) == []
    assert rank(model, [], [[5, 1]]).shape == (0, 1)


def test_a_model_in_training_is_left_in_training(model: T5) -> None:
    model.train()
    score(model, [[5, 1]], [[6, 1]])
    assert model.training
    model.eval()


def test_mistakes_teach(model: T5) -> None:
    with pytest.raises(UserError, match="2 inputs and 1 targets"):
        score(model, [[5, 1], [6, 1]], [[5, 1]])
    with pytest.raises(UserError, match="target 1 has no tokens"):
        score(model, [[5, 1]], [[]])
    with pytest.raises(UserError, match="choice 2 holds token id 9999"):
        rank(model, [[5, 1]], [[5], [9999]])
    with pytest.raises(UserError, match="nothing to choose from"):
        rank(model, [[5, 1]], [])
    with pytest.raises(UserError, match="batch must be at least 1"):
        rank(model, [[5, 1]], [[5]], batch=0)
