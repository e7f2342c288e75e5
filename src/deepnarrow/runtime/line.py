"""One sequence that grows token by token, greedily or by chance; drafted tokens are checked several at once."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import START, Draw, Engine, Memory, Row
from deepnarrow.runtime.limits import Limits, Output, Tell
from deepnarrow.runtime.masks import Constraint, all_but, allows
from deepnarrow.runtime.options import COLDEST, Greedy, Sample

BELOW_ONE = 1 - 2.0**-40  # a share of the whole that no rounding makes the whole


class Learner(Protocol):
    """Whoever drafted, and is told what came of it."""

    def learn(self, line: "Line", drafted: int, right: int) -> None: ...


class Ask(NamedTuple):
    """What a sequence wants of the next step: its row, the tokens to read, and for each of them mask and draw."""

    row: Row
    tokens: list[int]
    masks: list[np.ndarray | None]
    draws: list[Draw | None]
    top: int = 1


class Growing(Protocol):
    """The answers to one input on their way: ask, step the engine, take what it chose, until done."""

    @property
    def done(self) -> bool: ...

    def asks(self) -> list[Ask]:
        """One for each row; all of them go into the same step."""
        ...

    def take(self, ids_NT: np.ndarray, logs_NT: np.ndarray) -> None:
        """What the engine chose at each position of the asks, in their order."""
        ...

    def outputs(self) -> list[Output]:
        """The answers once done, best first."""
        ...


def early_mask(limits: Limits, tokens: int, vocab: int) -> np.ndarray | None:
    """What keeps a sequence of so many tokens from ending before `min_tokens`."""
    return all_but(tuple(limits.end_ids), vocab) if tokens < limits.min_tokens else None


def next_mask(limits: Limits, constraint: Constraint | None, tokens: int, vocab: int) -> np.ndarray | None:
    """What may follow a sequence of so many tokens. Where a constraint allows nothing but an early end, it ends."""
    early_W = early_mask(limits, tokens, vocab)
    if constraint is None:
        return early_W
    mask_W = constraint.mask(limits.max_tokens - tokens)
    if mask_W is None or early_W is None:
        return early_W if mask_W is None else mask_W
    both_W = mask_W & early_W
    return both_W if both_W.any() else mask_W


def over(limits: Limits, ids: list[int]) -> bool:
    """Whether a sequence ends with its newest token. Only a constraint can force an EOS before `min_tokens`."""
    return ids[-1] == limits.eos or limits.ended(ids)


class Line:
    """One sequence. `draft` may be filled with guesses at what comes next before each `ask`.

    A draft changes how many steps a sequence takes, never what it becomes: each position's token is the engine's own
    choice, and the first that is not the drafted one is the last that is taken.
    """

    def __init__(
        self,
        engine: Engine,
        row: Row,
        limits: Limits,
        *,
        source: Sequence[int] = (),
        uniform_T: np.ndarray | None = None,
        search: Greedy | Sample | None = None,
        constraint: Constraint | None = None,
        tell: Tell | None = None,
        index: int = 0,
    ) -> None:
        self.engine, self.limits, self.search, self.source, self.index = engine, limits, search, source, index
        self.ids: list[int] = []
        self.draft: list[int] = []
        self.score = 0.0
        self.done = False
        self.drafter: Learner | None = None
        self._row: Row | None = row
        self._uniform_T, self._constraint, self._tell = uniform_T, constraint, tell
        self._newest, self._whole = START, True

    def draw(self, at: int) -> Draw | None:
        """How the token at a position is drawn; None: greedily."""
        if self._uniform_T is None or not isinstance(self.search, Sample):
            return None
        search = self.search
        top_p = 1.0 if search.top_p is None else search.top_p
        return Draw(float(self._uniform_T[at]), search.temperature, search.top_k or 0, top_p)

    @property
    def room(self) -> int:
        """How many drafted tokens can be of use before `max_tokens`."""
        return self.limits.max_tokens - len(self.ids) - 1

    def ask(self) -> Ask:
        assert self._row is not None
        vocab, at = self.engine.shape.vocab, len(self.ids)
        state = self._constraint
        masks = [next_mask(self.limits, state, at, vocab)]
        kept: list[int] = []
        for id in self.draft[: self.room]:
            so_far = [*self.ids, *kept, id]
            if id >= self.engine.vocab_limit or not allows(masks[-1], id) or over(self.limits, so_far):
                break  # an end need not be read to be chosen
            kept.append(id)
            state = state.after(id) if state else None
            masks.append(next_mask(self.limits, state, len(so_far), vocab))
        self.draft = kept
        draws = [self.draw(place) for place in range(at, at + len(masks))]
        return Ask(self._row, [self._newest, *kept], masks, draws)

    def take(self, ids_NT: np.ndarray, logs_NT: np.ndarray) -> None:
        assert self._row is not None
        right = 0
        for place, (id, log) in enumerate(zip(ids_NT[:, 0].tolist(), logs_NT[:, 0].tolist(), strict=True)):
            self._append(id, log)
            if self.done or place == len(self.draft) or self.draft[place] != id:
                break
            right += 1
        if self.drafter:
            self.drafter.learn(self, len(self.draft), right)
        wrong, self.draft = len(self.draft) - right, []
        if self.done:
            self._row = None
        elif wrong:
            self.engine.cut(self._row, self._row.length - wrong)

    def _append(self, id: int, log: float) -> None:
        if id < 0:  # nothing is allowed: only a constraint that the vocabulary cannot write comes to this
            self.done, self._whole = True, False
            return
        self.ids.append(id)
        self.score += log
        self._newest = id
        if self._tell and id not in self.limits.end_ids:
            self._tell(self.index, id)
        self.done = over(self.limits, self.ids)
        if self._constraint and id != self.limits.eos:
            self._constraint = self._constraint.after(id)
            self._whole = self._constraint.fulfilled or not self.done

    def output(self) -> Output:
        return Output(self.limits.without_end(self.ids), self.score, self._whole)


class Lines:
    """The answers of one input that grow independently: one, or `num_return` samples."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    @property
    def done(self) -> bool:
        return all(line.done for line in self.lines)

    def asks(self) -> list[Ask]:
        return [line.ask() for line in self.lines if not line.done]

    def take(self, ids_NT: np.ndarray, logs_NT: np.ndarray) -> None:
        at = 0
        for line in self.lines:
            if not line.done:
                end = at + 1 + len(line.draft)
                line.take(ids_NT[at:end], logs_NT[at:end])
                at = end

    def outputs(self) -> list[Output]:
        return [line.output() for line in self.lines]


def start_lines(
    engine: Engine,
    memory: Memory,
    search: Greedy | Sample,
    limits: Limits,
    *,
    index: int = 0,
    source: Sequence[int] = (),
    constraint: Constraint | None = None,
    tell: Tell | None = None,
) -> Lines:
    """Answers in the order of drawing: the first is the same whatever `num_return` is. `index` is the input's."""
    number = search.num_return if isinstance(search, Sample) else 1
    if tell and number > 1:
        raise UserError(f"tokens can be told one by one for one answer, not for {number} at once")
    lines = []
    for answer in range(number):
        uniform_T = None
        if isinstance(search, Sample) and search.temperature >= COLDEST:
            drawn_T = np.random.default_rng([search.seed, index, answer]).random(limits.max_tokens)
            uniform_T = drawn_T.clip(max=BELOW_ONE)
        lines.append(
            Line(
                engine,
                engine.start(memory),
                limits,
                source=source,
                uniform_T=uniform_T,
                search=search,
                constraint=constraint,
                tell=tell,
                index=index,
            )
        )
    return Lines(lines)
