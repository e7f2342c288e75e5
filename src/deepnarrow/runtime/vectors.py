"""Vectors of texts over an engine: the mean of the encoder's output over each input's tokens, as model/encoding.py.

Shape key   N inputs   D d_model
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from deepnarrow.progress import progress as show_progress
from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.rows import batches_by_length, check_rows
from deepnarrow.runtime.search import PIECE, without_padding

PLAIN_TOKENS = 512  # longest text for an encoder that nothing says otherwise of
SHORTEST = 1e-12  # a length below it is not divided by


def embed(
    engine: Engine,
    inputs: Sequence[Sequence[int]],
    *,
    normalise: bool = False,
    tokens: int = PIECE,
    progress: bool = False,
) -> np.ndarray:
    """A vector for each input, float32 [N, D], in the inputs' order; with `normalise` of length 1.

    Inputs are token ids, EOS included; 0 is padding and not read. Those of like length go together, `tokens` at a time,
    so that the threads have equal work. Raises `UserError` for an input without tokens or with an id outside the
    vocabulary.
    """
    check_rows(inputs, engine.shape.vocab, "text")
    vectors_ND = np.zeros((len(inputs), engine.shape.d_model), np.float32)
    with show_progress("embed", len(inputs)) if progress else nullcontext() as bar:
        for places in batches_by_length(inputs, None, tokens):
            vectors_ND[places] = engine.embed([without_padding(inputs[place]) for place in places])
            if bar:
                bar.advance(len(places))
    return of_length_one(vectors_ND) if normalise else vectors_ND


def of_length_one(vectors_ND: np.ndarray) -> np.ndarray:
    """
    >>> of_length_one(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), SHORTEST)
