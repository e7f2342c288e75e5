"""Generation over an engine: token ids in, answers out. Ways to search: `Greedy`, `Beam`, `Sample` (options.py).

The same meaning as model/decode.py and the same answers: greedy ids, beams, samples of a seed. Inputs are encoded once,
a few at a time; as soon as one is done its place goes to the next. An answer does not depend on the other inputs, but
for the last digits of floating-point sums.

`grow` and `advance` are the parts of it for whoever schedules inputs himself, as a server does.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.beams import Beams
from deepnarrow.runtime.engine import Engine, Memory
from deepnarrow.runtime.limits import Limits, Output, Stop, Tell, cut, until
from deepnarrow.runtime.line import Ask, Growing, Line, Lines, start_lines
from deepnarrow.runtime.masks import Constraint
from deepnarrow.runtime.memories import Memories
from deepnarrow.runtime.options import AnySearch, Beam, Greedy, Sample
from deepnarrow.runtime.rows import LEAST, PAD, batches_by_length, check_batch, check_rows, counted

__all__ = [
    "AnySearch",
    "Ask",
    "Beam",
    "Drafter",
    "Greedy",
    "Growing",
    "Limits",
    "Output",
    "Sample",
    "Stop",
    "advance",
    "cut",
    "generate",
    "generate_each",
    "grow",
    "until",
]

BUDGET = 8192  # input tokens that are answered at once: a decoder is quickest where many rows share its weights
PIECE = 2048  # input tokens encoded at once, whose activations stay in a processor's cache
REPEATS = 64 * 2**20  # bytes of encoded inputs kept within one call that repeats some


class Drafter(Protocol):
    """Guesses at what comes next (speculative.py)."""

    def propose(self, lines: Sequence[Line]) -> None:
        """Fill the `draft` of each line."""
        ...


def generate(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    search: AnySearch,
    *,
    max_tokens: int = 64,
    min_tokens: int = 0,
    batch: int | None = None,
    eos: int = 1,
    stop: Sequence[Stop] = (),
    on_token: Tell | None = None,
    prompts: Sequence[np.ndarray | None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    drafter: Drafter | None = None,
    memories: Memories | None = None,
    scores: bool = True,
) -> list[list[Output]]:
    """Answers for each input, in the inputs' order; of one input the best first, one with `Greedy`.

    inputs       token ids as the encoder reads them, EOS included; 0 is padding and not read
    max_tokens   the most tokens of an answer, its EOS counted; it ends there if it has not ended before
    min_tokens   the fewest tokens before the EOS
    batch        inputs at once; None: as many as is quick
    stop         further ends: ids, runs of ids, or functions of the ids so far (`until` makes one from texts)
    on_token     called as `on_token(index of the input, id)` when an id is chosen, EOS left out; not with `Beam`
    prompts      a soft prompt [P, D] for each input, of any length, or None for an input without one
    constraints  what each answer must be (constrain.py), or None for an input that may be answered freely
    drafter      drafts, to be checked several tokens at once (speculative.py): the same answers sooner; not with `Beam`
    memories     encoded inputs kept from call to call
    scores       whether the answers' scores are wanted; without, they may be NaN, and `Greedy` is quicker

    Ids from the engine's `vocab_limit` on are never generated. Raises `UserError` for an input without tokens, for an
    id outside the model's vocabulary, for impossible limits.
    """
    each = generate_each(
        engine,
        inputs,
        search,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        batch=batch,
        eos=eos,
        stop=stop,
        on_token=on_token,
        prompts=prompts,
        constraints=constraints,
        drafter=drafter,
        memories=memories,
        scores=scores,
    )
    found = dict(each)
    return [found[index] for index in range(len(inputs))]


def generate_each(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    search: AnySearch,
    *,
    max_tokens: int = 64,
    min_tokens: int = 0,
    batch: int | None = None,
    eos: int = 1,
    stop: Sequence[Stop] = (),
    on_token: Tell | None = None,
    prompts: Sequence[np.ndarray | None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    drafter: Drafter | None = None,
    memories: Memories | None = None,
    scores: bool = True,
) -> Iterator[tuple[int, list[Output]]]:
    """As `generate`, but each input's index and answers as soon as they are done, so in another order.

    The arguments are checked at once, before the first answer is asked for.
    """
    check_batch(batch)
    check_rows(inputs, engine.shape.vocab, "input")
    for given, name in ((prompts, "prompt"), (constraints, "constraint")):
        if given is not None and len(given) != len(inputs):
            raise UserError(f"there must be one {name} for each input, but there are {len(given)} for {len(inputs)}")
    check_prompts(prompts, engine.shape.d_model)
    check_search(search, on_token, drafter)
    limits = Limits(max_tokens, min_tokens, eos, tuple(stop), engine.vocab_limit)
    bare = [without_padding(row) for row in inputs]
    if memories is None and prompts is None and len(set(map(tuple, bare))) < len(bare):
        memories = Memories(REPEATS)
    return _each(engine, bare, search, limits, batch, on_token, prompts, constraints, drafter, memories, scores)


def _each(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    search: AnySearch,
    limits: Limits,
    batch: int | None,
    tell: Tell | None,
    prompts: Sequence[np.ndarray | None] | None,
    constraints: Sequence[Constraint | None] | None,
    drafter: Drafter | None,
    memories: Memories | None,
    scores: bool,
) -> Iterator[tuple[int, list[Output]]]:
    budget = max(LEAST, BUDGET // width_of(search))
    waiting = deque(index for rows in batches_by_length(inputs, batch, budget) for index in rows)
    ready: deque[tuple[int, Memory]] = deque()
    running: dict[int, Growing] = {}
    held = 0  # tokens of the inputs that run
    while waiting or ready or running:
        while waiting or ready:
            index = ready[0][0] if ready else waiting[0]
            full = len(running) == batch if batch else held + counted(inputs[index]) > budget
            if running and full:
                break
            if not ready:
                ready.extend(_encode_some(engine, inputs, waiting, batch, prompts, memories))
            index, memory = ready.popleft()
            held += counted(inputs[index])
            running[index] = grow(
                engine,
                memory,
                search,
                limits,
                index=index,
                source=inputs[index],
                constraint=None if constraints is None else constraints[index],
                tell=tell,
            )
        advance(engine, list(running.values()), drafter, scores=scores)
        for index in [index for index, growing in running.items() if growing.done]:
            held -= counted(inputs[index])
            yield index, running.pop(index).outputs()


def _encode_some(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    waiting: deque[int],
    batch: int | None,
    prompts: Sequence[np.ndarray | None] | None,
    memories: Memories | None,
) -> list[tuple[int, Memory]]:
    """Takes the next inputs out of `waiting` and encodes them: one at least, else `PIECE` tokens at most."""
    taken = [waiting.popleft()]
    tokens = counted(inputs[taken[0]])
    while waiting and (batch is None or len(taken) < batch):
        tokens += counted(inputs[waiting[0]])
        if tokens > PIECE:
            break
        taken.append(waiting.popleft())
    rows = [inputs[index] for index in taken]
    fronts = None if prompts is None else [prompts[index] for index in taken]
    made = engine.encode(rows, fronts) if memories is None else memories.encode(engine, rows, fronts)
    return list(zip(taken, made, strict=True))


def grow(
    engine: Engine,
    memory: Memory,
    search: AnySearch,
    limits: Limits,
    *,
    index: int = 0,
    source: Sequence[int] = (),
    constraint: Constraint | None = None,
    tell: Tell | None = None,
) -> Growing:
    """Begin the answers to one encoded input. `index` seeds its samples and names it to `tell`; `source` are its ids.

    Drop it at any time to give up: its rows go with it.
    """
    if isinstance(search, Beam):
        check_search(search, tell, None)
        return Beams(engine, memory, search, limits, constraint)
    return start_lines(engine, memory, search, limits, index=index, source=source, constraint=constraint, tell=tell)


def advance(engine: Engine, growing: Sequence[Growing], drafter: Drafter | None = None, *, scores: bool = True) -> None:
    """One step of the decoder for all of these, none of which may be done; `scores` as in `generate`."""
    if drafter:
        drafter.propose([line for one in growing if isinstance(one, Lines) for line in one.lines if not line.done])
    asked = [one.asks() for one in growing]
    asks = [ask for some in asked for ask in some]
    masks = [mask for ask in asks for mask in ask.masks]
    draws = [draw for ask in asks for draw in ask.draws]
    top = max(ask.top for ask in asks)
    chosen = engine.step(
        [ask.row for ask in asks],
        [ask.tokens for ask in asks],
        top=top,
        masks=masks if any(mask is not None for mask in masks) else None,
        draws=draws if any(draw is not None for draw in draws) else None,
        logs=scores or top > 1,  # a beam goes by them
    )
    at = 0
    for one, some in zip(growing, asked, strict=True):
        end = at + sum(len(ask.tokens) for ask in some)
        one.take(chosen.ids[at:end], chosen.logs[at:end])
        at = end


def width_of(search: AnySearch) -> int:
    """Rows that one input takes."""
    return search.width if isinstance(search, Beam) else search.num_return if isinstance(search, Sample) else 1


def without_padding(row: Sequence[int]) -> list[int]:
    """
    >>> without_padding([5, 1, 0, 0])
    [5, 1]
    """
    ids = [int(id) for id in row]
    while ids[-1] == PAD:
        ids.pop()
    start = next(place for place, id in enumerate(ids) if id != PAD)
    return ids[start:]


def check_search(search: AnySearch, tell: Tell | None, drafter: Drafter | None) -> None:
    if isinstance(search, Beam):
        if tell:
            raise UserError("beam search knows its tokens only at the end; tokens can be told one by one without it")
        if drafter:
            raise UserError("drafts are checked against one choice for each token, so they do not go with a beam")
    elif isinstance(search, Sample) and tell and search.num_return > 1:
        raise UserError(f"tokens can be told one by one for one answer, not for {search.num_return} at once")


def check_prompts(prompts: Sequence[np.ndarray | None] | None, width: int) -> None:
    for number, prompt in enumerate(prompts or (), start=1):
        if prompt is not None and (prompt.ndim != 2 or prompt.shape[1] != width):
            raise UserError(f"prompt {number} is {list(prompt.shape)}, but the model reads vectors of {width}")
