"""Beam search: against transformers, against a search written out in plain Python, and at its edges."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from deepnarrow.errors import UserError
from deepnarrow.model.decode import Beam, Greedy, Output, generate
from deepnarrow.model.folder import save_model
from deepnarrow.model.inference import pad
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse

from .trained import pairs, trained

SHAPES = ["tiny-nl2-dm64-ff128-kv16-v96", "v1_1-small-nl2-dm48-ff96-kv8-v64", "tiny-nl2-dm64-ff96-kv16-kh2-shkv-v80"]
TOKENS = 16


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> T5:
    return trained(request.param)


@pytest.fixture(scope="module")
def reference(model: T5, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The same weights in transformers."""
    from transformers import T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("reference") / "model"
    save_model(model, None, folder)
    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def texts(model: T5, count: int = 16, seed: int = 9) -> list[list[int]]:
    return [inputs for inputs, _ in pairs(count, model.shape.vocab, seed)]


def until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(1)] if 1 in ids else ids


def assert_same(found: Sequence[Sequence[Output]], expected: Sequence[Sequence[Output]]) -> None:
    assert [[output.ids for output in outputs] for outputs in found] == [
        [output.ids for output in outputs] for outputs in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose([o.score for o in ours], [o.score for o in theirs], rtol=1e-4, atol=1e-4)


def transformers_answers(reference: nn.Module, inputs: Sequence[Sequence[int]], search: Beam) -> list[list[Output]]:
    input_BL = pad(inputs)
    found = reference.generate(
        input_ids=input_BL,
        attention_mask=(input_BL != 0).long(),
        max_new_tokens=TOKENS,
        do_sample=False,
        num_beams=search.width,
        num_return_sequences=search.num_return,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
        return_dict_in_generate=True,
        output_scores=True,
    )
    # where an answer ended early, the row is filled up with 0 behind its EOS; where it ran out of tokens, with nothing
    outputs = [
        Output(until_end(ids[1:]), score)
        for ids, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True)
    ]
    return [outputs[at : at + search.num_return] for at in range(0, len(outputs), search.num_return)]


@torch.no_grad()
def plain_search(model: T5, source: list[int], search: Beam, tokens: int) -> list[Output]:
    """The same search in its plainest form: one input, lists, and the whole model again for each sequence."""

    def gains(ids: list[int]) -> list[float]:
        return model(torch.tensor([source]), torch.tensor([[*ids, 0]]))[0, -1].log_softmax(-1).tolist()

    def penalty(length: int) -> float:
        return (length if search.normaliser == "hf" else (5 + length) / 6) ** search.length_penalty

    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for step in range(1, tokens + 1):
        grown = [(score + gain, [*ids, id]) for score, ids in alive for id, gain in enumerate(gains(ids))]
        grown = sorted(grown, reverse=True)[: 2 * search.width]
        ended = [(score, ids) for score, ids in grown[: search.width] if ids[-1] == 1 or step == tokens]
        finished += [(score / penalty(step), ids) for score, ids in ended]
        finished = sorted(finished, reverse=True)[: search.width]
        alive = [(score, ids) for score, ids in grown if ids[-1] != 1][: search.width]
        if len(finished) == search.width:
            at = tokens if search.early_stopping == "never" and search.length_penalty > 0 else step
            if search.early_stopping is True or alive[0][0] / penalty(at) <= finished[-1][0]:
                break
    return [Output(until_end(ids), score) for score, ids in finished[: search.num_return]]


@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_equals_transformers(model: T5, reference: nn.Module, length_penalty: float, early_stopping: bool) -> None:
    inputs = texts(model)
    search = Beam(4, length_penalty=length_penalty, early_stopping=early_stopping, num_return=4)
    found = generate(model, inputs, search, max_tokens=TOKENS, batch=6)
    assert_same(found, transformers_answers(reference, inputs, search))
    lengths = {len(output.ids) for outputs in found for output in outputs}
    # answers must end at various lengths to test ending; where long ones win at any price they rightly do not
    assert len(lengths) >= 5 or (early_stopping == "never" and length_penalty == 2.0)


@pytest.mark.parametrize("width", [2, 7])
def test_other_widths_equal_transformers(model: T5, reference: nn.Module, width: int) -> None:
    inputs = texts(model, 8)
    search = Beam(width, num_return=2)
    found = generate(model, inputs, search, max_tokens=TOKENS, batch=3)
    assert_same(found, transformers_answers(reference, inputs, search))


@pytest.mark.parametrize("normaliser", ["hf", "wu"])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_equals_the_plain_search(normaliser: str, early_stopping: bool) -> None:
    """Cached and batched equals uncached and alone."""
    model = trained(SHAPES[1])
    inputs = texts(model, 5)
    search = Beam(3, length_penalty=0.6, normaliser=normaliser, early_stopping=early_stopping, num_return=3)
    found = generate(model, inputs, search, max_tokens=10, batch=5)
    assert_same(found, [plain_search(model, source, search, 10) for source in inputs])


