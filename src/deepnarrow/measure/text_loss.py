"""How well a model predicts text: loss per token, and bits per byte, which models of any vocabulary share.

The text is a corpus under an objective, with noise that only (seed, example) decides, so that two models are asked the
same. Bits per byte are the targets' whole negative log-likelihood, sentinels and EOS included, over the UTF-8 bytes of
the text they stand for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.model.folder import Opened
from deepnarrow.model.likelihood import score
from deepnarrow.text.batches import fixed_batches
from deepnarrow.text.corpus import Corpus
from deepnarrow.text.tokenizer import Tokenizer

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Over all examples together; the interval is a 95 % bootstrap over examples."""

    objective: str
    loss: float  # nats per target token
    bits_per_byte: float
    low: float
    high: float
    examples: int
    target_tokens: int
    target_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def text_loss(
    opened: Opened,
    corpus: Corpus,
    *,
    objective: str = "span",
    options: Mapping[str, Any] | None = None,
    input_length: int = 512,
    target_length: int | None = None,
    limit: int | None = None,
    batch: int = 16,
    seed: int = 0,
) -> TextLoss:
    """Score a corpus, all of it or its first `limit` examples."""
    if opened.tokenizer is not None and opened.tokenizer.fingerprint != corpus.fingerprint:
        raise UserError(
            f"{opened.origin} and the corpus {corpus.folder} have different tokenizers; build the corpus with "
            f"--tokenizer {opened.origin}"
        )
    batches = fixed_batches(
        corpus, batch=batch, input_length=input_length, target_length=target_length, objective=objective,
        options=options, seed=seed, limit=limit,
    )  # fmt: skip
    inputs = [row[row != 0].tolist() for made in batches for row in made.inputs]
    targets = [row[row != 0].tolist() for made in batches for row in made.targets]
    nats = -np.array(score(opened.model, inputs, targets, batch=batch, progress=True))
    tokenizer = corpus.tokenizer()
    sizes = np.array([text_bytes(target, tokenizer) for target in targets], np.float64)
    if not sizes.sum():
        raise UserError(f"the targets of {corpus.folder} under {objective!r} hold no text to count the bytes of")
    low, high = interval(nats, sizes, seed)
    tokens = sum(map(len, targets))
    return TextLoss(
        objective=objective,
        loss=float(nats.sum()) / tokens,
        bits_per_byte=bits(nats.sum(), sizes.sum()),
        low=low,
        high=high,
        examples=len(targets),
        target_tokens=tokens,
        target_bytes=int(sizes.sum()),
    )


def bits(nats: float, size: float) -> float:
    """
    >>> bits(math.log(256), 1)
    8.0
    """
    return float(nats / math.log(2) / size)


def text_bytes(target: Sequence[int], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the words of a target, its sentinels and EOS left out."""
    special = {tokenizer.pad, tokenizer.eos, *map(tokenizer.sentinel, range(tokenizer.sentinels))}
    return len(tokenizer.decode([index for index in target if index not in special]).encode())


def interval(nats: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % of bits per byte over resampled examples."""
    drawn = np.random.default_rng(seed).integers(0, len(nats), (RESAMPLES, len(nats)))
    low, high = np.quantile(nats[drawn].sum(axis=1) / np.maximum(sizes[drawn].sum(axis=1), 1), [0.025, 0.975])
    return bits(low, 1), bits(high, 1)
