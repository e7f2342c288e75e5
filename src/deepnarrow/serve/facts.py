"""What is noted of one request: for its log line and the metrics, and never its text unless that is asked for."""

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request

from deepnarrow.serve.asking import Found
from deepnarrow.serve.models import Model

FACTS, TEXTS = "facts", "log_texts"


def note(request: Request, **facts: Any) -> None:
    request.scope.setdefault("state", {}).setdefault(FACTS, {}).update(facts)


def note_found(request: Request, model: Model, all_found: Iterable[Found]) -> None:
    """How long each part took, the longest of the request's inputs, how many tokens there were; texts if asked for."""
    done = [found for found in all_found if found.ended]
    if not done:
        return
    times = [found.timings for found in done]
    note(
        request,
        model=model.id,
        inputs=len(done),
        input_tokens=sum(len(found.job.ids) for found in done),
        generated_tokens=sum(answer.tokens for found in done if found.ended for answer in found.ended.answers),
        **{name: round(max(time[name] for time in times), 6) for name in ("queue", "encode", "first_token", "decode")},
    )
    if request.scope["state"].get(TEXTS) and model.tokenizer:
        decode = model.tokenizer.decode
        answers = [[decode(answer.ids) for answer in found.ended.answers] for found in done if found.ended]
        note(request, input_texts=[decode(found.job.ids) for found in done], answer_texts=answers)
