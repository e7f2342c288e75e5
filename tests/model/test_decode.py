"""Generation as a whole, greedy decoding, and what holds for every search; beams and sampling have their own files."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.model.decode import Beam, Greedy, Sample, Search, cut, generate, generate_each, until
from deepnarrow.model.folder import save_model
from deepnarrow.model.inference import WINDOW, batches_by_length, pad
from deepnarrow.model.init import initialise
from deepnarrow.model.likelihood import score
from deepnarrow.model.limits import Limits
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse

from .trained import pairs, trained

SHAPES = ["tiny-nl2-dm64-ff128-kv16-v96", "v1_1-small-nl2-dm48-ff96-kv8-v64", "tiny-el3-dl1-dm64-ff96-kv16-kh2-skv-v80"]
SEARCHES = [Greedy(), Beam(3), Sample(seed=5)]


@pytest.fixture(scope="module", params=SHAPES, name="trained")
def trained_model(request: pytest.FixtureRequest) -> T5:
    return trained(request.param)


@pytest.fixture(scope="module")
def small() -> T5:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v50"))
    initialise(model, seed=1)
    return model.eval()


def texts(model: T5, count: int = 24, seed: int = 9) -> list[list[int]]:
    return [inputs for inputs, _ in pairs(count, model.shape.vocab, seed)]


def reference_answers(model: T5, inputs: Sequence[Sequence[int]], folder: Path, **options: object) -> list[list[int]]:
    """What transformers generates with the same weights, up to the EOS."""
    from transformers import T5ForConditionalGeneration

    save_model(model, None, folder)
    reference = T5ForConditionalGeneration.from_pretrained(folder).eval()
    input_BL = pad(inputs)
    answers = reference.generate(input_ids=input_BL, attention_mask=(input_BL != 0).long(), **options)
    rows = [ids[1:] for ids in answers.tolist()]
    return [ids[: ids.index(1)] if 1 in ids else ids for ids in rows]


def ids(answers: list) -> list[list[int]]:
    return [outputs[0].ids for outputs in answers]


@torch.no_grad()
def uncached(model: T5, source: list[int], tokens: int) -> list[int]:
    """Greedy decoding in its plainest form: the whole model again for each token."""
    found: list[int] = []
    for _ in range(tokens):
        logits = model(torch.tensor([source]), torch.tensor([[*found, 0]]))
        found.append(int(logits[0, -1].argmax()))
        if found[-1] == 1:
            return found[:-1]
    return found


def test_greedy_equals_transformers(trained: T5, tmp_path: Path) -> None:
    inputs = texts(trained)
    answers = ids(generate(trained, inputs, Greedy(), max_tokens=20, batch=7))
    assert answers == reference_answers(trained, inputs, tmp_path, max_new_tokens=20, num_beams=1, do_sample=False)
    assert len({len(answer) for answer in answers}) >= 4, "answers must end at various lengths to test ending"
    assert any(len(answer) < 20 for answer in answers)


def test_min_tokens_equals_transformers(trained: T5, tmp_path: Path) -> None:
    inputs = texts(trained)
    answers = ids(generate(trained, inputs, Greedy(), max_tokens=12, min_tokens=5))
    assert min(map(len, answers)) == 5
    assert answers == reference_answers(trained, inputs, tmp_path, max_new_tokens=12, min_new_tokens=5, num_beams=1)


def test_cached_equals_uncached(trained: T5) -> None:
    inputs = texts(trained, 12)
    answers = ids(generate(trained, inputs, Greedy(), max_tokens=20, batch=5))
    assert answers == [uncached(trained, source, 20) for source in inputs]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_an_answer_does_not_depend_on_its_neighbours(trained: T5, search: Search) -> None:
    inputs = texts(trained)
    answers = generate(trained, inputs, search, max_tokens=20, batch=8)
    for batch in (1, 3, 24):
        again = generate(trained, inputs, search, max_tokens=20, batch=batch)
        assert ids(again) == ids(answers)
        np.testing.assert_allclose([a[0].score for a in again], [a[0].score for a in answers], rtol=1e-4, atol=1e-4)
    others = texts(trained, seed=77)
    mixed = [others[i] if i % 3 else source for i, source in enumerate(inputs)]
    assert ids(generate(trained, mixed, search, max_tokens=20, batch=8))[::3] == ids(answers)[::3]


@pytest.mark.parametrize("search", [Greedy(), Beam(3)], ids=lambda search: type(search).__name__)
def test_shuffled_inputs_give_shuffled_answers(trained: T5, search: Search) -> None:
    inputs = texts(trained)
    answers = ids(generate(trained, inputs, search, max_tokens=20, batch=8))
    order = np.random.default_rng(0).permutation(len(inputs))
    shuffled = ids(generate(trained, [inputs[i] for i in order], search, max_tokens=20, batch=5))
    assert shuffled == [answers[i] for i in order]


def test_the_score_is_the_log_likelihood(trained: T5) -> None:
    inputs = texts(trained)
    for search in (Greedy(), Sample(temperature=2.0, top_k=9), Beam(3, length_penalty=0.0)):
        outputs = [answer[0] for answer in generate(trained, inputs, search, max_tokens=20)]
        whole = [([*output.ids, 1] if len(output.ids) < 20 else output.ids) for output in outputs]
        np.testing.assert_allclose([output.score for output in outputs], score(trained, inputs, whole), atol=1e-3)


def test_max_tokens_counts_the_end(trained: T5) -> None:
    inputs = texts(trained)
    long = ids(generate(trained, inputs, Greedy(), max_tokens=20))
    short = ids(generate(trained, inputs, Greedy(), max_tokens=3))
    assert short == [answer[:3] for answer in long]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_rows_of_vocabulary_padding_are_never_generated(search: Search) -> None:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v50-untied"))
    initialise(model, seed=1)
    with torch.no_grad():
        model.output.weight[40:] *= 30  # mesh-TF and others leave these rows at random: they may be the likeliest
    inputs = texts(model, 12)
    assert max(map(max, ids(generate(model, inputs, search, max_tokens=8)))) >= 40
    for outputs in generate(model, inputs, search, max_tokens=8, min_tokens=2, vocab_limit=40, stop=[45]):
        assert max(outputs[0].ids, default=0) < 40


@pytest.mark.parametrize("search", [Greedy(), Beam(3, early_stopping=True)], ids=lambda search: type(search).__name__)
def test_stops(trained: T5, search: Search) -> None:
    inputs = texts(trained)
    full = ids(generate(trained, inputs, search, max_tokens=20))
    longest = max(full, key=len)
    run, function = longest[1:3], lambda ids: len(ids) == 2

    def before(answer: list[int]) -> list[int]:
        return next((answer[:at] for at in range(len(answer)) if answer[at : at + 2] == run), answer)

    if isinstance(search, Greedy):
        assert ids(generate(trained, inputs, search, max_tokens=20, stop=[run])) == [before(answer) for answer in full]
        stopped = generate(trained, inputs, search, max_tokens=20, stop=[run[0], [run[1]]])
        ends = [next((i for i, id in enumerate(answer) if id in run), len(answer)) for answer in full]
        assert ids(stopped) == [answer[:end] for answer, end in zip(full, ends, strict=True)]
    assert max(map(len, ids(generate(trained, inputs, search, max_tokens=20, stop=[function])))) == 2
    for answer in ids(generate(trained, inputs, search, max_tokens=20, stop=[run])):
        assert before(answer) == answer


def test_stopping_at_a_text(trained: T5) -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + id) for id in ids)

    inputs = texts(trained)
    full = [decode(answer) for answer in ids(generate(trained, inputs, Greedy(), max_tokens=20))]
    end = max(full, key=len)[1:3]
    stopped = generate(trained, inputs, Greedy(), max_tokens=20, stop=[until([end], decode)])
    assert [cut(decode(answer), [end]) for answer in ids(stopped)] == [cut(text, [end]) for text in full]
    assert all(decode(answer).endswith(end) for answer in ids(stopped) if end in decode(answer))


def test_tokens_are_told_as_they_come(trained: T5) -> None:
    inputs = texts(trained)
    for search in (Greedy(), Sample(seed=1)):
        heard: list[tuple[int, int]] = []
        answers = generate(
            trained, inputs, search, max_tokens=20, batch=9, on_token=lambda *told, to=heard: to.append(told)
        )
        assert [[id for row, id in heard if row == index] for index in range(len(inputs))] == ids(answers)
    with pytest.raises(UserError, match="only at the end"):
        generate(trained, inputs, Beam(2), on_token=print)
    with pytest.raises(UserError, match="for one answer, not for 2"):
        generate(trained, inputs, Sample(num_return=2), on_token=print)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_work_is_done_once_and_finished_rows_leave(
    trained: T5, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = SimpleNamespace(encoded=0, crossed=0, rows=[])
    encode, decode = trained.encode, trained.decode
    block = trained.decoder.blocks[0].cross_attention
    look = block.look_at

    def counted_encode(ids: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        seen.encoded += len(ids)
        return encode(ids, *others, **named)

    def counted_look(memory: torch.Tensor) -> object:
        seen.crossed += len(memory)
        return look(memory)

    def counted_decode(ids: torch.Tensor, *others: object) -> torch.Tensor:
        seen.rows.append(len(ids))
        assert ids.shape[1] == 1
        return decode(ids, *others)

    monkeypatch.setattr(trained, "encode", counted_encode)
    monkeypatch.setattr(trained, "decode", counted_decode)
    monkeypatch.setattr(block, "look_at", counted_look)
    inputs = texts(trained, 16)
    lengths = [len(answer) for answer in ids(generate(trained, inputs, search, max_tokens=20, batch=16))]
    assert seen.encoded == seen.crossed == 16
    assert sorted(seen.rows, reverse=True) == seen.rows
    width = search.width if isinstance(search, Beam) else 1
    if width == 1:
        for step, rows in enumerate(seen.rows):
            left = sum(length >= step for length in lengths)
            assert rows * 0.75 < left <= rows
    assert seen.rows[-1] < seen.rows[0]


def test_answers_come_batch_by_batch(small: T5) -> None:
    inputs = texts(small, 10)
    each = generate_each(small, inputs, Greedy(), max_tokens=4, batch=2)
    first = [next(each)[0] for _ in range(2)]
    assert sorted(first) == sorted(batches_by_length(inputs, 2).__next__())
    assert sorted([*first, *(index for index, _ in each)]) == list(range(10))
    with pytest.raises(UserError, match="batch"):
        generate_each(small, inputs, Greedy(), batch=0)


def test_batches_hold_every_row_once_and_sort_within_a_window() -> None:
    rows = [[1] * (1 + number % 13) for number in range(3 * WINDOW * 2 + 5)]
    batches = list(batches_by_length(rows, 2))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert max(batches[WINDOW - 1]) < WINDOW * 2
    first = [len(rows[index]) for batch in batches[:WINDOW] for index in batch]
    assert first == sorted(first, reverse=True)


def test_a_model_in_training_is_left_in_training(small: T5) -> None:
    small.train()
    inputs = pad(texts(small, 3))
    generate(small, inputs.tolist(), Greedy(), max_tokens=3)
    assert small.training
    small(inputs, inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    small.zero_grad(set_to_none=True)
    small.eval()


def test_dropout_is_off_while_generating() -> None:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v50"), dropout=0.5)
    initialise(model, seed=1)
    model.train()
    inputs = texts(model, 4)
    assert generate(model, inputs, Greedy(), max_tokens=6) == generate(model, inputs, Greedy(), max_tokens=6)


def test_padding_the_caller_added_changes_nothing(small: T5) -> None:
    inputs = texts(small, 6)
    answers = ids(generate(small, inputs, Greedy(), max_tokens=6))
    assert ids(generate(small, pad(inputs).tolist(), Greedy(), max_tokens=6)) == answers


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_bfloat16(search: Search) -> None:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v50"))
    initialise(model, seed=1)
    answers = generate(model.to(torch.bfloat16), texts(model, 5), search, max_tokens=6, batch=2)
    assert all(np.isfinite(outputs[0].score) for outputs in answers)


def test_nothing_in_nothing_out(small: T5) -> None:
    assert generate(small, [], Greedy(), progress=True) == []


def test_progress_is_shown(small: T5, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepnarrow.progress.PLAIN_EVERY", 0.0)
    generate(small, texts(small, 3), Greedy(), max_tokens=2, progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert not shown.out


def test_mistakes_teach(small: T5) -> None:
    with pytest.raises(UserError, match=r"input 2 has no tokens"):
        generate(small, [[5, 1], []], Greedy())
    with pytest.raises(UserError, match=r"input 1 has no tokens"):
        generate(small, [[0, 0]], Greedy())
    with pytest.raises(UserError, match=r"input 1 holds token id 50, .* 0 to 49; use the tokenizer"):
        generate(small, [[50, 1]], Greedy())
    with pytest.raises(UserError, match="token id -3"):
        generate(small, [[5, -3]], Greedy())
    with pytest.raises(UserError, match="encoder alone"):
        generate(T5(parse("tiny-dl0-v50")), [[5, 1]], Greedy())
    for wrong in ({"max_tokens": 0}, {"min_tokens": 9, "max_tokens": 8}, {"vocab_limit": 1}, {"min_tokens": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Limits(**{"max_tokens": 5, **wrong})
    for stop in ("text", []):
        with pytest.raises(UserError, match="a stop is"):
            Limits(5, stop=(stop,))
