"""The parity oracle: transformers' T5 with random weights, and ways to set every weight of a model at random."""

from collections.abc import Callable

import pytest
import torch

from deepnarrow.model.t5 import T5
from deepnarrow.shapes import Shape, parse


def _oracle_config(shape: Shape) -> dict:
    """A T5Config for a plain shape, written here by hand so that ours is checked against it, not against itself."""
    return {
        "vocab_size": shape.vocab,
        "d_model": shape.d_model,
        "d_kv": shape.d_kv,
        "d_ff": shape.d_ff,
        "num_layers": shape.encoder_layers,
        "num_decoder_layers": shape.decoder_layers,
        "num_heads": shape.num_heads,
        "relative_attention_num_buckets": shape.relative_buckets,
        "relative_attention_max_distance": shape.relative_distance,
        "feed_forward_proj": shape.feed_forward,
        "tie_word_embeddings": shape.tied,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }


@pytest.fixture
def oracle() -> Callable:
    """`oracle(shape)`: transformers' model of a plain shape in evaluation mode, no weight left at a round value."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    def build(shape: Shape, seed: int = 0):
        torch.manual_seed(seed)
        kind = T5ForConditionalGeneration if shape.decoder_layers else T5EncoderModel
        model = kind(T5Config(**_oracle_config(shape))).eval()
        if shape.decoder_layers and not shape.tied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty(shape.vocab, shape.d_model))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                _scatter(name, weight)
        return model

    return build


@pytest.fixture
def random_model() -> Callable[..., T5]:
    """`random_model("tiny-nl1-...")`: our model in evaluation mode, every weight at random, norms and biases too."""

    def build(shape: str | Shape, seed: int = 0, dropout: float = 0.0) -> T5:
        torch.manual_seed(seed)
        model = T5(parse(shape) if isinstance(shape, str) else shape, dropout=dropout).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                _scatter(name, weight)
        return model

    return build


def _scatter(name: str, weight: torch.Tensor) -> None:
    """Weights of a size at which no layer is negligible: then a swapped pair of tensors shows in the output."""
    if "norm" in name:
        weight.uniform_(0.5, 1.5)
    elif any(part in name for part in ("bias", "position", "embed", "shared")):
        weight.normal_(0, 1.0)
    else:
        weight.normal_(0, weight.shape[-1] ** -0.5)


@pytest.fixture
def ids() -> Callable:
    """`ids([5, 3], 8, 100)`: a batch of random tokens 2..99 of these lengths in rows of 8, 0 behind (or in front)."""

    def make(lengths: list[int], width: int, vocab: int, *, left: bool = False, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.zeros(len(lengths), width, dtype=torch.long)
        for row, length in zip(rows, lengths, strict=True):
            tokens = torch.randint(2, vocab, (length,), generator=generator)
            row[width - length :] = tokens if left else row[width - length :]
            row[:length] = row[:length] if left else tokens
        return rows

    return make
