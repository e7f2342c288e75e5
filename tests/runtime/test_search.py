"""The searches over an engine give what model/decode.py gives: ids, scores, what is told, and what is refused."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.model import decode as reference
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.engine import Chosen, Engine
from deepnarrow.runtime.limits import Limits, Output
from deepnarrow.runtime.memories import Memories
from deepnarrow.runtime.search import Beam, Greedy, Sample, advance, generate, generate_each, grow, until

SEARCHES = [
    Greedy(),
    Sample(seed=5),
    Sample(temperature=1.5, top_k=7, top_p=0.8, seed=2, num_return=3),
    Sample(temperature=0.0),
    Beam(3, num_return=3),
    Beam(4, length_penalty=0.6, normaliser="wu", early_stopping="never", num_return=2),
    Beam(2, length_penalty=-0.5, early_stopping=True),
    Beam(1),
]


@pytest.fixture(scope="session")
def model(trained: Callable[..., T5]) -> T5:
    return trained()


@pytest.fixture(scope="session")
def engine(engine_of: Callable[..., Engine], model: T5) -> Engine:
    return engine_of(model)


@pytest.fixture(scope="session")
def inputs(texts: Callable[..., list[list[int]]], model: T5) -> list[list[int]]:
    return texts(model)


def of_model(search: object) -> reference.Search:
    """The same options for a T5 and its cache."""
    return getattr(reference, type(search).__name__)(**vars(search))


def ids(answers: Sequence[Sequence[Output]]) -> list[list[list[int]]]:
    return [[output.ids for output in outputs] for outputs in answers]


def assert_same(found: Sequence[Sequence[Output]], expected: Sequence[Sequence[Output]]) -> None:
    assert ids(found) == ids(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose([o.score for o in ours], [o.score for o in theirs], rtol=1e-4, atol=1e-4)
        assert all(output.whole for output in ours)


class Counting:
    """An engine that notes the rows of each step and the inputs encoded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[int] = []
        self.encoded = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def encode(self, inputs: Sequence[Sequence[int]], prompts: object = None) -> object:
        self.encoded += len(inputs)
        return self.engine.encode(inputs, prompts)

    def step(self, rows: Sequence[object], tokens: Sequence[Sequence[int]], **options: object) -> Chosen:
        self.rows.append(len(rows))
        return self.engine.step(rows, tokens, **options)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_equals_the_model(engine: Engine, model: T5, inputs: list[list[int]], search: object) -> None:
    expected = reference.generate(model, inputs, of_model(search), max_tokens=16)
    for batch in (None, 5, 1):
        assert_same(generate(engine, inputs, search, max_tokens=16, batch=batch), expected)
    lengths = {len(output.ids) for outputs in expected for output in outputs}
    assert len(lengths) >= 4, "answers must end at various lengths to test ending"


@pytest.mark.parametrize("search", [Greedy(), Sample(seed=1), Beam(3, num_return=2)], ids=str)
def test_limits_equal_the_models(
    engine_of: Callable[..., Engine], model: T5, inputs: list[list[int]], search: object
) -> None:
    longest = max((answer[0].ids for answer in reference.generate(model, inputs, reference.Greedy())), key=len)
    for limits in (
        {"max_tokens": 12, "min_tokens": 5},
        {"max_tokens": 3},
        {"max_tokens": 1},
        {"max_tokens": 12, "stop": [longest[1], longest[2:4]]},
        {"max_tokens": 12, "stop": [lambda ids: len(ids) == 2]},
        {"max_tokens": 12, "stop": [until(["ab"], lambda ids: "".join(chr(97 + id % 3) for id in ids))]},
        {"max_tokens": 12, "stop": list(range(2, 96))},
        {"max_tokens": 12, "min_tokens": 2, "vocab_limit": 50},
        {"max_tokens": 12, "eos": longest[1]},
    ):
        expected = reference.generate(model, inputs, of_model(search), **limits)
        engine = engine_of(model, vocab_limit=limits.pop("vocab_limit", None))
        assert_same(generate(engine, inputs, search, batch=7, **limits), expected)


def test_fewer_sequences_than_a_beam(engine_of: Callable[..., Engine], untrained: Callable[..., T5]) -> None:
    small = untrained("tiny-nl1-dm32-ff64-kv8-v50")
    engine = engine_of(small, vocab_limit=2)
    [outputs] = generate(engine, [[5, 1]], Beam(8, num_return=8), max_tokens=2)
    assert {tuple(output.ids) for output in outputs} == {(), (0,), (0, 0)}  # all there is: 1 is the EOS
    [outputs] = generate(engine, [[5, 1]], Beam(3, num_return=3), max_tokens=9, stop=[lambda ids: len(ids) == 2])
    assert outputs
    assert all(len(output.ids) <= 2 and np.isfinite(output.score) for output in outputs)


