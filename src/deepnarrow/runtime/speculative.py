"""Speculative decoding: guesses at the next tokens, checked several at once (Leviathan et al. 2023, arXiv:2211.17192).

A step of a decoder at small batches costs its weights' way through the memory, whether it reads one token or five. So a
cheap drafter guesses what comes next, the model reads the guess in one step, and what it would have said itself is
kept. Two drafters: a shallow sibling with the same vocabulary, and the input itself, for summaries and corrections,
whose answers repeat it (He et al. 2023, arXiv:2304.04487; prompt look-up).

The answer is that of plain decoding, token for token: each position's token is the model's own choice, the likeliest or
the one that the position's own random number draws, and a draft decides only how many positions a step covers. That
holds for sampling too and needs no rule of rejection, since a seed fixes each position's number beforehand; the sibling
draws with the same numbers, so that it guesses right more often. What can differ are ties: two tokens equally likely to
the last digits, which floating-point sums over several positions may order otherwise. Beams are refused: they keep
several choices of each position.

How many tokens are drafted adapts to what was right so far, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import START, Engine, Row
from deepnarrow.runtime.line import Line, over
from deepnarrow.runtime.memories import Memories
from deepnarrow.shapes.counts import decode_step_flops
from deepnarrow.shapes.shape import Shape

POSITION = 0.15  # what each further position adds to a step of the model, in steps of one (benchmarks/speculative.py)
HOPE = 0.7  # the share of right guesses expected of a row that has shown none yet,
SEEN = 4.0  # with the weight of so many guesses
FADES = 0.92  # what a guess counts for beside the one after it
LONGEST, NEAR = 4, 12  # ids compared to find the place in the input; how far from the last place one id is looked for


@dataclass
class Counts:
    """What came of the drafts, over all rows."""

    steps: int = 0  # of rows: ten rows in one step of the engine are ten
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were right."""
        return self.accepted / max(1, self.drafted)

    @property
    def tokens_per_step(self) -> float:
        """1.0 is plain decoding."""
        return self.tokens / max(1, self.steps)


class Pace:
    """How many tokens to draft: as many as pay, from the share of guesses that were right."""

    def __init__(self, cost: float, most: int) -> None:
        self.cost, self.most = cost, most
        self._right, self._seen = HOPE * SEEN, SEEN

    def length(self) -> int:
        """The k with the most tokens for the time: (1 + a + ... + a^k) / (1 + k cost), if each is right by chance a.

        >>> Pace(0.1, 8).length(), Pace(0.5, 8).length()
        (4, 1)
        """
        share, tokens, best, length = self._right / self._seen, 1.0, 1.0, 0
        chance = 1.0
        for k in range(1, self.most + 1):
            chance *= share
            tokens += chance
            if tokens / (1 + k * self.cost) > best:
                best, length = tokens / (1 + k * self.cost), k
        return length

    def learn(self, drafted: int, right: int) -> None:
        """`right` guesses and, where there were more, one wrong one; those behind it were not judged.

        Where nothing was drafted the hope comes back, so that a row is tried again after a while.
        """
        judged = min(drafted, right + 1)
        fades, hope = FADES ** max(1, judged), 0.0 if drafted else (1 - FADES) * SEEN
        self._right = self._right * fades + right + hope * HOPE
        self._seen = self._seen * fades + judged + hope


