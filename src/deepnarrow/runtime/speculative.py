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

How many tokens are drafted adapts to the share that was right so far, of a row and of all, and to what a drafted token
costs, which is measured on the way: a native int8 step of a small model is bound by arithmetic, one of a large model in
float32 by memory, and where many rows share a step there is little to gain. Both change the pace alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import START, Engine, Row
from deepnarrow.runtime.line import Line, over
from deepnarrow.runtime.memories import Memories
from deepnarrow.shapes.counts import decode_step_flops
from deepnarrow.shapes.shape import Shape

POSITION = 0.15  # the part of a step of one that grows with its positions, until it is measured
LATE = 2.0  # times what was expected: a step that takes longer was kept waiting, and counts as that
HOPE = 0.7  # the share of right guesses before any is known; it weighs beside what is known
ALL, ONE = 32.0, 4.0  # so many guesses of all rows; and what is known of all rows so many guesses of one
ROW_FADES, ALL_FADES = 0.92, 0.995  # what a guess counts for beside the one after it
GAIN = 1.05  # what a draft must promise at least, to make up for the work around it
LONGEST, NEAR = 4, 12  # ids compared to find the place to copy from; how far from the last place one id is looked for
END = -1  # between what is copied from: no id


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

    def learn(self, drafted: int, right: int) -> None:
        self.steps += 1
        self.tokens += right + 1
        self.drafted += drafted
        self.accepted += right


class Share:
    """The share of guesses that were right; what is long ago counts less.

    >>> share = Share(0.9)
    >>> share.learn(3, 3)
    >>> share.given(0.5, ONE) > 0.5
    True
    """

    def __init__(self, fades: float) -> None:
        self.fades = fades
        self.right = self.seen = 0.0

    def learn(self, drafted: int, right: int) -> None:
        """`right` guesses and, where there were more, one wrong one; those behind it were not judged."""
        judged = min(drafted, right + 1)
        fades = self.fades ** max(1, judged)  # without guesses too, so that what went wrong is tried again
        self.right = self.right * fades + right
        self.seen = self.seen * fades + judged

    def given(self, hope: float, weight: float) -> float:
        return (self.right + weight * hope) / (self.seen + weight)


def worth(share: float, cost: float, most: int) -> int:
    """How many tokens to draft: the k with the most tokens for the time, (1 + a + ... + a^k) / (1 + k cost), where each
    is right with chance a.

    >>> worth(0.7, 0.1, 8), worth(0.7, 0.5, 8), worth(0.7, 0.8, 8), worth(0.99, 0.1, 8)
    (4, 1, 0, 8)
    """
    chance = tokens = 1.0
    best, length = GAIN, 0
    for k in range(1, most + 1):
        chance *= share
        tokens += chance
        if tokens / (1 + k * cost) > best:
            best, length = tokens / (1 + k * cost), k
    return length


class Watch:
    """How long steps take, as a + b positions: the line of least squares, earlier steps counting less.

    A step is noted from `begin`, when the drafts are there, to the first row that `learn`s from it.
    """

    def __init__(self) -> None:
        self.rows = 1
        self._sums = np.zeros(5)  # 1, x, y, x x, x y
        self._begun = self._ended = 0.0
        self._positions = 0

    def begin(self, rows: int) -> None:
        if self._positions:
            x, y = self._positions, self._ended - self._begun
            fixed, each = self._line()
            if fixed is not None:
                y = min(y, LATE * (fixed + each * x))
            self._sums = self._sums * 0.97 + [1, x, y, x * x, x * y]
        self.rows, self._positions, self._begun = max(1, rows), 0, time.perf_counter()

    def learn(self, drafted: int) -> None:
        if not self._positions:
            self._ended = time.perf_counter()
        self._positions += 1 + drafted

    @property
    def seconds(self) -> float | None:
        """A row's part of a step without drafts; None where it is not known yet."""
        fixed, each = self._line()
        return None if fixed is None else fixed / self.rows + each

    @property
    def position(self) -> float:
        """What a drafted token adds, in a row's parts of a step."""
        fixed, each = self._line()
        if fixed is None:
            fixed, each = 1 - POSITION, POSITION
        return each / (fixed / self.rows + each)

    def _line(self) -> tuple[float | None, float]:
        number, x, y, xx, xy = self._sums.tolist()
        spread = number * xx - x * x
        if number < 4 or spread < 0.01 * number * number:
            return None, 0.0
        each = min(max((number * xy - x * y) / spread, 0.02 * y / x), y / x)  # a position costs, but no more than all
        return (y - each * x) / number, each


