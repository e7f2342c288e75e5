"""The server: routes on workers, behind guards, until it is told to stop."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deepnarrow import __version__
from deepnarrow.errors import UserError
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.guards import Guards
from deepnarrow.serve.keys import Keys
from deepnarrow.serve.logs import Log, LogHandler
from deepnarrow.serve.metrics import Metrics
from deepnarrow.serve.models import Models
from deepnarrow.serve.openai import openai_routes
from deepnarrow.serve.protocol import patient
from deepnarrow.serve.refusals import RefusalError, is_openai
from deepnarrow.serve.schema import plain
from deepnarrow.serve.streams import GONE, GoneError, json_response
from deepnarrow.serve.tgi import tgi_routes, worker_states
from deepnarrow.serve.workers import Worker

PAGE = {  # all that is served from files, by a table made when the server starts
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def application(workers: Sequence[Worker], *, allowed: Allowed, keys: Keys, log: Log, metrics: Metrics) -> Guards:
    """The ASGI app over workers that are started and stopped elsewhere."""
    models = Models(workers)
    app = FastAPI(title="DeepNarrow", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(tgi_routes(models, allowed))
    app.include_router(openai_routes(models, allowed, int(time.time())))

    @app.get("/health", **plain(503))
    async def health() -> Response:
        """200 while all workers are ready, else 503; which, in either case."""
        ready = all(worker.state == "ready" for worker in models.workers)
        said: dict[str, Any] = {"status": "ok" if ready else "not ready", "workers": worker_states(models)}
        if not ready:
            said |= {"error": "not all workers are ready", "error_type": "healthcheck"}
        response = json_response(said)
        response.status_code = 200 if ready else 503
        return response

    @app.get("/metrics", **plain(media="text/plain"))
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (name, media) in PAGE.items():
        add_file(app, path, name, media)
    add_refusals(app, log)
    return Guards(app, allowed=allowed, keys=keys, log=log, metrics=metrics)


def add_file(app: FastAPI, path: str, name: str, media: str) -> None:
    file = files("deepnarrow.serve") / "web" / name
    if not file.is_file():
        return
    content = file.read_bytes()

    async def show() -> Response:
        return Response(content, media_type=media, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, show, methods=["GET"], include_in_schema=False)


def add_refusals(app: FastAPI, log: Log) -> None:
    """Every refusal in the words of the API that was asked."""

    @app.exception_handler(RefusalError)
    async def refused(request: Request, error: RefusalError) -> Response:
        return error.response(openai=is_openai(request.url.path))

    @app.exception_handler(GoneError)
    async def gone(request: Request, error: GoneError) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> Response:
        openai = is_openai(request.url.path)
        if error.status_code == 405:
            response = RefusalError("method", f"{request.method} is not of this route").response(openai=openai)
            response.headers.update(error.headers or {})
            return response
        return RefusalError("route", "there is no such route").response(openai=openai)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return RefusalError("failed", "the server failed; its log says where").response(
            openai=is_openai(request.url.path)
        )


class Quiet(uvicorn.Server):
    """Without hands on signals: they are ours, and an orderly end is no death by signal."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class Server:
    """All of it: `run` serves until SIGTERM or SIGINT, then lets what is running end."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        allowed: Allowed | None = None,
        keys: Keys | None = None,
        log: Log | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.workers, self.host, self.port = list(workers), host, port
        self.allowed, self.keys, self.log = allowed or Allowed(), keys or Keys(), log or Log()
        self.metrics = metrics or Metrics()
        self.metrics.workers = self.workers
        for worker in self.workers:
            worker.hear, worker.tell = self.metrics.heard, self.log
        app = application(self.workers, allowed=self.allowed, keys=self.keys, log=self.log, metrics=self.metrics)
        config = uvicorn.Config(
            app,
            http=patient(self.allowed),
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=self.allowed.connections,
            timeout_graceful_shutdown=int(self.allowed.drain_seconds) or 1,
            timeout_keep_alive=30,
        )
        self.server = Quiet(config)

    def stop(self) -> None:
        """From any thread: end as if told by a signal."""
        self.server.should_exit = True

    async def run(self, *, signals: bool = True) -> None:
        """Serve; ends when told to. Raises `UserError` where a model or the address cannot be opened."""
        listening = listen(self.host, self.port)
        self.port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        try:
            with listening:
                if signals:
                    for number in (signal.SIGTERM, signal.SIGINT):
                        loop.add_signal_handler(number, self._signalled)
                opening = asyncio.gather(*(worker.start() for worker in self.workers))
                await self._unless_stopped(opening)
                if self.server.should_exit:
                    return
                for worker in self.workers:
                    assert worker.ready is not None
                    self.log(
                        "ready", model=worker.name, engine=worker.ready.engine, shape=str(worker.ready.shape),
                        seconds=round(worker.opened_in or 0.0, 3),
                    )  # fmt: skip
                listening.listen(self.server.config.backlog)  # from here on nobody is turned away
                self.log("listening", host=self.host, port=self.port, keys=bool(self.keys))
                await self.server.serve([listening])
        finally:
            self.log("stopping")
            await asyncio.gather(*(worker.stop() for worker in self.workers))
            self.log("stopped")

    async def _unless_stopped(self, opening: "asyncio.Future[Any]") -> None:
        while not opening.done() and not self.server.should_exit:
            await asyncio.wait({opening}, timeout=0.1)
        if opening.done():
            await opening
        else:
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening

    def _signalled(self) -> None:
        if self.server.should_exit:  # the second time: at once
            self.server.force_exit = True
        self.server.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen at {host}:{port} ({said}); choose another --port or --host") from None
    listening.setblocking(False)
    return listening


def use_log(log: Log) -> None:
    """uvicorn and asyncio report by ours."""
    import logging

    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [LogHandler(log)], False


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    """A server that runs while the block does, in this loop: for tests and for other programs."""
    task = asyncio.ensure_future(server.run(signals=False))
    try:
        while not server.server.started and not task.done():
            await asyncio.sleep(0.01)
        if task.done():
            await task
        yield server
    finally:
        server.stop()
        await task