class Copy:
    """Guesses that the answer goes on as the input does from where it is now.

    The place is where the answer's last ids stand in the input, the longer run of them the better, the nearer to the
    last place the better; behind an id that the input does not have there, the next one's.
    """

    def __init__(self, *, most: int = 16) -> None:
        check_most(most)
        self.most, self.counts = most, Counts()
        self._rows: WeakKeyDictionary[Line, tuple[Pace, Place]] = WeakKeyDictionary()

    def propose(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line.draft:
                continue  # another drafter's
            if line not in self._rows:
                self._rows[line] = Pace(POSITION, self.most), Place(line.source)
            pace, place = self._rows[line]
            line.draft = place.ahead(line.ids, min(pace.length(), line.room))
            line.drafter = self

    def learn(self, line: Line, drafted: int, right: int) -> None:
        count(self.counts, drafted, right)
        self._rows[line][0].learn(drafted, right)


class Place:
    """Where in the input an answer is.

    >>> place = Place([5, 6, 7, 8, 9, 1])
    >>> place.ahead([6, 7], 2), place.ahead([6, 7, 40], 2), place.ahead([6, 7, 40, 9], 2)
    ([8, 9], [9], [])
    """

    def __init__(self, source: Sequence[int]) -> None:
        self.source = list(source[:-1] if source and source[-1] == 1 else source)
        self._ends: dict[int, list[int]] = {}
        for end, id in enumerate(self.source, start=1):
            self._ends.setdefault(id, []).append(end)
        self._at: int | None = None  # of what comes next
        self._known = 0  # tokens of the answer when that was found

    def ahead(self, ids: list[int], length: int) -> list[int]:
        self._find(ids)
        return [] if self._at is None else self.source[self._at : self._at + length]

    def _find(self, ids: list[int]) -> None:
        if not ids or self._known == len(ids):
            return
        expected = self._at
        if expected is not None:
            expected += len(ids) - self._known  # if each id stands for one of the input
        self._known = len(ids)
        runs = [(self._run(ids, end), end) for end in self._ends.get(ids[-1], ())]
        longest = max(runs, default=(0, 0))[0]
        if longest == 1 and expected is not None:
            runs = [(size, end) for size, end in runs if abs(end - expected) <= NEAR]
        near = [end for size, end in runs if size == longest]
        self._at = min(near, key=lambda end: abs(end - (expected or 0))) if near else expected

    def _run(self, ids: list[int], end: int) -> int:
        """How many of the answer's last ids, `LONGEST` at most, stand in the input before a place."""
        size = 1
        while size < min(LONGEST, len(ids), end) and self.source[end - 1 - size] == ids[-1 - size]:
            size += 1
        return size


class Sibling:
    """A small model's greedy (or equally drawn) continuation."""

    def __init__(self, engine: Engine, target: Shape, *, most: int = 8, cost: float | None = None) -> None:
        """`target` is the shape of the model that checks; `cost` of a drafted token, in the model's steps of one.

        Raises `UserError` where the vocabularies cannot be one.
        """
        check_most(most)
        if engine.shape.vocab != target.vocab:
            raise UserError(
                f"the draft model has {engine.shape.vocab:,} ids and the model {target.vocab:,}; a draft must share "
                "the model's vocabulary"
            )
        self.engine, self.most, self.counts = engine, most, Counts()
        self.cost = POSITION + step_cost(engine.shape) / step_cost(target) if cost is None else cost
        self._rows: WeakKeyDictionary[Line, Drafting] = WeakKeyDictionary()

    def propose(self, lines: Sequence[Line]) -> None:
        lines = [line for line in lines if not line.draft]  # some may be another drafter's
        self._start([line for line in lines if line not in self._rows])
        going = []
        for line in lines:
            line.drafter = self
            drafting = self._rows[line]
            drafting.wanted = min(drafting.pace.length(), line.room)
            if drafting.wanted:
                drafting.go_back(self.engine, line.ids)
                going.append(line)
        while going:
            states = [self._rows[line] for line in going]
            unread = [
                [START, *line.ids, *line.draft][len(state.read) :] for line, state in zip(going, states, strict=True)
            ]
            draws = [
                draw
                for line, ids in zip(going, unread, strict=True)
                for draw in [*[None] * (len(ids) - 1), line.draw(len(line.ids) + len(line.draft))]
            ]
            some = draws if any(draw is not None for draw in draws) else None
            chosen = self.engine.step([state.row for state in states], unread, draws=some)
            at, still = -1, []
            for line, state, ids in zip(going, states, unread, strict=True):
                at += len(ids)
                state.read += ids
                line.draft.append(int(chosen.ids[at, 0]))
                if len(line.draft) < state.wanted and not over(line.limits, [*line.ids, *line.draft]):
                    still.append(line)
            going = still

    def _start(self, lines: Sequence[Line]) -> None:
        if lines:
            memories = Memories(0).encode(self.engine, [line.source for line in lines])
            for line, memory in zip(lines, memories, strict=True):
                self._rows[line] = Drafting(self.engine.start(memory), Pace(self.cost, self.most))

    def learn(self, line: Line, drafted: int, right: int) -> None:
        count(self.counts, drafted, right)
        self._rows[line].pace.learn(drafted, right)


class Drafting:
    """A row of the small model beside a row of the large one."""

    def __init__(self, row: Row, pace: Pace) -> None:
        self.row, self.pace, self.wanted = row, pace, 0
        self.read: list[int] = []

    def go_back(self, engine: Engine, ids: list[int]) -> None:
        """Forget what was drafted and turned out otherwise."""
        right = 0
        for mine, its in zip(self.read, [START, *ids], strict=False):
            if mine != its:
                break
            right += 1
        if right < len(self.read):
            engine.cut(self.row, right)
            del self.read[right:]


class Both:
    """Copies where the input has the answer's last ids, else the small model's guesses."""

    def __init__(self, copy: Copy, sibling: Sibling) -> None:
        self.copy, self.sibling = copy, sibling

    @property
    def counts(self) -> Counts:
        one, other = self.copy.counts, self.sibling.counts
        return Counts(*(getattr(one, name) + getattr(other, name) for name in vars(one)))

    def propose(self, lines: Sequence[Line]) -> None:
        self.copy.propose(lines)
        self.sibling.propose(lines)


def step_cost(shape: Shape) -> int:
    """A decoder's work for one token of an answer of ordinary length."""
    return decode_step_flops(shape, position=32, input_length=64)


def count(counts: Counts, drafted: int, right: int) -> None:
    counts.steps += 1
    counts.tokens += right + 1
    counts.drafted += drafted
    counts.accepted += right


def check_most(most: int) -> None:
    if most < 1:
        raise UserError(f"a draft has at least 1 token, not {most}")