class Copy:
    """Guesses that the answer goes on as the input, or the answer itself, did from where it is now.

    The place is where the answer's last ids stand, the longer run of them the better, the nearer to the last place the
    better; behind an id that is not there, the next one's.
    """

    def __init__(self, *, most: int = 16, position: float | None = None) -> None:
        """At `most` so many tokens at once. `position` is what one costs in steps of one; None: as measured."""
        check_most(most)
        self.most, self.position = most, position
        self.counts, self.watch = Counts(), Watch()
        self._all = [Share(ALL_FADES) for _ in range(LONGEST + 1)]  # by how long a run was found
        self._rows: WeakKeyDictionary[Line, Copying] = WeakKeyDictionary()

    def propose(self, lines: Sequence[Line]) -> None:
        self.draft(lines)
        self.watch.begin(len(lines))

    def draft(self, lines: Sequence[Line]) -> None:
        cost = self.watch.position if self.position is None else self.position
        for line in lines:
            if line not in self._rows:
                self._rows[line] = Copying(Share(ROW_FADES), Place(line.source))
            row = self._rows[line]
            row.run = row.place.find(line.ids)
            share = row.share.given(self._all[row.run].given(HOPE, ALL), ONE)
            line.draft = row.place.ahead(min(worth(share, cost, self.most), line.room))
            line.drafter = self

    def learn(self, line: Line, drafted: int, right: int) -> None:
        self.counts.learn(drafted, right)
        self.watch.learn(drafted)
        row = self._rows[line]
        row.share.learn(drafted, right)
        self._all[row.run].learn(drafted, right)


@dataclass
class Copying:
    share: Share
    place: "Place"
    run: int = 0


class Place:
    """Where an answer is in what it may copy: its input, and behind that itself.

    >>> place = Place([5, 6, 7, 8, 9, 1])
    >>> for ids in ([6, 7], [6, 7, 40], [6, 7, 40, 9]):
    ...     print(place.find(ids), place.ahead(2))
    2 [8, 9]
    0 [9]
    1 []
    """

    def __init__(self, source: Sequence[int]) -> None:
        self.text = [*(source[:-1] if source and source[-1] == 1 else source), END]
        self._ends: dict[int, list[int]] = {}
        for end, id in enumerate(self.text, start=1):
            self._ends.setdefault(id, []).append(end)
        self._at: int | None = None  # of what comes next
        self._known = 0  # ids of the answer that are part of the text

    def ahead(self, length: int) -> list[int]:
        if self._at is None or length < 1:
            return []
        found = self.text[self._at : self._at + length]
        return found[: found.index(END)] if END in found else found

    def find(self, ids: list[int]) -> int:
        """Move to where an answer that has grown is now; how many of its last ids, up to `LONGEST`, stand before it."""
        if not ids:
            return 0
        expected = self._at
        if expected is not None:
            expected += len(ids) - self._known  # if each id stands for one of the text
        for id in ids[self._known :]:
            self.text.append(id)
            self._ends.setdefault(id, []).append(len(self.text))
        self._known = len(ids)
        runs = [(self._run(ids, end), end) for end in self._ends[ids[-1]] if end < len(self.text)]
        longest = max(runs, default=(0, 0))[0]
        if longest == 1 and expected is not None:
            runs = [(size, end) for size, end in runs if abs(end - expected) <= NEAR]
        near = [end for size, end in runs if size == longest]
        self._at = min(near, key=lambda end: abs(end - (expected or 0))) if near else expected
        return longest if near else 0

    def _run(self, ids: list[int], end: int) -> int:
        size = 1
        while size < min(LONGEST, len(ids), end) and self.text[end - 1 - size] == ids[-1 - size]:
            size += 1
        return size


