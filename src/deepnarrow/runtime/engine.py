"""What encodes and decodes step by step: the contract that the native library and PyTorch both fulfil.

Shape key   N positions   V vocabulary   D d_model   P prompt length   T most ids asked for   W ceil(V / 32)

An input is encoded once, into a `Memory`. A `Row` is a sequence that grows over one memory; any number of rows, of any
lengths and memories, may be stepped together, and another choice of rows at every step: rows join and leave at will.
`native.open_engine` opens a converted file, `model.engine.TorchEngine` wraps a T5 on any device.

    engine = open_engine("tiny.native/model.dn")
    [memory] = engine.encode([[37, 81, 1]])
    row = engine.start(memory)
    chosen = engine.step([row], [[0]])      # the decoder's first token is the padding id
    chosen.ids[0, 0], chosen.logs[0, 0]     # the likeliest first token and its log-probability
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from deepnarrow.shapes import Shape

START = 0  # what the decoder reads first


class Draw(NamedTuple):
    """How one position's token is drawn, with the meaning of `model.sample`: softmax(logits / temperature), cut to the
    `top_k` likeliest ids (0: all), then to the nucleus `top_p`; then the id at which the running sum of the rest, in
    the order of the ids, passes `uniform` (0 <= uniform < 1) times its whole. A temperature under 1e-6 is greedy.
    """

    uniform: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Chosen(NamedTuple):
    """What a step found, a line for each position.

    ids   [N, T] int32: with a `Draw` the drawn id first; the rest, or all, the likeliest other ids that are allowed,
          best first, of equal ones the smaller id first; -1 where fewer than T are allowed
    logs  [N, T] float32: their natural log-probabilities among the whole vocabulary, whatever is allowed; -inf at -1
    """

    ids: np.ndarray
    logs: np.ndarray


class Memory(Protocol):
    """One encoded input: what every decoder layer looks at. Freed with its last reference."""

    @property
    def length(self) -> int:
        """Tokens, those of a prompt included."""
        ...

    @property
    def bytes(self) -> int: ...


class Row(Protocol):
    """One sequence over a memory. Freed with its last reference."""

    @property
    def length(self) -> int:
        """Tokens read so far, the first padding id included."""
        ...

    @property
    def bytes(self) -> int: ...


class Encoding(Protocol):
    """Inputs on their way through the encoder, so that others may step in between."""

    def advance(self, layers: int) -> bool:
        """Run so many more layers; whether all are done. Then `memories` may be asked for."""
        ...

    def memories(self) -> Sequence[Memory]: ...

    def hidden(self) -> list[np.ndarray]:
        """The encoder's output of each input, [length, D] float32."""
        ...


class Engine(Protocol):
    """Not for several threads at once: calls wait for one another."""

    shape: Shape
    vocab_limit: int  # ids from here on are never chosen; their logits still count in log-probabilities
    threads: int
    name: str  # such as "native int8 avx2" or "torch bfloat16 cuda"

    def begin(self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None) -> Encoding:
        """Start to encode inputs of any lengths, without padding, EOS included, each behind its soft prompt [P, D].

        Raises `UserError` for an input without tokens or with an id outside the vocabulary.
        """
        ...

    def encode(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> Sequence[Memory]:
        """All of it at once."""
        ...

    def embed(self, inputs: Sequence[Sequence[int]]) -> np.ndarray:
        """The mean of the encoder's output over each input's tokens, [number, D] float32."""
        ...

    def start(self, memory: Memory) -> Row:
        """An empty sequence over a memory, which it keeps alive."""
        ...

    def fork(self, row: Row) -> Row:
        """A second sequence that begins as this one did; what both hold is shared."""
        ...

    def cut(self, row: Row, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def step(
        self,
        rows: Sequence[Row],
        tokens: Sequence[Sequence[int]],
        *,
        top: int = 1,
        masks: Sequence[np.ndarray | None] | None = None,
        draws: Sequence[Draw | None] | None = None,
        logs: bool = True,
    ) -> Chosen:
        """Append each row's tokens, one or more, to it and choose what may follow each.

        Positions are counted through the rows: with two tokens for the first row and one for the second, N = 3.
        `masks` and `draws` have one entry for each position. A mask is uint32 [W]: bit `id % 32` of word `id // 32` is
        1 where that id is allowed; None allows all. A row must not stand twice among `rows`. Without `logs` the
        log-probabilities may be NaN, and the ids may come sooner.
        """
        ...

    def logits(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """As `step`, but all logits, [N, V] float32, nothing chosen."""
        ...

    def close(self) -> None:
        """Give everything back; memories and rows must not be used afterwards."""
        ...
