"""How likely given targets are, over an engine: log-likelihoods, and choosing from a closed set by them.

As model/likelihood.py, with the same numbers. Each input is encoded once, and what several choices have in common is
read once.

Shape key   N inputs   C choices   T tokens of a target   V vocabulary
"""

from collections.abc import Iterator, Sequence

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import START, Engine, Memory, Row
from deepnarrow.runtime.masks import only
from deepnarrow.runtime.memories import Memories
from deepnarrow.runtime.rows import batches_by_length, check_batch, check_rows
from deepnarrow.runtime.search import PIECE, without_padding
from deepnarrow.runtime.trie import Trie

POSITIONS = 1024  # of one step: their masks are 4 MiB for 32,128 ids
ROWS = 64  # of one step of `rank`
FEW = 64  # ids asked for by a mask; for more, whole rows of logits


def score(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    batch: int | None = None,
    normalise: bool = False,
    prompts: Sequence[np.ndarray | None] | None = None,
    memories: Memories | None = None,
) -> list[float]:
    """log p(target | input) of each pair, in nats, summed over the target's tokens as given (so with its EOS).

    `normalise` divides by the number of tokens. `prompts` are as in `search.generate`. Raises `UserError` for unequal
    numbers, for rows without tokens, for ids outside the vocabulary.
    """
    check_batch(batch)
    if len(inputs) != len(targets):
        raise UserError(f"each input needs one target, but there are {len(inputs)} inputs and {len(targets)} targets")
    check_rows(inputs, engine.shape.vocab, "input")
    check_rows(targets, engine.shape.vocab, "target")
    found = np.zeros(len(inputs))
    kept = Memories(0) if memories is None else memories
    both = [[*source, *target] for source, target in zip(inputs, targets, strict=True)]
    for rows in batches_by_length(both, batch, PIECE):
        fronts = None if prompts is None else [prompts[row] for row in rows]
        made = kept.encode(engine, [without_padding(inputs[row]) for row in rows], fronts)
        for some in split(rows, made, targets):
            follow = [[{id} for id in targets[row]] for row, _ in some]
            starts = [engine.start(memory) for _, memory in some]
            read = [[START, *targets[row][:-1]] for row, _ in some]
            logs = log_probabilities(engine, starts, read, follow)
            at = 0
            for row, _ in some:
                found[row] = sum(logs[at + place][id] for place, id in enumerate(targets[row]))
                at += len(targets[row])
    return (found / [len(target) for target in targets] if normalise else found).tolist()


def rank(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    *,
    batch: int | None = None,
    normalise: bool = False,
    prompts: Sequence[np.ndarray | None] | None = None,
    memories: Memories | None = None,
) -> np.ndarray:
    """log p(choice | input) of every choice for every input, float64 [N, C].

    `normalise` divides by the choice's number of tokens, which takes away most of the advantage of short choices.
    `prompts` are as in `search.generate`.
    """
    check_batch(batch)
    if not choices:
        raise UserError("there is nothing to choose from: give at least one choice")
    check_rows(inputs, engine.shape.vocab, "input")
    check_rows(choices, engine.shape.vocab, "choice")
    found_NC = np.zeros((len(inputs), len(choices)))
    kept, trie = Memories(0) if memories is None else memories, Trie.of(choices)
    for rows in batches_by_length(inputs, batch, PIECE):
        fronts = None if prompts is None else [prompts[row] for row in rows]
        made = kept.encode(engine, [without_padding(inputs[row]) for row in rows], fronts)
        _rank(engine, trie, dict(zip(rows, made, strict=True)), found_NC)
    return found_NC / [len(choice) for choice in choices] if normalise else found_NC


def probabilities(logs_NC: np.ndarray) -> np.ndarray:
    """Each choice's probability given that it is one of them, [N, C]: the sequences' own, renormalised.

    >>> probabilities(np.log([[0.03, 0.01]])).round(3).tolist()
    [[0.75, 0.25]]
    """
    share_NC = np.exp(logs_NC - logs_NC.max(-1, keepdims=True))
    return share_NC / share_NC.sum(-1, keepdims=True)


class Branch:
    """A row that has read the way to a node but for `unread`, which the next step reads."""

    def __init__(self, input: int, row: Row, node: Trie, unread: list[int], log: float) -> None:
        self.input, self.row, self.node, self.unread, self.log = input, row, node, unread, log
        self.nodes = [node]  # one behind each unread token: as long as there is one way on, it is read in one go
        while len(self.nodes[-1].next) == 1 and not self.nodes[-1].ends:
            [(id, below)] = self.nodes[-1].next.items()
            if not below.next:
                break  # the last token need not be read
            self.unread = [*self.unread, id]
            self.nodes.append(below)


def _rank(engine: Engine, trie: Trie, memories: dict[int, Memory], found_NC: np.ndarray) -> None:
    """Walk the trie once for each input, some branches of any inputs at a time."""
    waiting = [Branch(row, engine.start(memory), trie, [START], 0.0) for row, memory in memories.items()]
    while waiting:
        some, waiting = waiting[-ROWS:], waiting[:-ROWS]  # the deepest first: few rows wait
        follow = [[set(node.next) for node in branch.nodes] for branch in some]
        logs = log_probabilities(engine, [branch.row for branch in some], [branch.unread for branch in some], follow)
        at = 0
        for branch in some:
            log = branch.log + sum(logs[at + place][id] for place, id in enumerate(branch.unread[1:]))
            behind = logs[at + len(branch.unread) - 1]
            at += len(branch.unread)
            row: Row | None = None
            for id, below in branch.nodes[-1].next.items():
                total = log + behind[id]
                found_NC[branch.input, below.ends] = total
                if below.next:
                    row = branch.row if row is None else engine.fork(branch.row)
                    waiting.append(Branch(branch.input, row, below, [id], total))


def log_probabilities(
    engine: Engine, rows: Sequence[Row], tokens: Sequence[Sequence[int]], follow: Sequence[Sequence[set[int]]]
) -> list[dict[int, float]]:
    """Read tokens; behind each of them, the log-probability of each id of which `follow` asks there."""
    asked = [ids for some in follow for ids in some]
    if max(len(ids) for ids in asked) > FEW or max(max(ids) for ids in asked) >= engine.vocab_limit:
        logits_NV = engine.logits(rows, tokens)
        top_N1 = logits_NV.max(-1, keepdims=True)
        total_N = np.log(np.exp(logits_NV - top_N1).sum(-1, dtype=np.float64)) + top_N1[:, 0]
        return [
            {id: float(logits_V[id] - total) for id in ids}
            for ids, logits_V, total in zip(asked, logits_NV, total_N, strict=True)
        ]
    masks = [only(ids, engine.shape.vocab) for ids in asked]
    chosen = engine.step(rows, tokens, top=max(len(ids) for ids in asked), masks=masks)
    return [
        dict(zip(ids, logs, strict=True)) for ids, logs in zip(chosen.ids.tolist(), chosen.logs.tolist(), strict=True)
    ]


def split(
    rows: Sequence[int], made: Sequence[Memory], targets: Sequence[Sequence[int]]
) -> Iterator[list[tuple[int, Memory]]]:
    """Rows with their memories, at most `POSITIONS` tokens of targets together, at least one row."""
    some: list[tuple[int, Memory]] = []
    held = 0
    for row, memory in zip(rows, made, strict=True):
        held += len(targets[row])
        if some and held > POSITIONS:
            yield some
            some, held = [], len(targets[row])
        some.append((row, memory))
    if some:
        yield some
