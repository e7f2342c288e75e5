"""Continuous batching for encoder-decoders: rows join and leave at every step of the decoder.

A `Scheduler` owns one engine and is driven by one thread: `submit` and `cancel` at any time between turns, `turn` until
nothing is left. One turn lets inputs in, runs some layers of the encoder for those that came last, and one step of the
decoder for all that are encoded. So a long source is encoded between the steps of others and does not stall them.

What is fair: jobs are let in by arrival, and none overtakes; all that are in share every step.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import Encoding, Engine, Memory
from deepnarrow.runtime.limits import Limits, Output, until
from deepnarrow.runtime.line import Lines
from deepnarrow.runtime.masks import Constraint
from deepnarrow.runtime.memories import Memories
from deepnarrow.runtime.rows import check_rows
from deepnarrow.runtime.search import Ask, Growing, grow
from deepnarrow.serve.jobs import Answer, Begun, Ended, Event, Failed, Job, Load, Rule, Token, Tokens, Why
from deepnarrow.text.vocabulary import Tokenizer

SHORTEST = 0.004  # seconds of encoding between two steps that are always allowed
ALONE = 0.1  # seconds of encoding before news are heard again where nobody waits for a step
SLOW = 4.0  # turns that a piece must still need before another is begun beside it
PIECES = 4  # most of them at once
ALIKE, SHORT = 4, 64  # inputs of a piece differ in length by this factor at most, those below so many tokens not at all


Constraints = Callable[[Rule], Constraint]  # makes constraints of rules, and keeps them


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one engine may hold at once.

    rows     sequences in one step of the decoder
    tokens   of encoded inputs and of all their answers, at the longest they may become
    piece    input tokens that go through the encoder together
    cache    bytes of encoded inputs kept for when they come again
    """

    rows: int = 64
    tokens: int = 65536
    piece: int = 2048
    cache: int = 64 * 2**20


@dataclass
class Entry:
    """A job that was let in."""

    job: Job
    tokens: int
    growing: Growing | None = None
    encoded: float = 0.0
    first: float = 0.0


@dataclass
class Piece:
    """Inputs that go through the encoder together. `left` layers are still to run."""

    entries: list[Entry]
    tokens: int
    left: int
    encoding: Encoding | None = None
    gone: set[int] = field(default_factory=set)

    @property
    def stay(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.job.number not in self.gone]

    @property
    def work(self) -> int:
        return self.left * self.tokens


