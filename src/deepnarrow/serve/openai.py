"""The routes of OpenAI's API: /v1/completions, /v1/embeddings, /v1/models."""

import base64
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.asking import Found, Wish, admit, answer_all, encoded, jobs_of, rule_of, search_of
from deepnarrow.serve.facts import note, note_found
from deepnarrow.serve.jobs import Ended, Job, Token, Tokens
from deepnarrow.serve.models import Model, Models
from deepnarrow.serve.refusals import RefusalError
from deepnarrow.serve.schema import ANY, described
from deepnarrow.serve.streams import DONE, event_line, json_response, merged, read, streamed, unless_gone
from deepnarrow.serve.tgi import LARGEST, Finite, Grammar, deadline_of, name_of, stops_of
from deepnarrow.serve.words import Text, Until
from deepnarrow.text.vocabulary import Tokenizer

DEFAULT_TOKENS = 16
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Inputs = str | list[str] | list[Id] | list[list[Id]]
REASONS: dict[str, str] = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class Completion(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    prompt: Inputs
    best_of: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    echo: bool | None = False
    frequency_penalty: Finite | None = Field(default=None, description="Not served: 0 or absent")
    grammar: Grammar | None = Field(default=None, description="Ours: what the answer must be")
    length_penalty: Finite | None = Field(default=None, description="Ours, of num_beams")
    logit_bias: dict[str, Finite] | None = Field(default=None, description="Not served: empty or absent")
    logprobs: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    n: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=LARGEST)] | None = Field(default=None, description="Ours")
    presence_penalty: Finite | None = Field(default=None, description="Not served: 0 or absent")
    seed: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    suffix: str | None = Field(default=None, description="Not served: absent")
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(default=None, description="Ours")
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    user: str | None = None


