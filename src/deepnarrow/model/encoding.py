"""Texts through an encoder, with a head or without: vectors, probabilities of labels, tags of words.

Texts of like length go through together, so many tokens at a time; results come in the order of the texts, and depend
on what stood in one batch only by rounding.

Shape key   N texts   C labels   D d_model
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepnarrow.errors import UserError
from deepnarrow.model.folder import Opened
from deepnarrow.model.heads import Headed, OpenedHead, mean_of, plain
from deepnarrow.model.inference import PIECE, batches_by_length, check_rows, inference, pad
from deepnarrow.model.t5 import PAD, T5
from deepnarrow.progress import progress as show_progress
from deepnarrow.runtime.vectors import PLAIN_TOKENS
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.text.words import rows_of_words

TOKENS = {"cpu": PIECE, "cuda": 16384}  # of one batch, padding included; on a CPU what stays in its cache


class Tagged(NamedTuple):
    """A sentence's tags, and how likely the head finds them all together, in nats."""

    tags: list[str]
    log_probability: float


def embed(
    opened: Opened | OpenedHead,
    texts: Sequence[str],
    *,
    normalise: bool | None = None,
    input_tokens: int | None = None,
    tokens: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """A vector for each text, float32 [N, D]: the mean of the encoder's output over its tokens, EOS among them.

    Any T5 will do: of a plain one the encoder is used, of one with a head the encoder below the head. `normalise` makes
    the vectors 1 long; None leaves it to the head, and a plain encoder's as they are. Texts are cut to `input_tokens`,
    None: what the head was trained with, else 512.
    """
    head = opened.head if isinstance(opened, OpenedHead) else None
    unit = (head.normalise if head else False) if normalise is None else normalise
    most = input_tokens or (head.input_tokens if head else PLAIN_TOKENS)
    rows = encoded(texts, tokenizer_of(opened), most)
    encoder = opened.model.body if isinstance(opened.model, Headed) else opened.model
    plain(encoder, opened.origin)
    vectors = np.zeros((len(texts), encoder.shape.d_model), np.float32)

    def vectors_of(ids_BL: Tensor) -> Tensor:
        mean_BD = mean_of(encoder.encode(ids_BL), ids_BL != PAD)
        return F.normalize(mean_BD, dim=-1) if unit else mean_BD

    for places, found in through(encoder, rows, vectors_of, tokens=tokens, progress="embed" if progress else None):
        vectors[places] = found
    return vectors


def probabilities(
    opened: OpenedHead, texts: Sequence[str], *, tokens: int | None = None, progress: bool = False
) -> np.ndarray:
    """How likely the head finds each label of each text: float64 [N, C], rows sum to 1."""
    require(opened, "classify")
    rows = encoded(texts, opened.tokenizer, opened.head.input_tokens)
    found = np.zeros((len(texts), len(opened.head.labels)))
    label = "classify" if progress else None
    for places, logits in through(opened.model, rows, opened.model, tokens=tokens, progress=label):
        found[places] = np.exp(log_softmax(logits))
    return found


def tags(
    opened: OpenedHead, sentences: Sequence[Sequence[str]], *, tokens: int | None = None, progress: bool = False
) -> list[Tagged]:
    """The likeliest tag of each word of each sentence; a long sentence is read in parts."""
    require(opened, "tag")
    rows = rows_of_words(sentences, opened.tokenizer, opened.head.input_tokens)
    found = [[""] * len(words) for words in sentences]
    nats = np.zeros(len(sentences))
    label = "tag" if progress else None
    ids = [row.ids for row in rows]
    for places, logits in through(opened.model, ids, opened.model, tokens=tokens, progress=label):
        for place, logits_LC in zip(places, logits, strict=True):
            row = rows[place]
            chosen = log_softmax(logits_LC[row.firsts])
            nats[row.sentence] += chosen.max(-1).sum()
            for number, best in enumerate(chosen.argmax(-1)):
                found[row.sentence][row.word + number] = opened.head.labels[best]
    return [Tagged(words, float(sum_)) for words, sum_ in zip(found, nats, strict=True)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, along the last axis.

    >>> np.exp(log_softmax(np.array([[0.0, 0.0]]))).tolist()
    [[0.5, 0.5]]
    """
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def through(
    model: torch.nn.Module,
    rows: Sequence[Sequence[int]],
    function: Callable[[Tensor], Tensor],
    *,
    tokens: int | None,
    progress: str | None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """`function` of padded batches of rows, without gradient or dropout: which rows, and what came out, as float32."""
    vocab = cast(T5 | Headed, model).shape.vocab
    check_rows(rows, vocab, "text")
    with show_progress(progress, len(rows)) if progress else nullcontext() as bar:
        device = next(model.parameters()).device
        for places in batches_by_length(rows, None, tokens or TOKENS.get(device.type, TOKENS["cpu"])):
            with inference(model):
                found = function(pad([rows[place] for place in places], device)).float().cpu().numpy()
            yield places, found
            if bar:
                bar.advance(len(places))


def encoded(texts: Sequence[str], tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """Token ids with EOS, at most `most` of them with it."""
    return [[*ids[: most - 1], tokenizer.eos] for ids in tokenizer.encode_batch(texts)]


def tokenizer_of(opened: Opened | OpenedHead) -> Tokenizer:
    if opened.tokenizer is None:
        raise UserError(f"{opened.origin} has no tokenizer, so text cannot be turned into ids; add its tokenizer.json")
    return opened.tokenizer


def require(opened: OpenedHead, kind: str) -> None:
    if opened.head.kind != kind:
        raise UserError(f"{opened.origin} has a head that was trained to {opened.head.kind}, not to {kind}")
