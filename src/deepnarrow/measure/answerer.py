"""What answers when a model is judged: PyTorch, or an engine such as the native runtime. To the judge both are one.

In float32 both write the same tokens; log-probabilities differ in their last digits.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import numpy as np

from deepnarrow.model import decode, likelihood
from deepnarrow.model.decode import Output, Search
from deepnarrow.model.folder import Opened
from deepnarrow.progress import progress as show_progress
from deepnarrow.runtime import likelihood as engine_likelihood
from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.options import AnySearch
from deepnarrow.runtime.rows import batches_by_length, check_batch, check_rows
from deepnarrow.runtime.search import PIECE, generate_each
from deepnarrow.shapes import Shape
from deepnarrow.shapes.counts import parameters
from deepnarrow.text.tokenizer import Tokenizer

Rows = Sequence[Sequence[int]]


class Answerer(Protocol):
    """A model by what it can do with rows of token ids, EOS included."""

    tokenizer: Tokenizer | None
    shape: Shape
    origin: str
    runtime: str  # such as "torch float32 cpu" or "native int8 avx2"
    device: str
    parameters: int  # those of a soft prompt included

    def generate(
        self, rows: Rows, search: Search, *, max_tokens: int, batch: int | None, progress: bool
    ) -> list[list[Output]]:
        """Answers to each row, best first; needs a tokenizer, for its EOS."""
        ...

    def rank(self, rows: Rows, choices: Rows, *, batch: int | None, progress: bool) -> np.ndarray:
        """log p(choice | row), float64 [rows, choices]."""
        ...

    def score(self, rows: Rows, targets: Rows, *, batch: int | None, progress: bool) -> list[float]:
        """log p(target | row) of each pair, in nats."""
        ...


class ByTorch:
    """See `Answerer`."""

    def __init__(self, opened: Opened) -> None:
        self.model, self.tokenizer, self.shape, self.origin = opened[:4]
        weights = list(self.model.parameters())
        self.device = str(weights[0].device)
        self.runtime = f"torch {str(weights[0].dtype).removeprefix('torch.')} {self.device}"
        self.parameters = sum(weight.numel() for weight in weights)

    def generate(
        self, rows: Rows, search: Search, *, max_tokens: int, batch: int | None, progress: bool
    ) -> list[list[Output]]:
        assert self.tokenizer is not None
        eos, limit = self.tokenizer.eos, self.tokenizer.size
        return decode.generate(
            self.model, rows, search, max_tokens=max_tokens, batch=batch, eos=eos, vocab_limit=limit, progress=progress
        )

    def rank(self, rows: Rows, choices: Rows, *, batch: int | None, progress: bool) -> np.ndarray:
        return likelihood.rank(self.model, rows, choices, batch=batch, progress=progress)

    def score(self, rows: Rows, targets: Rows, *, batch: int | None, progress: bool) -> list[float]:
        return likelihood.score(self.model, rows, targets, batch=batch, progress=progress)


class ByEngine:
    """See `Answerer`. `prompt` [P, D] is a soft prompt that stands in front of every row."""

    device = "cpu"

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None, origin: str, prompt: np.ndarray | None = None
    ) -> None:
        self.engine, self.tokenizer, self.origin, self.prompt = engine, tokenizer, origin, prompt
        self.shape, self.runtime = engine.shape, engine.name
        self.parameters = parameters(engine.shape).total + (0 if prompt is None else prompt.size)

    def generate(
        self, rows: Rows, search: Search, *, max_tokens: int, batch: int | None, progress: bool
    ) -> list[list[Output]]:
        assert self.tokenizer is not None
        how, eos = cast(AnySearch, search), self.tokenizer.eos  # the searches of `model` are those with one more method
        each = generate_each(
            self.engine, rows, how, max_tokens=max_tokens, batch=batch, eos=eos, prompts=self.fronts(rows)
        )
        found: dict[int, list[Output]] = {}
        with show_progress("generate", len(rows)) if progress else nullcontext() as bar:
            for index, outputs in each:
                found[index] = outputs
                if bar:
                    bar.advance()
        return [found[index] for index in range(len(rows))]

    def rank(self, rows: Rows, choices: Rows, *, batch: int | None, progress: bool) -> np.ndarray:
        def some(places: list[int]) -> np.ndarray:
            chosen = [rows[place] for place in places]
            return engine_likelihood.rank(self.engine, chosen, choices, batch=batch, prompts=self.fronts(chosen))

        return in_batches("rank", rows, batch, some, np.zeros((len(rows), len(choices))), progress, self.shape.vocab)

    def score(self, rows: Rows, targets: Rows, *, batch: int | None, progress: bool) -> list[float]:
        def some(places: list[int]) -> list[float]:
            chosen, asked = [rows[place] for place in places], [targets[place] for place in places]
            return engine_likelihood.score(self.engine, chosen, asked, batch=batch, prompts=self.fronts(chosen))

        return in_batches("score", rows, batch, some, np.zeros(len(rows)), progress, self.shape.vocab).tolist()

    def fronts(self, rows: Rows) -> list[np.ndarray | None] | None:
        return None if self.prompt is None else [self.prompt] * len(rows)


def in_batches(
    label: str,
    rows: Rows,
    batch: int | None,
    function: Callable[[list[int]], np.ndarray | list[float]],
    found: np.ndarray,
    progress: bool,
    vocab: int,
) -> np.ndarray:
    """`function` of the rows' places, some at a time, in their places of `found`, with a bar."""
    check_batch(batch)
    check_rows(rows, vocab, "input")
    with show_progress(label, len(rows)) if progress else nullcontext() as bar:
        for places in batches_by_length(rows, batch, PIECE):
            found[places] = function(places)
            if bar:
                bar.advance(len(places))
    return found


def answerer(of: Opened | Answerer) -> Answerer:
    return ByTorch(of) if isinstance(of, Opened) else of
