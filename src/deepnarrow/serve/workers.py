"""The server's side of a worker: it is started, watched, and started again; jobs go to it and their events come back.

What a worker held when it failed is lost, and those who wait for it are told. What had only waited is given to the next
worker, as if nothing had happened.
"""

import asyncio
import math
import os
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from deepnarrow.errors import UserError
from deepnarrow.serve.channel import LENGTH, packed
from deepnarrow.serve.jobs import Begun, Broken, Cancel, Ended, Event, Failed, Job, Load, News, NotReady, Ready
from deepnarrow.serve.opening import Spec

OPENING = 900.0  # seconds a worker may take to open its model, which may have to be fetched
AGAIN = (0.0, 0.5, 2.0, 5.0, 10.0)  # seconds before a worker is started again, the last for all further times
GRACE = 0.25  # seconds behind a deadline that its worker has to say so
TRIES = 2  # times that one job may be given to a worker
STALLED = 120.0  # seconds without news, while there is work, after which a worker is taken for dead
WINDOW = 30.0  # seconds over which the rate of work is measured

State = Literal["starting", "ready", "stopped"]


class BusyError(Exception):
    """There are too many before it. `wait` is after how many seconds it is worth to ask again."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = max(1, math.ceil(min(wait, 60.0)))


@dataclass
class Pending:
    """A job between its arrival and its end."""

    job: Job
    arrived: float
    work: int
    model: str  # the served name it was asked of
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    begun: float | None = None
    tries: int = 0


@dataclass
class Counts:
    """What a worker's server has counted since it began."""

    restarts: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    late: int = 0
    stalled: int = 0


class Rate:
    """Work done in a second, over the last `WINDOW` seconds, of which those without work do not count."""

    def __init__(self) -> None:
        self._done: deque[tuple[float, int, float]] = deque()
        self._since = 0.0

    def begin(self, now: float) -> None:
        """There is work again."""
        self._since = now

    def add(self, now: float, work: int) -> None:
        self._done.append((now, work, now - self._since))
        self._since = now
        while self._done and self._done[0][0] < now - WINDOW:
            self._done.popleft()

    def seconds(self, work: int) -> float:
        """How long so much work will take; 0 where nothing is known yet."""
        done = sum(amount for _, amount, _ in self._done)
        return work * sum(span for _, _, span in self._done) / done if done else 0.0


