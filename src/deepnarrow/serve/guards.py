"""What stands in front of every route: keys, limits of bodies, headers of safety, one line of log for each request."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.facts import FACTS, TEXTS
from deepnarrow.serve.keys import Keys
from deepnarrow.serve.logs import Log
from deepnarrow.serve.metrics import Metrics
from deepnarrow.serve.refusals import RefusalError, is_openai

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/page.js"), ("GET", "/style.css"), ("GET", "/icon.svg")}
ROUTES = {
    "/", "/generate", "/generate_stream", "/info", "/health", "/metrics", "/v1/completions", "/v1/embeddings",
    "/v1/models", "/openapi.json",
}  # fmt: skip
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
)


class Guards:
    """Around an app. What it refuses never reaches a route."""

    def __init__(self, app: App, *, allowed: Allowed, keys: Keys, log: Log, metrics: Metrics) -> None:
        self.app, self.allowed, self.keys, self.log, self.metrics = app, allowed, keys, log, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        name = given if ID.fullmatch(given) else secrets.token_hex(8)
        facts: dict[str, Any] = {}
        scope.setdefault("state", {}).update({FACTS: facts, TEXTS: self.log.texts})
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *SAFETY, (b"x-request-id", name.encode())]
            await send(message)

        try:
            refusal, body = await self._admitted(request, receive, facts)
            if refusal is not None:
                response: Response = refusal.response(openai=is_openai(request.url.path))
                if refusal.kind in ("large", "slow"):  # the rest of its body is not waited for
                    response.headers["Connection"] = "close"
                await response(scope, receive, told)
            else:
                await self.app(scope, body or receive, told)
        finally:
            seconds = time.monotonic() - begun
            route = request.url.path if request.url.path in ROUTES else "other"
            self.metrics.requests.labels(route, str(status or 499)).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            if route not in ("/health", "/metrics"):
                self.log(
                    "request",
                    id=name,
                    method=scope["method"],
                    route=route,
                    status=status or 499,
                    seconds=round(seconds, 6),
                    **facts,
                )

    async def _admitted(
        self, request: Request, receive: Receive, facts: dict[str, Any]
    ) -> tuple[RefusalError | None, Receive | None]:
        """Why it is refused; else where its body is read from, which is then all there."""
        method, path = request.method, request.url.path
        if self.keys and (method, path) not in OPEN:
            holder = self.keys.holder(request.headers.get("authorization"))
            if holder is None:
                return RefusalError("key", "give a valid API key as Authorization: Bearer KEY"), None
            facts["key"] = holder
        if method not in ("POST", "PUT", "PATCH"):
            return None, None
        media = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if media != "application/json":  # a page elsewhere can send anything else without the browser asking first
            return RefusalError("media", "send JSON, with the header Content-Type: application/json"), None
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.allowed.body:
            return self._too_large(), None
        try:
            async with asyncio.timeout(self.allowed.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            return RefusalError("slow", f"the body took longer than {self.allowed.body_seconds:g} s to arrive"), None
        if body is None:
            return self._too_large(), None
        first = True

        async def again() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return None, again

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None as soon as it is larger than it may be."""
        held = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(held)
            held += message.get("body", b"")
            if len(held) > self.allowed.body:
                return None
            if not message.get("more_body"):
                return bytes(held)

    def _too_large(self) -> RefusalError:
        return RefusalError("large", f"a request has at most {self.allowed.body:,} bytes")
