"""Drafts change how many steps an answer takes, never the answer."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.constrain import regex
from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.limits import Output
from deepnarrow.runtime.line import Line
from deepnarrow.runtime.search import Beam, Greedy, Sample, generate, generate_each
from deepnarrow.runtime.speculative import Both, Copy, Counts, Place, Share, Sibling, Watch, worth
from deepnarrow.text.byte_tokenizer import ByteTokenizer

SMALL = "tiny-nl1-dm32-ff64-kv8-v96"
SEARCHES = [Greedy(), Sample(seed=3), Sample(temperature=0.7, top_k=9, top_p=0.9, seed=1, num_return=3)]
DRAFTERS = ["copy", "sibling", "itself", "both", "measured", "wrong"]


@pytest.fixture(scope="session")
def model(trained: Callable[..., T5]) -> T5:
    return trained(task="runs")


@pytest.fixture(scope="session")
def engine(engine_of: Callable[..., Engine], model: T5) -> Engine:
    return engine_of(model)


@pytest.fixture(scope="session")
def small(engine_of: Callable[..., Engine], trained: Callable[..., T5]) -> Engine:
    return engine_of(trained(SMALL, task="runs"))


@pytest.fixture(scope="session")
def inputs(texts: Callable[..., list[list[int]]], model: T5) -> list[list[int]]:
    return texts(model, 12, task="runs")


class Wrong:
    """Drafts at random, the worst there can be."""

    def __init__(self) -> None:
        self.rng, self.counts = np.random.default_rng(0), Counts()

    def propose(self, lines: Sequence[Line]) -> None:
        for line in lines:
            line.draft = self.rng.integers(0, 96, self.rng.integers(0, 9)).tolist()


def drafter_of(kind: str, engine: Engine, small: Engine) -> object:
    return {
        "copy": lambda: Copy(position=0.2),
        "sibling": lambda: Sibling(small, engine.shape, cost=0.3),
        "itself": lambda: Sibling(engine, engine.shape, most=4, cost=0.2),
        "both": lambda: Both(Copy(position=0.2), Sibling(small, engine.shape, cost=0.3)),
        "measured": lambda: Both(Copy(), Sibling(small, engine.shape)),
        "wrong": Wrong,
    }[kind]()


def assert_same(found: Sequence[Sequence[Output]], expected: Sequence[Sequence[Output]]) -> None:
    assert [[output.ids for output in outputs] for outputs in found] == [
        [output.ids for output in outputs] for outputs in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose([o.score for o in ours], [o.score for o in theirs], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_answer_is_that_of_plain_decoding(
    engine: Engine, small: Engine, inputs: list[list[int]], search: object, kind: str
) -> None:
    expected = generate(engine, inputs, search, max_tokens=16)
    for batch in (None, 3):
        drafter = drafter_of(kind, engine, small)
        assert_same(generate(engine, inputs, search, max_tokens=16, batch=batch, drafter=drafter), expected)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_limits_hold(engine: Engine, small: Engine, inputs: list[list[int]], kind: str) -> None:
    longest = max((answer[0].ids for answer in generate(engine, inputs, Greedy())), key=len)
    for limits in (
        {"max_tokens": 12, "min_tokens": 5},
        {"max_tokens": 2},
        {"max_tokens": 1},
        {"max_tokens": 12, "stop": [longest[1], longest[2:4]]},
        {"max_tokens": 12, "stop": [lambda ids: len(ids) == 3]},
    ):
        expected = generate(engine, inputs, Greedy(), **limits)
        found = generate(engine, inputs, Greedy(), drafter=drafter_of(kind, engine, small), **limits)
        assert_same(found, expected)


@pytest.mark.parametrize("kind", ["copy", "sibling", "both"])
def test_tokens_are_told_in_order(engine: Engine, small: Engine, inputs: list[list[int]], kind: str) -> None:
    heard: list[tuple[int, int]] = []
    drafter = drafter_of(kind, engine, small)
    answers = generate(engine, inputs, Greedy(), drafter=drafter, on_token=lambda *told: heard.append(told))
    assert [[id for row, id in heard if row == index] for index in range(len(inputs))] == [a[0].ids for a in answers]


@pytest.mark.parametrize("kind", ["copy", "sibling", "itself", "both"])
def test_steps_are_saved(engine: Engine, small: Engine, inputs: list[list[int]], kind: str) -> None:
    drafter = drafter_of(kind, engine, small)
    answers = generate(engine, inputs, Greedy(), max_tokens=16, drafter=drafter)
    counts = drafter.counts
    tokens = sum(min(16, len(outputs[0].ids) + 1) for outputs in answers)
    assert counts.tokens == tokens
    assert counts.steps < tokens
    assert counts.steps + counts.accepted == tokens
    assert counts.tokens_per_step == tokens / counts.steps
    if kind == "itself":
        assert counts.acceptance > 0.98, "a model agrees with itself"
        assert counts.tokens_per_step > 1.5
    else:
        assert counts.acceptance > 0.5
        assert counts.tokens_per_step > 1.2, counts


def test_equal_draws_agree_more_often_than_chance(engine: Engine, inputs: list[list[int]]) -> None:
    itself = Sibling(engine, engine.shape, cost=0.2)
    generate(engine, inputs, Sample(seed=1, temperature=1.5), max_tokens=16, drafter=itself)
    assert itself.counts.acceptance > 0.98


def test_random_weights(engine_of: Callable[..., Engine], untrained: Callable[..., T5]) -> None:
    shapes = ["tiny-nl2-dm32-ff64-kv8-v50", "tiny-el3-dl1-dm48-ff64-kv8-kh1-v50-untied"]
    one, other = (engine_of(untrained(shape, seed)) for seed, shape in enumerate(shapes))
    inputs = [[*range(3, 3 + n), 1] for n in (1, 2, 5, 9)]
    for target, draft in ((one, other), (other, one)):
        for search in SEARCHES:
            expected = generate(target, inputs, search, max_tokens=24)
            for drafter in (Copy(), Sibling(draft, target.shape), Both(Copy(), Sibling(draft, target.shape))):
                assert_same(generate(target, inputs, search, max_tokens=24, drafter=drafter), expected)


def test_drafts_under_a_constraint(engine_of: Callable[..., Engine], untrained: Callable[..., T5]) -> None:
    engine = engine_of(untrained("tiny-nl1-dm32-ff64-kv8-v384"))
    tokenizer = ByteTokenizer()
    inputs = [[*tokenizer.encode("12-34-56"), 1], [*tokenizer.encode("99"), 1]]
    for search in (Greedy(), Sample(seed=2)):
        constraints = [regex(tokenizer, r"[0-9]{2}(-[0-9]{2}){1,5}", 384)] * 2
        expected = generate(engine, inputs, search, constraints=constraints)
        for drafter in (Copy(), Sibling(engine, engine.shape), Wrong()):
            assert_same(generate(engine, inputs, search, constraints=constraints, drafter=drafter), expected)


def copied(place: Place, ids: list[int], length: int) -> list[int]:
    place.find(ids)
    return place.ahead(length)


def test_what_is_copied() -> None:
    place = Place([20, 5, 6, 7, 5, 6, 8, 9, 1])
    assert copied(place, [], 3) == [], "nothing is known of where an answer begins"
    assert copied(place, [5], 9) == [6, 7, 5, 6, 8, 9], "the EOS is not part of what is copied"
    assert copied(place, [5, 6], 2) == [7, 5]
    assert copied(place, [5, 6, 40], 2) == [5, 6], "one id stands for another: it goes on behind that one"
    assert copied(place, [5, 6, 40, 5, 6], 2) == [8, 9]
    assert copied(place, [5, 6, 40, 5, 6, 8, 9], 2) == []
    far = Place([*range(10, 60), 1])
    assert copied(far, [11], 1) == [12]
    assert copied(far, [11, 50], 1) == [13], "one id far away is chance"
    assert copied(far, [11, 50, 51], 1) == [52], "two are not"
    own = Place([9, 1])
    assert copied(own, [5, 6, 7, 5, 6], 2) == [7, 5], "an answer repeats itself too"


def test_how_many_tokens_are_worth_it() -> None:
    assert worth(0.9, 0.0, 16) == 16
    assert worth(0.9, 1.0, 16) == 0
    lengths = [worth(share, 0.2, 16) for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (0, 16)
    best = [sum(0.8**i for i in range(k + 1)) / (1 + 0.2 * k) for k in range(17)]
    assert worth(0.8, 0.2, 16) == best.index(max(best))


def test_the_share_follows_what_was_right() -> None:
    share = Share(0.92)
    assert share.given(0.7, 4) == 0.7
    for _ in range(20):
        share.learn(4, 4)
    assert share.given(0.7, 4) > 0.9
    for _ in range(40):
        share.learn(4, 0)
    assert share.given(0.7, 4) < 0.25
    for _ in range(200):
        share.learn(0, 0)
    assert share.given(0.7, 4) == pytest.approx(0.7, abs=0.01), "hope comes back"


def test_the_watch_finds_what_a_position_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Watch()
    assert watch.seconds is None
    for drafted in (0, 3, 1, 5, 0, 2, 7):
        watch.begin(2)
        now[0] += 4.0 + 0.5 * (2 + drafted)
        watch.learn(0)
        now[0] += 100.0  # what happens after a step is not part of it
        watch.learn(drafted)
    watch.begin(2)
    assert watch.seconds == pytest.approx(2.5)
    assert watch.position == pytest.approx(0.2)
    watch.begin(8)
    assert watch.position == pytest.approx(0.5), "the more rows share a step, the less is to gain"


def test_drafts_stop_where_they_do_not_pay(engine: Engine, inputs: list[list[int]]) -> None:
    dear = Sibling(engine, engine.shape, cost=1.0)
    generate(engine, inputs, Greedy(), max_tokens=16, drafter=dear)
    assert dear.counts.drafted == 0
    assert dear.counts.tokens_per_step == 1.0


def test_mistakes_teach(engine: Engine, engine_of: Callable[..., Engine], untrained: Callable[..., T5]) -> None:
    other = engine_of(untrained("tiny-nl1-dm32-ff64-kv8-v50"))
    with pytest.raises(UserError, match=r"the draft model has 50 ids and the model 96; a draft must share"):
        Sibling(other, engine.shape)
    with pytest.raises(UserError, match="at least 1 token"):
        Copy(most=0)
    with pytest.raises(UserError, match="do not go with a beam"):
        generate_each(engine, [[5, 1]], Beam(2), drafter=Copy())