class Worker:
    """One model's worker.

    most_waiting   jobs that may wait before others are refused
    hear           told of every end, with the job and when it arrived and began: for metrics
    """

    def __init__(
        self, name: str, spec: Spec, *, most_waiting: int = 256, hear: Callable[[Pending, Event], None] | None = None
    ) -> None:
        self.name, self.spec, self.most_waiting = name, spec, most_waiting
        self.state: State = "starting"
        self.ready: Ready | None = None
        self.load, self.counts = Load(), Counts()
        self.done = Load()  # of workers that are gone
        self.opened_in: float | None = None
        self.hear = hear
        self.tell: Callable[..., None] = lambda event, **fields: None  # told of failures and restarts: for the log
        self._pending: dict[int, Pending] = {}
        self._numbers = count(1)
        self._rate = Rate()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._first: asyncio.Future[Ready] | None = None
        self._task: asyncio.Task[None] | None = None
        self._heard = time.monotonic()
        self._stopping = False

    # what others see

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def waiting(self) -> int:
        return sum(1 for pending in self._pending.values() if pending.begun is None)

    @property
    def active(self) -> int:
        return len(self._pending) - self.waiting

    async def start(self) -> Ready:
        """Start and wait until the model is open. Raises `UserError` where it cannot be."""
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise())
        return await self._first

    async def stop(self) -> None:
        """End the worker; what is still pending fails."""
        self._stopping = True
        self.state = "stopped"
        if self._writer:
            self._writer.close()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end_process()
        for pending in list(self._pending.values()):
            self._finish(pending, Failed(pending.job.number, "failed", "the server is shutting down"))

    def number(self) -> int:
        return next(self._numbers)

    def expected_wait(self) -> float:
        """Seconds until a job that comes now would begin, by what was done lately; 0 while nobody waits."""
        ahead = sum(pending.work for pending in self._pending.values() if pending.begun is None)
        return self._rate.seconds(ahead)

    def admit(self, jobs: list[Job]) -> None:
        """Raises `BusyError` where these jobs must not be taken, all or none."""
        now = time.monotonic()
        wait = self.expected_wait()
        if self.waiting + len(jobs) > self.most_waiting:
            self.counts.refused += 1
            raise BusyError(f"the queue of {self.name} is full ({self.waiting} waiting)", max(1.0, wait / 4))
        allowed = min((job.deadline - now for job in jobs if job.deadline is not None), default=math.inf)
        if wait > allowed:
            self.counts.refused += 1
            raise BusyError(f"{self.name} would need about {wait:.0f} s before it could begin", wait - allowed)

    async def events(self, job: Job) -> AsyncIterator[Event]:
        """Submit a job and follow it to its end. Leaving early, for whatever reason, cancels it."""
        pending = Pending(job, time.monotonic(), job.tokens(0), job.prompt or self.name)
        if not self._pending:
            self._rate.begin(pending.arrived)
        self._pending[job.number] = pending
        if self.state == "ready":
            self._give(pending)
        timer = None
        if job.deadline is not None:
            timer = asyncio.get_running_loop().call_later(
                max(0.0, job.deadline - pending.arrived) + GRACE, self._overdue, job.number
            )
        try:
            while True:
                event = await pending.events.get()
                yield event
                if isinstance(event, Ended | Failed):
                    return
        finally:
            if timer:
                timer.cancel()
            if self._pending.pop(job.number, None):
                self.counts.cancelled += 1
                if self.state == "ready":  # one that is being started has not been given it
                    self._send(Cancel(job.number))
                if self.hear:
                    self.hear(pending, Failed(job.number, "failed", "cancelled"))

    # inside

    def _give(self, pending: Pending) -> None:
        pending.tries += 1
        self._send(pending.job)

    def _send(self, message: object) -> None:
        if self._writer and not self._writer.is_closing():
            self._writer.write(packed(message))

    def _finish(self, pending: Pending, event: Ended | Failed) -> None:
        self._pending.pop(pending.job.number, None)
        if isinstance(event, Ended):
            self._rate.add(time.monotonic(), pending.work)
        elif event.why == "deadline":
            self.counts.late += 1
        elif event.why == "failed":
            self.counts.failed += 1
        if self.hear:
            self.hear(pending, event)
        pending.events.put_nowait(event)

    def _overdue(self, number: int) -> None:
        """The worker ends what is late by itself, but not while it is down or stuck."""
        pending = self._pending.get(number)
        if pending:
            self._send(Cancel(number))
            self._finish(pending, Failed(number, "deadline", "the time allowed was over"))

    async def _supervise(self) -> None:
        tries = 0
        while not self._stopping:
            begun = time.monotonic()
            problem: str | None = None
            try:
                reader = await self._spawn()
                self._welcome(await asyncio.wait_for(receive(reader), OPENING))
                self.opened_in = time.monotonic() - begun
                tries = 0
                if self.counts.restarts:
                    self.tell("worker started again", model=self.name, seconds=round(self.opened_in, 3))
                await self._listen(reader)
            except UserError as error:
                problem = str(error)
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, OSError) as error:
                problem = f"its worker ended while it opened the model ({type(error).__name__})"
            self.state = "starting"
            await self._end_process()
            if self._first and not self._first.done():
                self._first.set_exception(UserError(f"{self.name}: {problem}"))
                return
            self.counts.restarts += 1
            self.tell("worker ended", model=self.name, held=self.active, waiting=self.waiting, problem=problem)
            self._lose()
            self.done = total(self.done, self.load)
            self.load = Load()
            tries += 1
            await asyncio.sleep(AGAIN[min(tries - 1, len(AGAIN) - 1)])

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "deepnarrow.serve.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # what libraries print is no answer of ours
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(self.spec)
        return reader

    def _welcome(self, message: object) -> None:
        if isinstance(message, NotReady):
            raise UserError(message.message)
        assert isinstance(message, Ready)
        self.ready, self.state = message, "ready"
        self._heard = time.monotonic()
        for pending in self._pending.values():
            self._give(pending)
        if self._first and not self._first.done():
            self._first.set_result(message)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Until the worker's end of the channel is closed, or nothing is heard from it any longer."""
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                message = await receive(reader)
                self._heard = time.monotonic()
                if isinstance(message, News):
                    self.load = message.load
                    for event in message.events:
                        self._pass_on(event)
                elif isinstance(message, Broken):
                    self.tell("engine failed", model=self.name, held=len(message.held), error=message.error)
                    for number in message.held:
                        if number in self._pending:
                            self._finish(self._pending[number], Failed(number, "failed", "the engine failed"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, STALLED / 4))
            if not self._pending:
                self._heard = time.monotonic()
            if time.monotonic() - self._heard > STALLED and self._process:
                self.counts.stalled += 1
                self._process.kill()

    def _pass_on(self, event: Event) -> None:
        pending = self._pending.get(event.number)
        if pending is None:  # cancelled meanwhile
            return
        if isinstance(event, Ended | Failed):
            self._finish(pending, event)
            return
        if isinstance(event, Begun):
            pending.begun = event.at
        pending.events.put_nowait(event)

    def _lose(self) -> None:
        """What the worker had begun is lost; the rest waits for the next, but not for ever."""
        for pending in list(self._pending.values()):
            if pending.begun is not None or pending.tries >= TRIES:
                number = pending.job.number
                self._finish(pending, Failed(number, "failed", "the process that held this request ended"))

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if self._writer:
            self._writer.close()
            self._writer = None
        if process and process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), 2.0)
            except TimeoutError:
                process.kill()
                await process.wait()


async def receive(reader: asyncio.StreamReader) -> object:
    length = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
    return pickle.loads(await reader.readexactly(length))


def total(before: Load, now: Load) -> Load:
    """What was done by both, and nothing held.

    >>> total(Load(steps=2, rows=5), Load(steps=3)).steps, total(Load(rows=5), Load()).rows
    (5, 0)
    """
    summed = ("encoded", "steps", "stepped", "cache_hits", "cache_misses")
    return Load(**{name: getattr(before, name) + getattr(now, name) for name in summed})
