"""From a request's words to jobs, and from their events to answers: what both APIs share."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, cast

from deepnarrow.errors import UserError
from deepnarrow.runtime.options import AnySearch, Beam, Greedy, Sample
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.jobs import Answer, Begun, Ended, Event, Failed, Job, Rule, Token, Tokens
from deepnarrow.serve.models import Model
from deepnarrow.serve.refusals import RefusalError, of_failure
from deepnarrow.serve.workers import BusyError
from deepnarrow.text.vocabulary import Tokenizer

QUICK = 2000  # characters that are turned into ids without leaving the loop
PATTERN, SCHEMA, CHOICES = 4096, 65536, 1000  # most characters of a regex, of a schema; most choices


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a client asks of each of its inputs."""

    search: AnySearch
    max_tokens: int
    stop: tuple[str, ...] = ()
    rule: Rule | None = None
    top: int = 0
    tell: bool = True
    seed: int | None = None  # told again with the answer


@dataclass
class Found:
    """The answers to one job, and all that was told on the way."""

    job: Job
    arrived: float
    begun: float = 0.0
    cached: bool = False
    ended: Ended | None = None

    def __post_init__(self) -> None:
        self.tokens: dict[int, list[Token]] = {}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds: in the queue, in the encoder, to the first token behind it, for all further ones."""
        ended = self.ended
        assert ended is not None
        return {
            "queue": max(0.0, self.begun - self.arrived),
            "encode": max(0.0, ended.encoded - self.begun),
            "first_token": max(0.0, ended.first - ended.encoded),
            "decode": max(0.0, ended.at - ended.first),
            "total": max(0.0, ended.at - self.arrived),
        }

    def told(self, answer: int) -> list[Token]:
        """An answer's tokens; a search that knows them only at its end knows no log-probabilities."""
        assert self.ended is not None
        return self.tokens.get(answer) or [Token(answer, id, None) for id in self.ended.answers[answer].ids]

    def best(self, number: int) -> list[int]:
        """The places of the best answers: by log-probability a token, as both APIs rank the best of several."""
        assert self.ended is not None
        answers = self.ended.answers
        if isinstance(self.job.search, Beam):
            return list(range(min(number, len(answers))))
        order = sorted(range(len(answers)), key=lambda place: -mean(answers[place]))
        return sorted(order[:number]) if number == len(answers) else order[:number]


def mean(answer: Answer) -> float:
    return answer.score / max(1, answer.tokens)


def search_of(
    *,
    sampled: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    answers: int,
    beams: int,
    length_penalty: float | None,
    allowed: Allowed,
) -> tuple[AnySearch, int | None]:
    """The search, and the seed of its samples, which is drawn where none was given."""
    if answers > allowed.answers:
        raise RefusalError("invalid", f"at most {allowed.answers} answers to one input, not {answers}", param="n")
    if beams > allowed.beams:
        raise RefusalError("invalid", f"a beam is at most {allowed.beams} wide, not {beams}", param="num_beams")
    try:
        if beams > 1:
            if sampled:
                raise UserError("num_beams searches; temperature, top_k, top_p and do_sample sample: use one of them")
            penalty = 1.0 if length_penalty is None else length_penalty
            return Beam(beams, penalty, num_return=answers), None
        if length_penalty is not None:
            raise UserError("length_penalty ranks the answers of a beam; give num_beams too")
        if not sampled:
            return (Greedy() if answers == 1 else Sample(0.0, num_return=answers)), None
        seed = secrets.randbits(32) if seed is None else seed
        warmth = 1.0 if temperature is None else temperature
        return Sample(warmth, top_k=top_k, top_p=top_p, seed=seed, num_return=answers), seed
    except UserError as error:
        raise RefusalError("invalid", str(error)) from None


