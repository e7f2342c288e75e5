"""What a server will not or cannot do, in the words of the API that was asked.

text-generation-inference   {"error": "...", "error_type": "validation"}
OpenAI                      {"error": {"message": "...", "type": "...", "param": null, "code": null}}
"""

from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from starlette.responses import Response

from deepnarrow.serve.jobs import Failed
from deepnarrow.serve.words import to_json

Kind = Literal[
    "invalid", "too_long", "key", "model", "route", "method", "media", "large", "slow", "busy", "deadline", "failed",
    "starting",
]  # fmt: skip


class Shape(NamedTuple):
    """How a refusal is told: by status and word; in the API of OpenAI by status, type and code."""

    status: int
    word: str
    openai_status: int
    openai_type: str
    code: str | None = None


INVALID = "invalid_request_error"
SHAPES: dict[Kind, Shape] = {
    "invalid": Shape(422, "validation", 400, INVALID),
    "too_long": Shape(422, "validation", 400, INVALID, "context_length_exceeded"),
    "key": Shape(401, "authentication", 401, INVALID, "invalid_api_key"),
    "model": Shape(404, "not_found", 404, INVALID, "model_not_found"),
    "route": Shape(404, "not_found", 404, INVALID, "unknown_url"),
    "method": Shape(405, "method_not_allowed", 405, INVALID, "method_not_supported"),
    "media": Shape(415, "validation", 415, INVALID, "unsupported_media_type"),
    "large": Shape(413, "validation", 413, INVALID, "request_too_large"),
    "slow": Shape(408, "timeout", 408, INVALID, "request_timeout"),
    "busy": Shape(429, "overloaded", 429, "rate_limit_error", "rate_limit_exceeded"),
    "deadline": Shape(504, "timeout", 504, "server_error", "deadline_exceeded"),
    "failed": Shape(500, "generation", 500, "server_error", "internal_error"),
    "starting": Shape(503, "overloaded", 503, "server_error", "model_not_ready"),
}


class RefusalError(Exception):
    """`param` names the field at fault; `wait` is after how many seconds to ask again."""

    def __init__(self, kind: Kind, message: str, *, param: str | None = None, wait: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.param, self.wait = kind, message, param, wait

    def body(self, *, openai: bool) -> dict[str, Any]:
        shape = SHAPES[self.kind]
        if openai:
            error = {"message": self.message, "type": shape.openai_type, "param": self.param, "code": shape.code}
            return {"error": error}
        front = "Input validation error: " if shape.word == "validation" else ""
        front = "Request failed during generation: " if shape.word == "generation" else front
        return {"error": front + self.message, "error_type": shape.word}

    def response(self, *, openai: bool) -> Response:
        shape = SHAPES[self.kind]
        headers = {"Retry-After": str(self.wait)} if self.wait is not None else {}
        if self.kind == "key":
            headers["WWW-Authenticate"] = "Bearer"
        status = shape.openai_status if openai else shape.status
        return Response(to_json(self.body(openai=openai)), status, headers, "application/json")


def is_openai(path: str) -> bool:
    return path.startswith("/v1/")


def of_failure(event: Failed) -> RefusalError:
    """What became of a job, as a refusal."""
    kinds: dict[str, Kind] = {"deadline": "deadline", "invalid": "invalid", "failed": "failed"}
    return RefusalError(kinds[event.why], event.message)


def of_validation(error: ValidationError) -> RefusalError:
    """The first mistake that pydantic found, in one line.

    >>> from pydantic import BaseModel
    >>> class Wanted(BaseModel):
    ...     n: int
    >>> try:
    ...     Wanted.model_validate_json('{"n": "x"}')
    ... except ValidationError as error:
    ...     of_validation(error).message
    'n: Input should be a valid integer, unable to parse string as an integer'
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return RefusalError("invalid", f"Unrecognized request argument supplied: {where}", param=where)
    return RefusalError("invalid", f"{where}: {said}" if where else said, param=where or None)