class Scheduler:
    """See the module. `clock` is in seconds. An error of the engine is not caught here: then all it holds is lost."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        room: Room | None = None,
        *,
        prompts: Mapping[str, np.ndarray] | None = None,
        own: np.ndarray | None = None,
        constraints: Constraints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.tokenizer, self.room = engine, tokenizer, room or Room()
        self.prompts, self.own, self.constraints, self.clock = dict(prompts or {}), own, constraints, clock
        self.memories = Memories(self.room.cache)
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._pieces: list[Piece] = []  # by arrival
        self._open: dict[int, Entry] = {}
        self._rows = self._tokens = 0
        self._events: list[Event] = []
        self._encoded_tokens = self._steps = 0
        self._stepped = 0.0
        self._step_seconds = SHORTEST
        self._oldest = False
        self._layer_seconds: float | None = None  # of one token through one layer of the encoder

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._pieces or self._open or self._events)

    @property
    def held(self) -> list[int]:
        """The jobs that would be lost with the engine."""
        return [*self._open, *(entry.job.number for piece in self._pieces for entry in piece.stay)]

    @property
    def load(self) -> Load:
        return Load(
            len(self._waiting),
            self._rows,
            self._tokens,
            self._encoded_tokens,
            self._steps,
            self._stepped,
            self.memories.bytes,
            self.memories.hits,
            self.memories.misses,
        )

    def submit(self, job: Job) -> None:
        """A job that can never be let in fails at once."""
        problem = self._problem(job)
        if problem:
            self._events.append(Failed(job.number, "invalid", problem))
        else:
            self._waiting[job.number] = job

    def _problem(self, job: Job) -> str | None:
        try:
            check_rows([job.ids], self.engine.shape.vocab, "input")
        except UserError as error:
            return str(error)
        if job.prompt is not None and job.prompt not in self.prompts:
            return f"there is no prompt {job.prompt!r}"
        if not job.embed and not self.engine.shape.decoder_layers:
            return "this model is an encoder alone: it can embed, but it has no decoder to answer with"
        needs, room = job.tokens(self._prompt_length(job)), self.room
        if needs > room.tokens or job.rows > room.rows:
            return (
                f"this needs {job.rows} sequences and {needs:,} tokens at once, but the server holds at most "
                f"{room.rows} and {room.tokens:,}; ask for fewer answers or tokens"
            )
        return None

    def cancel(self, number: int) -> None:
        """Forget a job. Its place is free for the next turn; nothing more is told of it."""
        self._waiting.pop(number, None)
        for piece in self._pieces:
            for entry in piece.stay:
                if entry.job.number == number:
                    piece.gone.add(number)
                    self._leave(entry)
        self._pieces = [piece for piece in self._pieces if piece.stay]
        entry_open = self._open.get(number)
        if entry_open:
            self._leave(entry_open)

    def turn(self) -> list[Event]:
        """Let in, work; returns what happened."""
        return [*self.let_in(), *self.work()]

    def let_in(self) -> list[Event]:
        """The first half of a turn: which jobs are over, which begin. Told apart, for what fails has then begun."""
        now = self.clock()
        self._expire(now)
        self._let_in(now)
        return self._news()

    def work(self) -> list[Event]:
        """The other half: some encoding, one step."""
        if self._pieces:
            self._encode()
        if self._open:
            self._step()
        return self._news()

    def _news(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # letting in

    def _expire(self, now: float) -> None:
        def late(job: Job) -> bool:
            return job.deadline is not None and job.deadline <= now

        for job in [job for job in self._waiting.values() if late(job)]:
            del self._waiting[job.number]
            self._fail(job.number, "deadline", "the time allowed was over before its turn came")
        inside = [entry for piece in self._pieces for entry in piece.stay]
        for job in [entry.job for entry in (*inside, *self._open.values()) if late(entry.job)]:
            self.cancel(job.number)
            self._fail(job.number, "deadline", "the time allowed was over before the answer was complete")

    def _let_in(self, now: float) -> None:
        """The jobs whose turn it is, as far as there is room; they are encoded together, known inputs not at all."""
        if len(self._pieces) >= PIECES or any(not self._slow(piece) for piece in self._pieces):
            return
        entries: list[Entry] = []
        length = 0
        while self._waiting:
            job = next(iter(self._waiting.values()))
            needs = job.tokens(self._prompt_length(job))
            if self._rows + job.rows > self.room.rows or self._tokens + needs > self.room.tokens:
                break
            own = self._prompt_length(job) + len(job.ids)
            if entries and (length + own > self.room.piece or not alike(own, length // len(entries))):
                break
            del self._waiting[job.number]
            memory = None if job.embed else self.memories.get(job.ids, self._prompt(job))
            self._events.append(Begun(job.number, now, memory is not None))
            entry = Entry(job, needs)
            self._rows += job.rows
            self._tokens += needs
            if memory is not None:
                self._open_row(entry, memory, now)
                continue
            entries.append(entry)
            length += own
        if entries:
            self._pieces.append(Piece(entries, length, max(1, self.engine.shape.encoder_layers)))

    def _slow(self, piece: Piece) -> bool:
        return self._layer_seconds is not None and piece.work * self._layer_seconds > SLOW * self._allowed()

    def _prompt(self, job: Job) -> np.ndarray | None:
        return self.own if job.prompt is None else self.prompts[job.prompt]

    def _prompt_length(self, job: Job) -> int:
        prompt = self._prompt(job)
        return 0 if prompt is None else len(prompt)

    # encoding

    def _encode(self) -> None:
        """Some layers of one piece: in turn the oldest and the one that is done soonest, so that short ones come by."""
        self._oldest = not self._oldest
        piece = self._pieces[0] if self._oldest else min(self._pieces, key=lambda piece: piece.work)
        start = self.clock()
        if piece.encoding is None:
            prompts = [self._prompt(entry.job) for entry in piece.entries]
            piece.encoding = self.engine.begin(
                [entry.job.ids for entry in piece.entries], prompts if any(one is not None for one in prompts) else None
            )
        layers = self._layers(piece)
        done = piece.encoding.advance(layers)
        now = self.clock()
        piece.left = max(1, piece.left - layers)
        cost = (now - start) / (layers * piece.tokens)
        self._layer_seconds = cost if self._layer_seconds is None else 0.7 * self._layer_seconds + 0.3 * cost
        if done:
            self._pieces.remove(piece)
            self._encoded_tokens += piece.tokens
            self._encoded(piece, now)

    def _allowed(self) -> float:
        """Seconds of encoding in one turn: about as long as a step takes, longer where the decoder has few rows."""
        if not self._open:
            return ALONE
        empty = 1 - sum(entry.job.rows for entry in self._open.values()) / self.room.rows
        return max(SHORTEST, self._step_seconds) * (1 + 3 * empty * empty)

    def _layers(self, piece: Piece) -> int:
        """One at least, so that every input comes through."""
        if self._layer_seconds is None:
            return 1
        return max(1, min(piece.left, int(self._allowed() / max(1e-12, self._layer_seconds * piece.tokens))))

    def _encoded(self, piece: Piece, now: float) -> None:
        embeds = [entry.job.embed for entry in piece.stay]
        encoding = cast(Encoding, piece.encoding)
        memories: Sequence[Memory] = () if all(embeds) else encoding.memories()
        hidden = encoding.hidden() if any(embeds) else []
        for place, entry in enumerate(piece.entries):
            if entry.job.number in piece.gone:
                continue
            if entry.job.embed:
                vector = hidden[place][-len(entry.job.ids) :].mean(0, dtype=np.float32)
                self._leave(entry)
                self._events.append(Ended(entry.job.number, (), now, now, now, vector))
            else:
                self.memories.put(entry.job.ids, self._prompt(entry.job), memories[place])
                self._open_row(entry, memories[place], now)

    # decoding

    def _open_row(self, entry: Entry, memory: Memory, now: float) -> None:
        job = entry.job
        entry.encoded = now
        try:
            limits = self._limits(job)
            constraint = self._constraint(job.rule)
            entry.growing = grow(
                self.engine, memory, job.search, limits, index=job.index, source=job.ids, constraint=constraint
            )
        except UserError as error:
            self._leave(entry)
            self._fail(job.number, "invalid", str(error))
            return
        self._open[job.number] = entry

    def _limits(self, job: Job) -> Limits:
        tokenizer = self.tokenizer
        eos = tokenizer.eos if tokenizer else 1
        if job.stop and tokenizer is None:
            raise UserError("this model has no tokenizer, so it cannot look for stop texts")
        stop = (until(job.stop, tokenizer.decode),) if tokenizer and job.stop else ()
        return Limits(job.max_tokens, job.min_tokens, eos, stop, self.engine.vocab_limit)

    def _constraint(self, rule: Rule | None) -> Constraint | None:
        if rule is None:
            return None
        if self.constraints is None:
            raise UserError("this server has no constraints: it was started without a tokenizer or their library")
        return self.constraints(rule)

    def _step(self) -> None:
        entries = list(self._open.values())
        asked = [cast(Growing, entry.growing).asks() for entry in entries]
        asks = [ask for some in asked for ask in some]
        masks = [mask for ask in asks for mask in ask.masks]
        draws = [draw for ask in asks for draw in ask.draws]
        tops = [entry.job.top + 1 for entry in entries]
        start = self.clock()
        chosen = self.engine.step(
            [ask.row for ask in asks],
            [ask.tokens for ask in asks],
            top=min(self.engine.vocab_limit, max(*(ask.top for ask in asks), *tops)),
            masks=masks if any(mask is not None for mask in masks) else None,
            draws=draws if any(draw is not None for draw in draws) else None,
            logs=any(entry.job.scored for entry in entries),
        )
        now = self.clock()
        self._steps += 1
        self._stepped += now - start
        self._step_seconds += 0.2 * (now - start - self._step_seconds)
        at = 0
        for entry, some in zip(entries, asked, strict=True):
            end = at + sum(len(ask.tokens) for ask in some)
            self._take(entry, some, chosen.ids[at:end], chosen.logs[at:end], now)
            at = end

    def _take(self, entry: Entry, asks: list[Ask], ids_NT: np.ndarray, logs_NT: np.ndarray, now: float) -> None:
        growing = cast(Growing, entry.growing)
        entry.first = entry.first or now
        if isinstance(growing, Lines):
            which = [number for number, line in enumerate(growing.lines) if not line.done]
            growing.take(ids_NT, logs_NT)
            if entry.job.tell:
                self._tell(entry, which, asks, ids_NT, logs_NT)
        else:
            growing.take(ids_NT, logs_NT)
        if growing.done:
            self._end(entry, now)

    def _tell(self, entry: Entry, which: list[int], asks: list[Ask], ids_NT: np.ndarray, logs_NT: np.ndarray) -> None:
        tokens, lines = [], cast(Lines, entry.growing).lines
        for answer, ask, ids_T, logs_T in zip(which, asks, ids_NT.tolist(), logs_NT.tolist(), strict=True):
            if ids_T[0] < 0:
                continue
            top = [(id, log) for id, log in zip(ids_T, logs_T, strict=True) if id >= 0]
            if ask.draws[0] is not None:  # the drawn id stands in front, wherever it belongs
                top.sort(key=lambda pair: (-pair[1], pair[0]))
            line = lines[answer]
            reason = self._answer(entry.job, line.output()).reason if line.done else None
            tokens.append(Token(answer, ids_T[0], logs_T[0], tuple(top[: entry.job.top]), reason))
        if tokens:
            last = cast(Growing, entry.growing).done
            self._events.append(Tokens(entry.job.number, tuple(tokens), last))

    def _end(self, entry: Entry, now: float) -> None:
        growing, job = cast(Growing, entry.growing), entry.job
        outputs = growing.outputs()
        self._leave(entry)
        if job.rule is not None and not any(output.whole for output in outputs):
            self._fail(job.number, "invalid", f"{job.max_tokens} tokens are too few for an answer of this grammar")
            return
        answers = [self._answer(job, output) for output in outputs]
        self._events.append(Ended(job.number, tuple(answers), entry.encoded, entry.first, now))

    def _answer(self, job: Job, output: Output) -> Answer:
        """Why it ended follows from what it is: with a stop text, at its length, else by its EOS, which it lacks."""
        tokens = len(output.ids)
        if job.stop and self.tokenizer and any(end in self.tokenizer.decode(output.ids) for end in job.stop):
            return Answer(output.ids, output.score, "stop_sequence", tokens)
        if tokens >= job.max_tokens:
            return Answer(output.ids, output.score, "length", tokens)
        return Answer(output.ids, output.score, "eos_token", tokens + 1)

    def _leave(self, entry: Entry) -> None:
        """Give back a job's rows and tokens."""
        self._open.pop(entry.job.number, None)
        entry.growing = None
        self._rows -= entry.job.rows
        self._tokens -= entry.tokens

    def _fail(self, number: int, why: Why, message: str) -> None:
        self._events.append(Failed(number, why, message))


def alike(tokens: int, others: int) -> bool:
    """Whether an input may go through the encoder with others of such a length, without waiting much for them.

    >>> alike(10, 60), alike(200, 60), alike(900, 60)
    (True, True, False)
    """
    return max(tokens, others, SHORT) <= ALIKE * max(min(tokens, others), SHORT)
