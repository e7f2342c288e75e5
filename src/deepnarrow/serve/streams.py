"""What routes share: a request's body read, its client watched, its events sent as they come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deepnarrow.serve.asking import Found, follow
from deepnarrow.serve.jobs import Event, Job
from deepnarrow.serve.models import Model
from deepnarrow.serve.refusals import RefusalError, is_openai, of_validation
from deepnarrow.serve.words import to_json

Wanted = TypeVar("Wanted", bound=BaseModel)
Result = TypeVar("Result")
Told = tuple[int, Event]  # which of a request's jobs, and what happened to it
DONE = b"data: [DONE]\n\n"
GONE = 499  # nobody reads it; for the log


class GoneError(Exception):
    """The client has closed its connection."""


async def read(request: Request, wanted: type[Wanted]) -> Wanted:
    """The body, checked. Numbers that are not finite and texts that are not Unicode are refused with the rest."""
    try:
        return wanted.model_validate_json(await request.body())
    except ValidationError as error:
        raise of_validation(error) from None


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result, unless the client leaves first: then the work is given up, and its place is free."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def merged(model: Model, jobs: Sequence[Job], all_found: Sequence[Found]) -> AsyncIterator[Told]:
    """The events of a request's jobs as they come."""
    if len(jobs) == 1:
        async with aclosing(cast(Any, follow(model, jobs[0], all_found[0]))) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[Told | Exception | None] = asyncio.Queue()

    async def one(number: int) -> None:
        try:
            async with aclosing(cast(Any, follow(model, jobs[number], all_found[number]))) as events:
                async for event in events:
                    queue.put_nowait((number, event))
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(one(number)) for number in range(len(jobs))]
    try:
        left = len(jobs)
        while left:
            told = await queue.get()
            if isinstance(told, Exception):
                raise told
            if told is None:
                left -= 1
            else:
                yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_line(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


async def streamed(
    request: Request,
    lines: AsyncIterator[bytes],
    after: Callable[[], None],
    *,
    end: bytes = b"",
) -> Response:
    """Server-sent events. The first is awaited, so that what fails before it has a status of its own."""
    closing = aclosing(cast(Any, lines))
    try:
        first = await unless_gone(request, anext(lines))
    except BaseException:
        await closing.__aexit__(None, None, None)
        after()
        raise
    openai = is_openai(request.url.path)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield first
            async for line in lines:
                yield line
            if end:
                yield end
        except RefusalError as refusal:
            yield event_line(refusal.body(openai=openai))
        finally:
            await closing.__aexit__(None, None, None)
            after()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


def json_response(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")