def test_prompts_equal_the_models(engine: Engine, model: T5, inputs: list[list[int]]) -> None:
    rng = torch.Generator().manual_seed(0)
    prompts = [None if i % 3 == 0 else torch.randn(i % 3 + 1, 64, generator=rng) for i in range(len(inputs))]
    arrays = [None if prompt is None else prompt.numpy() for prompt in prompts]
    found = generate(engine, inputs, Greedy(), prompts=arrays, max_tokens=12)
    assert_same(found, reference.generate(model, inputs, reference.Greedy(), prompts=prompts, max_tokens=12))
    assert ids(found) != ids(generate(engine, inputs, Greedy(), max_tokens=12))


def test_tokens_are_told_as_they_come(engine: Engine, inputs: list[list[int]]) -> None:
    for search in (Greedy(), Sample(seed=1)):
        heard: list[tuple[int, int]] = []
        answers = generate(engine, inputs, search, max_tokens=16, on_token=lambda *told, to=heard: to.append(told))
        assert [[[id for row, id in heard if row == index]] for index in range(len(inputs))] == ids(answers)
    with pytest.raises(UserError, match="only at the end"):
        generate_each(engine, inputs, Beam(2), on_token=print)
    with pytest.raises(UserError, match="for one answer, not for 2"):
        generate_each(engine, inputs, Sample(num_return=2), on_token=print)


def test_a_finished_rows_place_goes_to_the_next_at_once(engine: Engine, inputs: list[list[int]]) -> None:
    counting = Counting(engine)
    answers = generate(counting, inputs, Greedy(), max_tokens=16, batch=6)
    assert counting.encoded == len({tuple(row) for row in inputs})
    assert max(counting.rows) == 6
    full = [rows for rows in counting.rows if rows == 6]
    steps = sum(min(16, len(outputs[0].ids) + 1) for outputs in answers)
    assert sum(counting.rows) == steps, "no row is stepped after its end"
    assert len(full) >= (steps - 6 * 16) // 6, "places stand empty only once nothing waits"
    assert 6 not in counting.rows[len(full) :]


def test_answers_come_as_they_are_done(engine: Engine, inputs: list[list[int]]) -> None:
    order = [index for index, _ in generate_each(engine, inputs, Greedy(), max_tokens=16)]
    assert sorted(order) == list(range(len(inputs)))
    answers = generate(engine, inputs, Greedy(), max_tokens=16)
    lengths = [len(answers[index][0].ids) for index in order]
    assert lengths == sorted(lengths)


def test_a_repeated_input_is_encoded_once(engine: Engine, inputs: list[list[int]]) -> None:
    counting = Counting(engine)
    twice = [*inputs[:3], *inputs[:3]]
    answers = generate(counting, twice, Greedy(), max_tokens=8, batch=2)
    assert counting.encoded == 3
    assert ids(answers[:3]) == ids(answers[3:])
    kept = Memories()
    for _ in range(2):
        assert ids(generate(counting, inputs[:4], Greedy(), max_tokens=8, memories=kept)) == ids(
            generate(engine, inputs[:4], Greedy(), max_tokens=8)
        )
    assert counting.encoded == 7
    assert kept.hits == 4


def test_padding_the_caller_added_changes_nothing(engine: Engine, inputs: list[list[int]]) -> None:
    padded = [[*row, 0, 0] for row in inputs[:4]]
    assert ids(generate(engine, padded, Greedy())) == ids(generate(engine, inputs[:4], Greedy()))


def test_different_searches_share_steps(engine: Engine, model: T5, inputs: list[list[int]]) -> None:
    """As a server does: every input with its own search and limits, joining at different steps."""
    counting = Counting(engine)
    waiting = list(zip(inputs[:8], [*SEARCHES], strict=True))
    running, found = {}, {}
    memories = engine.encode(inputs[:8])
    while waiting or running:
        if waiting:
            number = 8 - len(waiting)
            _, search = waiting.pop(0)
            limits = Limits(6 + number, vocab_limit=engine.vocab_limit)
            running[number] = grow(counting, memories[number], search, limits, index=0)
        advance(counting, list(running.values()))
        found |= {number: running.pop(number).outputs() for number in list(running) if running[number].done}
    for number, search in enumerate(SEARCHES):
        [expected] = reference.generate(model, [inputs[number]], of_model(search), max_tokens=6 + number)
        assert_same([found[number]], [expected])


def test_nothing_in_nothing_out(engine: Engine) -> None:
    assert generate(engine, [], Greedy()) == []


def test_mistakes_teach(engine: Engine) -> None:
    for wrong, message in [
        ({"inputs": [[5, 1], []]}, "input 2 has no tokens"),
        ({"inputs": [[0, 0]]}, "input 1 has no tokens"),
        ({"inputs": [[96, 1]]}, "holds token id 96"),
        ({"batch": 0}, "at least 1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompts": []}, "one prompt for each input"),
        ({"prompts": [np.zeros((2, 3), np.float32)]}, "vectors of 64"),
        ({"constraints": []}, "one constraint for each input"),
        ({"stop": ["x"]}, "run of ids"),
    ]:
        with pytest.raises(UserError, match=message):
            generate_each(engine, **{"inputs": [[5, 1]], "search": Greedy(), **wrong})
