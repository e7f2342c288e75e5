"""The routes of text-generation-inference: /generate, /generate_stream, POST /, /info."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from deepnarrow import __version__
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.asking import Found, Wish, admit, answer_all, encoded, jobs_of, rule_of, search_of
from deepnarrow.serve.facts import note, note_found
from deepnarrow.serve.jobs import Answer, Ended, Job, Token, Tokens
from deepnarrow.serve.models import Model, Models
from deepnarrow.serve.refusals import RefusalError
from deepnarrow.serve.schema import described
from deepnarrow.serve.streams import event_line, json_response, merged, read, streamed, unless_gone
from deepnarrow.serve.words import Text
from deepnarrow.text.vocabulary import Tokenizer

LARGEST = 2**63 - 1
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Grammar(BaseModel):
    """What an answer must be: JSON of a schema, a match of a regex, or one of some texts."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["json", "json_schema", "regex", "choices"]
    value: Any


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    adapter_id: str | None = Field(default=None, description="A served soft prompt, in place of the model")
    best_of: Annotated[int, Field(ge=1)] | None = None
    decoder_input_details: bool | None = False
    details: bool | None = True
    do_sample: bool | None = False
    frequency_penalty: Finite | None = Field(default=None, description="Not served: 0 or absent")
    grammar: Grammar | None = None
    length_penalty: Finite | None = Field(default=None, description="Of num_beams: log-probability / length ** this")
    max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    repetition_penalty: Finite | None = Field(default=None, description="Not served: 1 or absent")
    return_full_text: bool | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    stop: list[str] | None = None
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    truncate: Annotated[int, Field(ge=2, le=LARGEST)] | None = Field(
        default=None, description="Keep so many tokens, the first ones, the end included"
    )
    typical_p: Finite | None = Field(default=None, description="Not served: 1 or absent")
    watermark: bool | None = None


class Generate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = False
    model: str | None = Field(default=None, description="A served name; the first where absent")


DEFAULT_TOKENS = 100


def tgi_routes(models: Models, allowed: Allowed) -> APIRouter:
    router = APIRouter(tags=["text-generation-inference"])

    async def begun(request: Request, wanted: Generate) -> tuple[Model, Job, Wish, Parameters]:
        given = wanted.parameters or Parameters()
        model = models.get(given.adapter_id or wanted.model)
        note(request, model=model.id)
        refuse_unserved(given)
        wish = wish_of(model, given, allowed)
        rows = await encoded(model, [wanted.inputs], allowed, given.truncate)
        [job] = jobs = jobs_of(model, rows, wish, deadline_of(request, allowed))
        admit(model, jobs)
        return model, job, wish, given

    async def generate_one(request: Request, wanted: Generate) -> dict[str, Any]:
        model, job, wish, given = await begun(request, wanted)
        [found] = await unless_gone(request, answer_all(model, [job]))
        note_found(request, model, [found])
        return whole(found, cast(Tokenizer, model.tokenizer), wish, given)

    async def generate_lines(request: Request, wanted: Generate) -> Response:
        given = wanted.parameters or Parameters()
        if (given.best_of or 1) > 1:
            raise RefusalError("invalid", "best_of answers are known at the end: use /generate", param="best_of")
        model, job, wish, given = await begun(request, wanted)
        found = Found(job, time.monotonic())
        lines = told(model, job, found, wish)
        return await streamed(request, lines, lambda: note_found(request, model, [found]))

    @router.post("/generate", **described(Generate))
    async def generate(request: Request) -> Response:
        """Answer a text."""
        return json_response(await generate_one(request, await read(request, Generate)))

    @router.post("/generate_stream", **described(Generate, stream=True))
    async def generate_stream(request: Request) -> Response:
        """Answer a text, each token as soon as it is known, by server-sent events."""
        return await generate_lines(request, await read(request, Generate))

    @router.post("/", **described(Generate, stream=True))
    async def either(request: Request) -> Response:
        """As /generate_stream where `stream` is true, else as /generate, in a list."""
        wanted = await read(request, Generate)
        if wanted.stream:
            return await generate_lines(request, wanted)
        return json_response([await generate_one(request, wanted)])

    @router.get("/info")
    async def info() -> dict[str, Any]:
        """What is served, and within which limits."""
        return about(models, allowed)

    return router