class Sibling:
    """A small model's continuation, as likely or as drawn as the large one's."""

    def __init__(self, engine: Engine, target: Shape, *, most: int = 8, cost: float | None = None) -> None:
        """`target` is the shape of the model that checks; `cost` of a drafted token in steps of one, None: as measured.

        Raises `UserError` where the vocabularies cannot be one.
        """
        check_most(most)
        if engine.shape.vocab != target.vocab:
            raise UserError(
                f"the draft model has {engine.shape.vocab:,} ids and the model {target.vocab:,}; a draft must share "
                "the model's vocabulary"
            )
        self.engine, self.most = engine, most
        self.counts, self.watch = Counts(), Watch()
        self._cost, self._guessed = cost, step_cost(engine.shape) / step_cost(target)
        self._seconds: float | None = None  # that one token of one row takes to draft
        self._all = Share(ALL_FADES)
        self._rows: WeakKeyDictionary[Line, Drafting] = WeakKeyDictionary()

    @property
    def cost(self) -> float:
        if self._cost is not None:
            return self._cost
        step = self.watch.seconds
        drafting = self._guessed if step is None or self._seconds is None else self._seconds / step
        return self.watch.position + drafting

    def propose(self, lines: Sequence[Line]) -> None:
        self.draft(lines)
        self.watch.begin(len(lines))

    def draft(self, lines: Sequence[Line]) -> None:
        self._start([line for line in lines if line not in self._rows])
        going, cost = [], self.cost
        for line in lines:
            line.drafter = self
            row = self._rows[line]
            row.chance, row.wanted = (
                1.0,
                min(worth(row.share.given(self._all.given(HOPE, ALL), ONE), cost, self.most), line.room),
            )
            if row.wanted:
                row.go_back(self.engine, line.ids)
                going.append(line)
        while going:
            begun = time.perf_counter()
            still = self._guess(going, cost)
            taken = (time.perf_counter() - begun) / len(going)
            self._seconds = taken if self._seconds is None else 0.9 * self._seconds + 0.1 * taken
            going = still

    def _guess(self, lines: Sequence[Line], cost: float) -> list[Line]:
        """One token more for each line; which of them go on."""
        rows = [self._rows[line] for line in lines]
        unread = [[START, *line.ids, *line.draft][len(row.read) :] for line, row in zip(lines, rows, strict=True)]
        draws = []
        for line, ids in zip(lines, unread, strict=True):
            draws += [*[None] * (len(ids) - 1), line.draw(len(line.ids) + len(line.draft))]
        some = draws if any(draw is not None for draw in draws) else None
        chosen = self.engine.step([row.row for row in rows], unread, draws=some)
        at, still = -1, []
        for line, row, ids in zip(lines, rows, unread, strict=True):
            at += len(ids)
            row.read += ids
            line.draft.append(int(chosen.ids[at, 0]))
            if draws[at] is None:
                row.chance *= float(np.exp(chosen.logs[at, 0]))
            sure = row.chance > cost / (1 + cost)  # else one more is likelier to cost than to gain
            if sure and len(line.draft) < row.wanted and not over(line.limits, [*line.ids, *line.draft]):
                still.append(line)
        return still

    def _start(self, lines: Sequence[Line]) -> None:
        if lines:
            memories = Memories(0).encode(self.engine, [line.source for line in lines])
            for line, memory in zip(lines, memories, strict=True):
                self._rows[line] = Drafting(self.engine.start(memory), Share(ROW_FADES))

    def learn(self, line: Line, drafted: int, right: int) -> None:
        self.counts.learn(drafted, right)
        self.watch.learn(drafted)
        self._rows[line].share.learn(drafted, right)
        self._all.learn(drafted, right)


class Drafting:
    """A row of the small model beside a row of the large one."""

    def __init__(self, row: Row, share: Share) -> None:
        self.row, self.share, self.wanted, self.chance = row, share, 0, 1.0
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
    """Copies where that pays, else the small model's guesses."""

    def __init__(self, copy: Copy, sibling: Sibling) -> None:
        self.copy, self.sibling = copy, sibling
        copy.watch = sibling.watch = self.watch = Watch()

    @property
    def counts(self) -> Counts:
        one, other = self.copy.counts, self.sibling.counts
        return Counts(*(getattr(one, name) + getattr(other, name) for name in vars(one)))

    def propose(self, lines: Sequence[Line]) -> None:
        self.copy.draft(lines)
        self.sibling.draft([line for line in lines if not line.draft])
        self.watch.begin(len(lines))


def step_cost(shape: Shape) -> int:
    """A decoder's work for one token of an answer of ordinary length."""
    return decode_step_flops(shape, position=32, input_length=64)


def check_most(most: int) -> None:
    if most < 1:
        raise UserError(f"a draft has at least 1 token, not {most}")
