"""Continuous batching: whatever is stepped together, each answer is the one it would have had alone."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng

from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import constrain
from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.options import AnySearch, Beam, Greedy, Sample
from deepnarrow.runtime.search import generate
from deepnarrow.serve.jobs import Begun, Ended, Event, Failed, Job, Rule, Tokens
from deepnarrow.serve.rules import rule_maker
from deepnarrow.serve.scheduler import Room, Scheduler
from deepnarrow.shapes.shape import parse
from deepnarrow.text.byte_tokenizer import ByteTokenizer


def jobs(count: int, seed: int = 0) -> list[Job]:
    """Of all searches, lengths and numbers of answers."""
    rng = default_rng(seed)
    searches: list[AnySearch] = [
        Greedy(), Sample(0.9, top_k=20, seed=seed), Beam(3, num_return=2), Sample(1.2, top_p=0.9, seed=7, num_return=3)
    ]  # fmt: skip
    return [
        Job(
            number=number,
            ids=(*rng.integers(3, 259, int(rng.integers(1, 50))).tolist(), 1),
            index=number % 2,
            search=searches[number % len(searches)],
            max_tokens=int(rng.integers(1, 25)),
            top=number % 3,
        )
        for number in range(count)
    ]


def alone(engine: Engine, job: Job) -> list[tuple[list[int], float]]:
    inputs = [[5, 1]] * job.index + [list(job.ids)]
    outputs = generate(engine, inputs, job.search, max_tokens=job.max_tokens)[job.index]
    return [(output.ids, output.score) for output in outputs]


def ended(events: list[Event]) -> dict[int, Ended]:
    return {event.number: event for event in events if isinstance(event, Ended)}


def drive(scheduler: Scheduler, coming: list[Job], every: int = 1) -> list[Event]:
    """One job more every few turns, until all is done."""
    events: list[Event] = []
    for turn in range(10_000):
        if coming and turn % every == 0:
            scheduler.submit(coming.pop(0))
        events += scheduler.turn()
        assert scheduler.load.rows <= scheduler.room.rows
        assert scheduler.load.tokens <= scheduler.room.tokens
        if not coming and scheduler.idle:
            break
    assert (scheduler.load.rows, scheduler.load.tokens) == (0, 0)
    return events


@pytest.mark.parametrize(("rows", "piece", "every"), [(64, 2048, 1), (7, 60, 1), (9, 200, 3)])
def test_answers_are_those_of_each_alone(engine: Engine, rows: int, piece: int, every: int) -> None:
    check(engine, jobs(24), Room(rows=rows, piece=piece), every)


def test_so_by_torch() -> None:
    model = T5(parse("tiny-nl2-dm32-ff64-kv8-v384"))
    initialise(model, seed=2)
    check(TorchEngine(model), jobs(8, seed=5), Room(rows=7), 2)


def check(engine: Engine, wanted: list[Job], room: Room, every: int) -> None:
    found = ended(drive(Scheduler(engine, None, room), list(wanted), every))
    assert set(found) == {job.number for job in wanted}
    for job in wanted:
        answers, expected = found[job.number].answers, alone(engine, job)
        assert [answer.ids for answer in answers] == [ids for ids, _ in expected]
        assert np.allclose([answer.score for answer in answers], [score for _, score in expected], atol=1e-4)


def test_tokens_are_told_as_they_come_with_their_likeliest(engine: Engine) -> None:
    wanted = [job for job in jobs(12, seed=3) if not isinstance(job.search, Beam)]
    events = drive(Scheduler(engine, None), list(wanted))
    found = ended(events)
    for job in wanted:
        told = [
            token
            for event in events
            if isinstance(event, Tokens) and event.number == job.number
            for token in event.tokens
        ]
        for number, answer in enumerate(found[job.number].answers):
            own = [token for token in told if token.answer == number]
            assert [token.id for token in own if token.id != 1] == answer.ids
            assert sum(token.log or 0 for token in own) == pytest.approx(answer.score, abs=1e-4)
            assert len(own) == answer.tokens
            assert [token.reason for token in own[:-1]] == [None] * (len(own) - 1)
            assert own[-1].reason == answer.reason
            for token in own:
                assert len(token.top) == job.top
                assert [log for _, log in token.top] == sorted((log for _, log in token.top), reverse=True)
                if isinstance(job.search, Greedy) and job.top:
                    assert token.top[0][0] == token.id


def test_inputs_begin_by_arrival_and_none_overtakes(engine: Engine) -> None:
    coming = jobs(30, seed=4)
    events = drive(Scheduler(engine, None, Room(rows=5)), list(coming))
    assert [event.number for event in events if isinstance(event, Begun)] == [job.number for job in coming]


def test_a_long_source_does_not_stall_those_that_are_answered(engine: Engine) -> None:
    """While it is encoded, layer by layer, every turn has a step of the others."""
    model = T5(parse("tiny-el8-dl1-dm32-ff64-kv8-v384"))
    initialise(model, seed=2)
    scheduler = Scheduler(TorchEngine(model), None, clock=lambda: 0.0)
    scheduler.submit(Job(number=1, ids=(5, 6, 1), max_tokens=60))
    events = [*scheduler.turn(), *scheduler.turn(), *scheduler.turn()]
    assert any(isinstance(event, Tokens) for event in events)
    scheduler.submit(Job(number=2, ids=(*[7] * 300, 1), max_tokens=2))
    scheduler.submit(Job(number=3, ids=(8, 1), max_tokens=2))
    steps_until = {}
    for turn in range(80):
        scheduler._layer_seconds = 1e-4  # of one token: slow for the long one, quick for the short one
        told = scheduler.turn()
        if any(isinstance(event, Ended) and event.number == 1 for event in told):
            break
        assert any(isinstance(event, Tokens) and event.number == 1 for event in told)
        for event in told:
            if isinstance(event, Tokens) and event.number in (2, 3):
                steps_until.setdefault(event.number, turn)
    assert steps_until[3] < steps_until[2]  # the short one came by


def test_cancelling_frees_the_place_at_once(engine: Engine) -> None:
    scheduler = Scheduler(engine, None, Room(rows=1))
    for number in range(3):
        scheduler.submit(Job(number=number, ids=(5, 6, 1), max_tokens=500))
    begun = [event.number for event in scheduler.turn() if isinstance(event, Begun)]
    assert begun == [0]
    scheduler.turn()
    scheduler.cancel(0)  # one that is answered,
    scheduler.cancel(1)  # and one that waits
    assert scheduler.load.rows == 0
    events = scheduler.turn()
    assert [event.number for event in events if isinstance(event, Begun)] == [2]
    scheduler.cancel(2)
    assert scheduler.idle
    assert scheduler.load.tokens == 0


def test_cancelling_within_the_encoder(engine: Engine) -> None:
    scheduler = Scheduler(engine, None)
    scheduler.submit(Job(number=1, ids=(5, 1), max_tokens=3))
    scheduler.submit(Job(number=2, ids=(6, 1), max_tokens=3))
    scheduler.let_in()
    scheduler.cancel(1)
    assert scheduler.load.rows == 1
    events = []
    while not scheduler.idle:
        events += scheduler.turn()
    assert set(ended(events)) == {2}
    assert [answer.ids for answer in ended(events)[2].answers] == [
        alone(engine, Job(number=2, ids=(6, 1), max_tokens=3))[0][0]
    ]


def test_deadlines_end_what_waits_and_what_runs(engine: Engine) -> None:
    now = [0.0]
    scheduler = Scheduler(engine, None, Room(rows=1), clock=lambda: now[0])
    scheduler.submit(Job(number=1, ids=(5, 1), max_tokens=500, deadline=5.0))
    scheduler.submit(Job(number=2, ids=(5, 1), max_tokens=500, deadline=1.0))
    events = [*scheduler.turn(), *scheduler.turn()]
    now[0] = 2.0
    failed = [event for event in scheduler.turn() if isinstance(event, Failed)]
    assert [(event.number, event.why) for event in failed] == [(2, "deadline")]
    now[0] = 6.0
    failed = [event for event in scheduler.turn() if isinstance(event, Failed)]
    assert [(event.number, event.why) for event in failed] == [(1, "deadline")]
    assert scheduler.idle
    assert not ended(events)


def test_what_can_never_be_let_in_is_told_at_once(engine: Engine) -> None:
    scheduler = Scheduler(engine, None, Room(rows=4, tokens=100))
    scheduler.submit(Job(number=1, ids=(5, 1), search=Beam(5), max_tokens=3))
    scheduler.submit(Job(number=2, ids=(5, 1), max_tokens=200))
    scheduler.submit(Job(number=3, ids=(999, 1)))
    scheduler.submit(Job(number=4, ids=(5, 1), prompt="nobody"))
    failed = [event for event in scheduler.turn() if isinstance(event, Failed)]
    assert [(event.number, event.why) for event in failed] == [(n, "invalid") for n in (1, 2, 3, 4)]
    assert scheduler.idle


def test_inputs_that_come_again_are_not_encoded_again(engine: Engine) -> None:
    scheduler = Scheduler(engine, None)
    first, second = (drive(scheduler, [Job(number=number, ids=(9, 8, 7, 1), max_tokens=5)]) for number in (1, 2))
    assert [event.cached for event in first + second if isinstance(event, Begun)] == [False, True]
    assert scheduler.load.encoded == 4
    assert ended(first)[1].answers == ended(second)[2].answers


def test_embedding_rows_of_many_lengths(engine: Engine) -> None:
    coming = [Job(number=n, ids=(*[n + 5] * n, 1), embed=True) for n in range(1, 9)]
    found = ended(drive(Scheduler(engine, None), list(coming)))
    for job in coming:
        vector = found[job.number].vector
        assert vector is not None
        assert np.allclose(vector, engine.embed([list(job.ids)])[0], atol=1e-5)


def test_prompts_and_rules_share_one_step(engine: Engine) -> None:
    tokenizer = ByteTokenizer()
    prompts = {"a": default_rng(1).normal(size=(4, 64)).astype(np.float32)}
    maker, kinds = rule_maker(tokenizer, 384)
    assert kinds == ("choices", "regex", "json")
    scheduler = Scheduler(engine, tokenizer, prompts=prompts, constraints=maker)
    rules = [Rule("choices", ("yes", "no")), Rule("regex", "[0-9]{3}"), Rule("json", '{"type": "boolean"}')]
    coming = [Job(number=n, ids=(40 + n, 1), rule=rule, max_tokens=20) for n, rule in enumerate(rules)]
    coming.append(Job(number=3, ids=(40, 1), prompt="a", max_tokens=20))
    found = ended(drive(scheduler, list(coming)))
    texts = {number: tokenizer.decode(event.answers[0].ids) for number, event in found.items()}
    assert texts[0] in ("yes", "no")
    assert len(texts[1]) == 3
    assert texts[1].isdigit()
    assert texts[2].strip() in ("true", "false")
    wanted = [constrain.choices(tokenizer, ["yes", "no"], 384), None]
    both = generate(
        engine, [[40, 1], [40, 1]], Greedy(), max_tokens=20, constraints=wanted, prompts=[None, prompts["a"]]
    )
    assert [found[0].answers[0].ids, found[3].answers[0].ids] == [output.ids for [output] in both]


def test_stop_texts_end_an_answer_where_they_come_first(engine: Engine) -> None:
    tokenizer = ByteTokenizer()
    job = Job(number=1, ids=(40, 1), search=Sample(1.5, seed=1), max_tokens=60)
    whole = alone(engine, job)[0][0]
    text = tokenizer.decode(whole)
    stop = next(letter for letter in text[10:] if letter.isascii())
    [answer] = ended(drive(Scheduler(engine, tokenizer), [replace(job, stop=("never there", stop))]))[1].answers
    assert answer.reason == "stop_sequence"
    assert answer.ids == whole[: len(answer.ids)]
    assert stop in tokenizer.decode(answer.ids)
    assert stop not in tokenizer.decode(answer.ids[:-1])


def test_a_rule_that_cannot_be_kept_fails_alone(engine: Engine) -> None:
    tokenizer = ByteTokenizer()
    scheduler = Scheduler(engine, tokenizer, constraints=rule_maker(tokenizer, 384)[0])
    coming = [
        Job(number=1, ids=(40, 1), rule=Rule("regex", "(unclosed"), max_tokens=5),
        Job(number=2, ids=(41, 1), rule=Rule("regex", "[0-9]{9}"), max_tokens=4),
        Job(number=3, ids=(42, 1), max_tokens=4),
    ]
    events = drive(scheduler, coming)
    assert {event.number: event.why for event in events if isinstance(event, Failed)} == {1: "invalid", 2: "invalid"}
    assert set(ended(events)) == {3}