def deadline_of(request: Request, allowed: Allowed) -> float:
    """The header X-Request-Timeout, seconds, may make it earlier than the server's."""
    seconds, given = allowed.seconds, request.headers.get("x-request-timeout")
    if given is not None:
        try:
            asked = float(given)
        except ValueError:
            asked = 0.0
        if not 0 < asked < float("inf"):
            raise RefusalError("invalid", "X-Request-Timeout is a number of seconds above 0")
        seconds = min(seconds, asked)
    return time.monotonic() + seconds


def refuse_unserved(given: Parameters) -> None:
    """What a T5 here cannot do is refused, not passed over."""
    neutral = {
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "typical_p": 1,
        "watermark": False,
        "return_full_text": False,
    }
    for name, value in neutral.items():
        if getattr(given, name) not in (None, value):
            raise RefusalError("invalid", f"`{name}` is not served here; leave it out", param=name)


def wish_of(model: Model, given: Parameters, allowed: Allowed) -> Wish:
    cuts = (given.temperature, given.top_k, given.top_p)
    sampled = bool(given.do_sample) or any(cut is not None for cut in cuts)
    answers, beams = given.best_of or 1, given.num_beams or 1
    if answers > 1 and not sampled and beams == 1:
        raise RefusalError(
            "invalid", "`best_of` > 1 needs `do_sample`; greedy answers are all the same", param="best_of"
        )
    tokens = DEFAULT_TOKENS if given.max_new_tokens is None else given.max_new_tokens
    if tokens > allowed.new_tokens:
        if given.max_new_tokens is not None:
            raise RefusalError(
                "invalid",
                f"`max_new_tokens` must be at most {allowed.new_tokens}, not {tokens}",
                param="max_new_tokens",
            )
        tokens = allowed.new_tokens
    top = given.top_n_tokens or 0
    if top > allowed.top:
        raise RefusalError("invalid", f"`top_n_tokens` must be at most {allowed.top}, not {top}", param="top_n_tokens")
    search, seed = search_of(
        sampled=sampled,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        seed=given.seed,
        answers=answers,
        beams=beams,
        length_penalty=given.length_penalty,
        allowed=allowed,
    )
    rule = rule_of(model, given.grammar.type, given.grammar.value) if given.grammar else None
    return Wish(search=search, max_tokens=tokens, stop=stops_of(given.stop, allowed), rule=rule, top=top, seed=seed)


def stops_of(stops: list[str] | None, allowed: Allowed) -> tuple[str, ...]:
    found = tuple(stops or ())
    if len(found) > allowed.stops or any(not 0 < len(stop) <= allowed.stop_length for stop in found):
        raise RefusalError(
            "invalid",
            f"`stop` has at most {allowed.stops} texts of 1 to {allowed.stop_length} characters",
            param="stop",
        )
    return found


def whole(found: Found, tokenizer: Tokenizer, wish: Wish, given: Parameters) -> dict[str, Any]:
    assert found.ended is not None
    order = found.best(len(found.ended.answers))
    if len(order) > 1:
        order = sorted(order, key=lambda place: -mean_of(found.ended, place))
    sequences = [sequence(found, place, tokenizer, wish, given) for place in order]
    answer = {"generated_text": sequences[0].pop("generated_text")}
    if given.details:
        details = sequences[0] | {"timings": found.timings, "cached": found.cached}
        if len(sequences) > 1:
            details["best_of_sequences"] = sequences[1:]
        return answer | {"details": details}
    return answer


def mean_of(ended: Ended | None, place: int) -> float:
    assert ended is not None
    answer = ended.answers[place]
    return answer.score / max(1, answer.tokens)


def sequence(found: Found, place: int, tokenizer: Tokenizer, wish: Wish, given: Parameters) -> dict[str, Any]:
    assert found.ended is not None
    answer, text = found.ended.answers[place], Text(tokenizer)
    tokens = found.told(place)
    start = [{"id": tokenizer.pad, "text": "<pad>", "logprob": None}] if given.decoder_input_details else []
    told_tokens = [told_token(text, token) for token in tokens]
    rest = text.rest()
    if rest:
        told_tokens[-1]["text"] += rest
    found_sequence: dict[str, Any] = {
        "generated_text": tokenizer.decode(answer.ids),
        "finish_reason": answer.reason,
        "generated_tokens": answer.tokens,
        "seed": wish.seed,
        "prefill": start,
        "tokens": told_tokens,
    }
    if wish.top:
        found_sequence["top_tokens"] = [likeliest(tokenizer, token) for token in tokens]
    return found_sequence