class Embedding(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    input: Inputs
    dimensions: int | None = Field(default=None, description="Not served: absent")
    encoding_format: Literal["float", "base64"] | None = "float"
    user: str | None = None


@dataclass
class Choice:
    """One answer as it is streamed."""

    index: int
    text: Text
    until: Until
    offset: int = 0
    over: bool = False
    tokens: list[tuple[str, Token]] = field(default_factory=list)  # not yet told


def openai_routes(models: Models, allowed: Allowed, started: int) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The served names."""
        return {"object": "list", "data": [card(model, started) for model in models.all.values()]}

    @router.get("/models/{name:path}", responses={404: {"description": "There is no such model", "content": ANY}})
    async def one_model(name: str) -> dict[str, Any]:
        return card(models.get(name), started)

    @router.post("/completions", **described(Completion, stream=True))
    async def completions(request: Request) -> Response:
        """Answers to one text or several."""
        wanted = await read(request, Completion)
        model = models.get(wanted.model)
        note(request, model=model.id)
        refuse_unserved(wanted)
        inputs = several(wanted.prompt, allowed)
        wish = wish_of(model, wanted, allowed)
        rows = await encoded(model, inputs, allowed)
        jobs = jobs_of(model, rows, wish, deadline_of(request, allowed))
        admit(model, jobs)
        front = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        front["model"] = model.id
        if wanted.stream:
            all_found = [Found(job, time.monotonic()) for job in jobs]
            lines = chunks(model, jobs, all_found, wanted, wish, front)
            return await streamed(request, lines, lambda: note_found(request, model, all_found), end=DONE)
        all_found = await unless_gone(request, answer_all(model, jobs))
        note_found(request, model, all_found)
        tokenizer = cast(Tokenizer, model.tokenizer)
        number = wanted.n or 1
        choices = [
            choice(found, place, tokenizer, wish, wanted, at * number + rank)
            for at, found in enumerate(all_found)
            for rank, place in enumerate(found.best(number))
        ]
        return json_response(front | {"choices": choices, "usage": usage(all_found)})

    @router.post("/embeddings", **described(Embedding))
    async def embeddings(request: Request) -> Response:
        """Vectors of texts: the mean of the encoder's output over the tokens, not made 1 long."""
        wanted = await read(request, Embedding)
        model = models.get(wanted.model)
        note(request, model=model.id)
        if wanted.dimensions is not None:
            raise RefusalError(
                "invalid", "`dimensions` is not served here: the encoder's vectors have one length", param="dimensions"
            )
        if model.prompt is not None:
            raise RefusalError("invalid", f"{model.id} is a soft prompt; embed with {model.worker.name}", param="model")
        rows = await encoded(model, several(wanted.input, allowed), allowed)
        deadline = deadline_of(request, allowed)
        jobs = [Job(number=model.worker.number(), ids=tuple(ids), deadline=deadline, embed=True) for ids in rows]
        admit(model, jobs)
        all_found = await unless_gone(request, answer_all(model, jobs))
        note_found(request, model, all_found)
        data = [
            {"object": "embedding", "index": index, "embedding": written(cast(Ended, found.ended), wanted)}
            for index, found in enumerate(all_found)
        ]
        tokens = sum(len(ids) for ids in rows)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": model.id, "usage": counted})

    return router


def card(model: Model, started: int) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": started, "owned_by": "deepnarrow"}


def several(given: Inputs, allowed: Allowed) -> list[str | list[int]]:
    """A request's inputs: one text, several, one row of ids, or several."""
    inputs: list[str | list[int]]
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        inputs = [given]
    else:
        inputs = list(cast("list[str | list[int]]", given))
    if not 0 < len(inputs) <= allowed.inputs:
        raise RefusalError("invalid", f"a request has 1 to {allowed.inputs} inputs, not {len(inputs)}", param="prompt")
    return inputs


def refuse_unserved(wanted: Completion) -> None:
    if wanted.echo:
        raise RefusalError(
            "invalid", "`echo` is not served: an encoder-decoder's answer does not continue its prompt", param="echo"
        )
    neutral = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": ""}
    for name, value in neutral.items():
        if getattr(wanted, name) not in (None, value):
            raise RefusalError("invalid", f"`{name}` is not served here; leave it out", param=name)
    if wanted.stream_options is not None and not wanted.stream:
        raise RefusalError("invalid", "`stream_options` goes with `stream`: true only", param="stream_options")


def wish_of(model: Model, wanted: Completion, allowed: Allowed) -> Wish:
    number, beams = wanted.n or 1, wanted.num_beams or 1
    best_of = max(number, beams) if beams > 1 else number if wanted.best_of is None else wanted.best_of
    if best_of < number:
        raise RefusalError("invalid", f"`best_of` must be at least n = {number}, not {best_of}", param="best_of")
    if wanted.stream and beams == 1 and best_of > number:
        raise RefusalError("invalid", "the best of several is known at the end: it cannot be streamed", param="best_of")
    if beams > 1 and number > beams:
        raise RefusalError("invalid", f"a beam of {beams} has at most so many answers, not {number}", param="n")
    tokens = DEFAULT_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    if tokens > allowed.new_tokens:
        raise RefusalError("invalid", f"`max_tokens` is at most {allowed.new_tokens}, not {tokens}", param="max_tokens")
    if (wanted.logprobs or 0) > allowed.top:
        raise RefusalError("invalid", f"`logprobs` is at most {allowed.top}, not {wanted.logprobs}", param="logprobs")
    sampled = beams == 1 and wanted.temperature != 0  # the API's temperature is 1 where none is given
    if beams > 1 and (wanted.temperature is not None or wanted.top_p is not None or wanted.top_k is not None):
        raise RefusalError("invalid", "`num_beams` searches; temperature, top_p and top_k sample", param="num_beams")
    search, seed = search_of(
        sampled=sampled,
        temperature=wanted.temperature,
        top_k=wanted.top_k,
        top_p=wanted.top_p,
        seed=wanted.seed,
        answers=number if beams > 1 else best_of,
        beams=beams,
        length_penalty=wanted.length_penalty,
        allowed=allowed,
    )
    rule = rule_of(model, wanted.grammar.type, wanted.grammar.value) if wanted.grammar else None
    stop = stops_of([wanted.stop] if isinstance(wanted.stop, str) else wanted.stop, allowed)
    tell = bool(wanted.stream) or wanted.logprobs is not None
    return Wish(search=search, max_tokens=tokens, stop=stop, rule=rule, top=wanted.logprobs or 0, tell=tell, seed=seed)


def choice(
    found: Found, place: int, tokenizer: Tokenizer, wish: Wish, wanted: Completion, index: int
) -> dict[str, Any]:
    answer = cast(Ended, found.ended).answers[place]
    text = without_stop(tokenizer.decode(answer.ids), wish.stop)
    logs = None
    if wanted.logprobs is not None:
        grown, offset = Text(tokenizer), 0
        told = []
        for token in found.told(place):
            if grown.is_special(token.id):
                continue
            if offset and offset >= len(text):
                break
            written = grown.add(token.id)
            told.append((written, token))
            offset += len(written)
        logs = log_lists(told, tokenizer, 0)
    return {"text": text, "index": index, "logprobs": logs, "finish_reason": REASONS[answer.reason]}


def without_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def log_lists(told: Sequence[tuple[str, Token]], tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """The API's four lists of equal length, of what was written for each token."""
    offsets = []
    for written, _ in told:
        offsets.append(offset)
        offset += len(written)
    return {
        "tokens": [written for written, _ in told],
        "token_logprobs": [token.log for _, token in told],
        "top_logprobs": [{name_of(tokenizer, id): log for id, log in token.top} for _, token in told],
        "text_offset": offsets,
    }


def usage(all_found: Sequence[Found]) -> dict[str, int]:
    prompt = sum(len(found.job.ids) for found in all_found)
    completion = sum(answer.tokens for found in all_found if found.ended for answer in found.ended.answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def written(ended: Ended, wanted: Embedding) -> Any:
    vector = cast(np.ndarray, ended.vector).astype("<f4")
    return base64.b64encode(vector.tobytes()).decode() if wanted.encoding_format == "base64" else vector.tolist()


async def chunks(
    model: Model,
    jobs: Sequence[Job],
    all_found: Sequence[Found],
    wanted: Completion,
    wish: Wish,
    front: dict[str, Any],
) -> AsyncIterator[bytes]:
    """Pieces of all answers as they come, each with the number of its answer."""
    tokenizer, number = cast(Tokenizer, model.tokenizer), wanted.n or 1
    with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    if with_usage:
        front = front | {"usage": None}
    growing = [
        [Choice(at * number + rank, Text(tokenizer), Until(wish.stop)) for rank in range(number)]
        for at in range(len(jobs))
    ]

    def line(one: Choice, text: str, reason: str | None) -> bytes:
        logs = log_lists(one.tokens, tokenizer, one.offset) if wanted.logprobs is not None else None
        one.offset += sum(len(part) for part, _ in one.tokens)
        one.tokens = []
        part = {"text": text, "index": one.index, "logprobs": logs, "finish_reason": reason}
        return event_line(front | {"choices": [part]})

    def told(one: Choice, token: Token) -> str:
        if one.text.is_special(token.id) or one.until.over:
            return ""
        part = one.text.add(token.id)
        one.tokens.append((part, token))
        return one.until.add(part)

    async with aclosing(cast(Any, merged(model, jobs, all_found))) as events:
        async for at, event in events:
            if isinstance(event, Tokens):
                for token in event.tokens:
                    one = growing[at][token.answer]
                    text = told(one, token)
                    if token.reason is not None:
                        one.over = True
                        yield line(one, text + left_of(one), REASONS[token.reason])
                    elif text:
                        yield line(one, text, None)
            elif isinstance(event, Ended):
                for rank, answer in enumerate(event.answers[:number]):
                    one = growing[at][rank]
                    if not one.over:  # a beam's, which are known at once
                        text = "".join([told(one, token) for token in all_found[at].told(rank)])
                        yield line(one, text + left_of(one), REASONS[answer.reason])
    if with_usage:
        yield event_line(front | {"choices": [], "usage": usage(all_found)})


def left_of(one: Choice) -> str:
    """What was held back of an answer that is over."""
    return "" if one.until.over else one.until.add(one.text.rest()) + one.until.rest()