def test_the_penalty_of_wu() -> None:
    """Long answers lose by less than under hf, and differ from it."""
    wu = Beam(4, 0.6, "wu")
    assert wu.penalty(1) == 1.0
    assert wu.penalty(7) == pytest.approx(2**0.6)
    model = trained(SHAPES[0])
    inputs = texts(model)
    hf = generate(model, inputs, Beam(4, 0.6), max_tokens=TOKENS)
    assert hf != generate(model, inputs, wu, max_tokens=TOKENS)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_beam_of_one_is_greedy(model: T5, length_penalty: float, early_stopping: bool) -> None:
    inputs = texts(model)
    search = Beam(1, length_penalty, early_stopping=early_stopping)
    narrow = generate(model, inputs, search, max_tokens=TOKENS)
    greedy = generate(model, inputs, Greedy(), max_tokens=TOKENS)
    assert [outputs[0].ids for outputs in narrow] == [outputs[0].ids for outputs in greedy]


def test_all_answers_are_batch_invariant(model: T5) -> None:
    inputs = texts(model)
    search = Beam(4, num_return=4)
    found = generate(model, inputs, search, max_tokens=TOKENS, batch=16)
    for batch in (1, 5):
        assert_same(generate(model, inputs, search, max_tokens=TOKENS, batch=batch), found)


def test_answers_come_best_first_and_fewer_are_the_first_of_more(model: T5) -> None:
    inputs = texts(model)
    many = generate(model, inputs, Beam(4, num_return=4), max_tokens=TOKENS)
    for outputs in many:
        assert len(outputs) == 4
        assert [o.score for o in outputs] == sorted((o.score for o in outputs), reverse=True)
        assert len({tuple(o.ids) for o in outputs}) == 4
    few = generate(model, inputs, Beam(4, num_return=2), max_tokens=TOKENS)
    assert few == [outputs[:2] for outputs in many]


def test_a_wider_beam_finds_likelier_answers(model: T5) -> None:
    """Not for each input, but on the whole."""
    inputs = texts(model)

    def mean(search: Beam) -> float:
        found = generate(model, inputs, search, max_tokens=TOKENS)
        return float(np.mean([outputs[0].score for outputs in found]))

    assert mean(Beam(1, 0.0)) < mean(Beam(4, 0.0, early_stopping="never"))


def test_finished_inputs_leave_the_batch(model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    decode = model.decode

    def counted(ids: torch.Tensor, *others: object) -> torch.Tensor:
        rows.append(len(ids))
        return decode(ids, *others)

    monkeypatch.setattr(model, "decode", counted)
    generate(model, texts(model), Beam(3, early_stopping=True), max_tokens=TOKENS, batch=16)
    assert rows[0] == 48
    assert rows[-1] < 48
    assert all(count % 3 == 0 for count in rows)
    assert rows == sorted(rows, reverse=True)


def test_min_tokens_and_stops() -> None:
    model = trained(SHAPES[1])
    inputs = texts(model)
    found = generate(model, inputs, Beam(4, num_return=4), max_tokens=12, min_tokens=4)
    assert min(len(output.ids) for outputs in found for output in outputs) == 4
    everything = list(range(2, model.shape.vocab))  # every id ends: the shortest answers there are
    found = generate(model, inputs, Beam(3), max_tokens=12, stop=everything, vocab_limit=model.shape.vocab)
    assert {len(outputs[0].ids) for outputs in found} <= {0, 1}  # an id 0 does not end


def test_when_nothing_stays_open(small: T5) -> None:
    """A function may end every candidate: the search is over, and what was found is returned."""
    [outputs] = generate(small, [[5, 1]], Beam(3, num_return=3), max_tokens=9, stop=[lambda ids: len(ids) == 2])
    assert outputs
    assert all(len(output.ids) <= 2 for output in outputs)
    assert all(math.isfinite(output.score) for output in outputs)


def test_a_vocabulary_smaller_than_the_beam(small: T5) -> None:
    [outputs] = generate(small, [[5, 1]], Beam(8, num_return=8), max_tokens=2, vocab_limit=2)
    found = {tuple(output.ids) for output in outputs}
    assert found == {(), (0,), (0, 0)}  # all there is: 1 is the EOS; three answers, not eight


@pytest.fixture(scope="module")
def small() -> T5:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v50"))
    initialise(model, seed=1)
    return model.eval()


def test_mistakes_teach() -> None:
    for wrong, message in [
        ({"width": 0}, "at least 1"),
        ({"width": 2, "num_return": 3}, "can return 1 to 2"),
        ({"num_return": 0}, "can return"),
        ({"length_penalty": math.inf}, "finite"),
        ({"normaliser": "w"}, "wu"),
        ({"early_stopping": "ever"}, "'never'"),
    ]:
        with pytest.raises(UserError, match=message):
            Beam(**wrong)