def rule_of(model: Model, kind: str, value: Any) -> Rule:
    """What a request's grammar says, checked as far as it can be without the library that follows it."""
    known = model.worker.ready.rules if model.worker.ready else ()
    kind = "json" if kind == "json_schema" else kind
    if kind not in known:
        raise RefusalError(
            "invalid",
            f"grammar of type {kind[:40]!r} is not served here; served: {', '.join(known) or 'none'}",
            param="grammar",
        )
    if kind == "choices":
        right = isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)
        if not right or not 0 < len(value) <= CHOICES or any(len(one) > PATTERN for one in value):
            raise RefusalError("invalid", f"choices are 1 to {CHOICES} texts that are not empty", param="grammar")
        return Rule("choices", tuple(value))
    if kind == "json":
        import json

        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > SCHEMA:
            raise RefusalError("invalid", f"a schema has at most {SCHEMA} characters", param="grammar")
        try:
            if not isinstance(json.loads(text), dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise RefusalError("invalid", "a JSON schema is a JSON object", param="grammar") from None
        return Rule("json", text)
    if not isinstance(value, str) or not 0 < len(value) <= PATTERN:
        raise RefusalError("invalid", f"a regex is a text of 1 to {PATTERN} characters", param="grammar")
    return Rule(cast(Literal["regex"], kind), value)


async def encoded(
    model: Model, inputs: Sequence[str | Sequence[int]], allowed: Allowed, cut: int | None = None
) -> list[list[int]]:
    """Token ids of each input, EOS behind those of a text; `cut` leaves so many at most, the first ones."""
    tokenizer = model.tokenizer
    texts = [one for one in inputs if isinstance(one, str)]
    if texts and tokenizer is None:
        raise RefusalError("invalid", f"{model.id} has no tokenizer; give token ids instead of text")
    rows: list[list[int]] = []
    if any(not text.strip() for text in texts):
        raise RefusalError("invalid", "the text is empty", param="prompt")
    if texts:
        assert tokenizer is not None
        long = sum(map(len, texts)) > QUICK
        rows = await asyncio.to_thread(ids_of, tokenizer, texts) if long else ids_of(tokenizer, texts)
    by_text = iter(rows)
    found = [next(by_text) if isinstance(one, str) else list(one) for one in inputs]
    ready = model.worker.ready
    vocab = ready.shape.vocab if ready else 0
    for number, ids in enumerate(found):
        if cut is not None and len(ids) > cut:
            ids = found[number] = [*ids[: cut - 1], ids[-1]]
        which = f"input {number + 1}" if len(found) > 1 else "the input"
        if len(ids) > allowed.input_tokens:
            raise RefusalError(
                "too_long",
                f"{which} has {len(ids)} tokens, its end included, but at most {allowed.input_tokens} are allowed",
                param="prompt",
            )
        if not any(ids) or min(ids) < 0 or max(ids) >= vocab:
            raise RefusalError("invalid", f"{which} must hold token ids from 1 to {vocab - 1}", param="prompt")
    return found


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [[*ids, tokenizer.eos] for ids in map(tokenizer.encode, texts)]


def jobs_of(model: Model, rows: Sequence[Sequence[int]], wish: Wish, deadline: float) -> list[Job]:
    return [
        Job(
            number=model.worker.number(),
            ids=tuple(ids),
            index=index,
            prompt=model.prompt,
            search=wish.search,
            max_tokens=wish.max_tokens,
            stop=wish.stop,
            rule=wish.rule,
            top=wish.top,
            deadline=deadline,
            tell=wish.tell,
        )
        for index, ids in enumerate(rows)
    ]


def admit(model: Model, jobs: list[Job]) -> None:
    if model.worker.state == "stopped":
        raise RefusalError("starting", "the server is shutting down", wait=5)
    try:
        model.worker.admit(jobs)
    except BusyError as busy:
        raise RefusalError("busy", str(busy), wait=busy.wait) from None


async def follow(model: Model, job: Job, found: Found) -> AsyncIterator[Event]:
    """A job's events, noted in `found`; a failure is raised."""
    async with aclosing(cast(Any, model.worker.events(job))) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise of_failure(event)
            if isinstance(event, Begun):
                found.begun, found.cached = event.at, event.cached
            elif isinstance(event, Tokens):
                for token in event.tokens:
                    found.tokens.setdefault(token.answer, []).append(token)
            elif isinstance(event, Ended):
                found.ended = event
            yield event


async def answer(model: Model, job: Job) -> Found:
    found = Found(job, time.monotonic())
    async with aclosing(cast(Any, follow(model, job, found))) as events:
        async for _ in events:
            pass
    return found


async def answer_all(model: Model, jobs: Sequence[Job]) -> list[Found]:
    """All or none: where one fails the others are given up."""
    if len(jobs) == 1:
        return [await answer(model, jobs[0])]
    tasks = [asyncio.ensure_future(answer(model, job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