def told_token(text: Text, token: Token) -> dict[str, Any]:
    """One that is special has no text, since clients write all texts one behind the other."""
    special = text.is_special(token.id)
    written = "" if special else text.add(token.id)
    return {"id": token.id, "text": written, "logprob": token.log, "special": special}


def name_of(tokenizer: Tokenizer, id: int) -> str:
    """How an id alone is written, its space in front."""
    return tokenizer.piece(id).replace("\u2581", " ") if 0 <= id < tokenizer.size else ""


def likeliest(tokenizer: Tokenizer, token: Token) -> list[dict[str, Any]]:
    special = (tokenizer.pad, tokenizer.eos)
    return [
        {"id": id, "text": name_of(tokenizer, id), "logprob": log, "special": id in special} for id, log in token.top
    ]


async def told(model: Model, job: Job, found: Found, wish: Wish) -> AsyncIterator[bytes]:
    """An event for each token; the last has the whole text and what is known of it."""
    tokenizer = cast(Tokenizer, model.tokenizer)
    text, number = Text(tokenizer), 0
    held: dict[str, Any] | None = None  # the last token, until the end that belongs to it is there
    async with aclosing(cast(Any, merged(model, [job], [found]))) as events:
        async for _, event in events:
            if isinstance(event, Tokens):
                [token] = event.tokens
                number += 1
                held = line_of(number, text, token, wish)
                if not event.last:
                    yield event_line(held)
            elif isinstance(event, Ended):
                [answer, *_] = event.answers
                if held is None:  # a beam, which is known at once
                    tokens = found.told(0)
                    for token in tokens[:-1]:
                        number += 1
                        yield event_line(line_of(number, text, token, wish))
                    held = line_of(number + 1, text, tokens[-1] if tokens else Token(0, tokenizer.eos, None), wish)
                held["token"]["text"] += text.rest()
                yield event_line(held | end_of(found, answer, tokenizer, wish))


def line_of(number: int, text: Text, token: Token, wish: Wish) -> dict[str, Any]:
    line = {"index": number, "token": told_token(text, token), "generated_text": None, "details": None}
    return line | {"top_tokens": likeliest(text.tokenizer, token)} if wish.top else line


def end_of(found: Found, answer: Answer, tokenizer: Tokenizer, wish: Wish) -> dict[str, Any]:
    details = {
        "finish_reason": answer.reason,
        "generated_tokens": answer.tokens,
        "input_length": len(found.job.ids),
        "seed": wish.seed,
        "timings": found.timings,
        "cached": found.cached,
    }
    return {"generated_text": tokenizer.decode(answer.ids), "details": details}


def about(models: Models, allowed: Allowed) -> dict[str, Any]:
    first = models.first
    served = [
        {
            "id": model.id,
            "kind": model.kind,
            "base": model.worker.name if model.prompt is not None else None,
            "engine": model.worker.ready.engine if model.worker.ready else None,
            "shape": str(model.worker.ready.shape) if model.worker.ready else None,
        }
        for model in models.all.values()
    ]
    rules = first.worker.ready.rules if first.worker.ready else ()
    return {
        "model_id": first.id,
        "model_sha": None,
        "model_pipeline_tag": "text2text-generation",
        "engine": served[0]["engine"],
        "max_concurrent_requests": allowed.waiting,
        "max_best_of": allowed.answers,
        "max_stop_sequences": allowed.stops,
        "max_input_tokens": allowed.input_tokens,
        "max_total_tokens": allowed.input_tokens + allowed.new_tokens,
        "max_new_tokens": allowed.new_tokens,
        "max_top_n_tokens": allowed.top,
        "max_beams": allowed.beams,
        "max_client_batch_size": allowed.inputs,
        "router": "deepnarrow",
        "version": __version__,
        "constraints": list(rules),
        "models": served,
        "workers": worker_states(models),
    }


def worker_states(models: Models) -> list[dict[str, Any]]:
    return [
        {
            "model": worker.name,
            "state": worker.state,
            "pid": worker.pid,
            "restarts": worker.counts.restarts,
            "waiting": worker.waiting,
            "active": worker.active,
        }
        for worker in models.workers
    ]
