"""What a shape costs: parameters, FLOPs and bytes, from the shape alone.

Counting rules, the same everywhere:

- A FLOP is one multiplication or one addition, so a multiply-add is two. Only matrix products are counted: projections,
  attention scores and mixing, feed-forward, output. Left out: softmax, norms, activations, the gate's product,
  residuals, position bias, embedding look-up. They are few operations, though not always little time.
- The encoder works once per input token, the decoder once per output token; the decoder's keys and values of the
  encoder's output are projected once per input. Parameters times tokens times two is therefore not T5's cost.
- Causal attention is counted as it is computed, with all T x T scores, not the half that survives the mask.
- Bytes are counted in units of one; a megabyte is 10**6 bytes, as on the published model cards.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes.shape import Shape

DTYPES = ("float32", "bfloat16", "int8")
OPTIMIZERS = ("adafactor", "adamw", "adamw_scale", "muon")
HIDDEN = ("query", "key and value", "attention output", "feed-forward input", "feed-forward output")  # Muon's
FACTORED_FROM = (
    128  # Adafactor factors a second moment only if its two largest dimensions reach this (mesh-TF optimize.py)
)


class Tensor(NamedTuple):
    """One kind of weight: `copies` tensors of size `dims`, [out, in] where it is a matrix."""

    part: str  # embedding, encoder, decoder, output
    kind: str  # what the tensor does, e.g. "query"
    dims: tuple[int, ...]
    copies: int

    @property
    def size(self) -> int:
        return prod(self.dims) * self.copies


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Trainable numbers, each real tensor counted once.

    A tied output matrix is the embedding, so `output` is 0. What encoder and decoder share is counted in `encoder`.
    """

    embedding: int
    encoder: int
    decoder: int
    output: int

    @property
    def total(self) -> int:
        return self.embedding + self.encoder + self.decoder + self.output

    @property
    def non_embedding(self) -> int:
        """The two stacks without either vocabulary matrix."""
        return self.encoder + self.decoder


@dataclass(frozen=True, kw_only=True)
class Training:
    """Bytes that training holds between steps. Left out: activations, and low-precision copies made by autocast."""

    weights: int  # float32 master weights
    gradients: int  # float32
    moments: int  # the optimizer's own state, float32

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments


def tensors(shape: Shape) -> list[Tensor]:
    """Every weight of the model, kinds in the order of computing.

    With no decoder layers there is an encoder alone: no decoder, no output matrix.

    >>> [(tensor.kind, tensor.dims, tensor.copies) for tensor in tensors(Shape(
    ...     d_model=8, d_ff=16, num_heads=2, d_kv=4, encoder_layers=3, decoder_layers=0, vocab=10))][:3]
    [('embedding', (10, 8), 1), ('position bias', (32, 2), 1), ('query', (8, 8), 3)]
    """
    found = [Tensor("embedding", "embedding", (shape.vocab, shape.d_model), 1)]
    found += _stack("encoder", shape, shape.encoder_layers)
    if not shape.decoder_layers:
        return found
    if not shape.share_encoder_decoder:
        found += _stack("decoder", shape, shape.decoder_layers)
    # Cross-attention and its norm are the decoder's own even when all else is shared (T5 repository, issue 581).
    found += [*_attention("decoder", shape, shape.decoder_layers), _norm("decoder", shape, shape.decoder_layers)]
    if not shape.tied:
        found.append(Tensor("output", "output", (shape.vocab, shape.d_model), 1))
    return found


def parameters(shape: Shape) -> Parameters:
    """Count the weights.

    >>> from deepnarrow.shapes.shape import parse
    >>> parameters(parse("base-dl2")).total
    128508672
    """
    parts = dict.fromkeys(("embedding", "encoder", "decoder", "output"), 0)
    for tensor in tensors(shape):
        parts[tensor.part] += tensor.size
    return Parameters(**parts)


def _stack(part: str, shape: Shape, layers: int) -> list[Tensor]:
    """Self-attention and feed-forward with their norms; one position bias per stack, in its first layer."""
    return [
        Tensor(part, "position bias", (shape.relative_buckets, shape.num_heads), 1),
        *_attention(part, shape, layers),
        Tensor(part, "feed-forward input", (shape.d_ff, shape.d_model), layers * (2 if shape.gated else 1)),
        Tensor(part, "feed-forward output", (shape.d_model, shape.d_ff), layers),
        _norm(part, shape, 2 * layers + 1),
    ]


def _attention(part: str, shape: Shape, layers: int) -> list[Tensor]:
    return [
        Tensor(part, "query", (shape.inner, shape.d_model), layers),
        Tensor(part, "key and value", (shape.kv_inner, shape.d_model), layers * _kv_tensors(shape)),
        Tensor(part, "attention output", (shape.d_model, shape.inner), layers),
    ]


def _norm(part: str, shape: Shape, copies: int) -> Tensor:
    return Tensor(part, "norm", (shape.d_model,), copies)


def _kv_tensors(shape: Shape) -> int:
    """Keys and values are two tensors, or one that serves as both."""
    return 1 if shape.tie_kv else 2


# FLOPs


def encode_flops(shape: Shape, *, input_length: int, batch: int = 1) -> int:
    """Reading `batch` inputs of `input_length` tokens."""
    _check(input_length=input_length, batch=batch)
    length = input_length
    layer = _project_flops(shape, length) + _attend_flops(shape, length, length) + _feed_forward_flops(shape, length)
    return batch * shape.encoder_layers * layer


def cross_keys_values_flops(shape: Shape, *, input_length: int, batch: int = 1) -> int:
    """Projecting the encoder's output to every decoder layer's keys and values: once per input."""
    _check(input_length=input_length, batch=batch)
    return batch * shape.decoder_layers * _keys_values_flops(shape, input_length)


def forward_flops(shape: Shape, *, input_length: int, target_length: int, batch: int = 1) -> int:
    """One pass with the whole target known (teacher forcing), as in training and in scoring a given target."""
    _check(target_length=target_length)
    encoder = encode_flops(shape, input_length=input_length, batch=batch)
    if not shape.decoder_layers:
        return encoder
    length = target_length
    layer = (
        _project_flops(shape, length)
        + _attend_flops(shape, length, length)
        + _query_output_flops(shape, length)
        + _attend_flops(shape, length, input_length)
        + _feed_forward_flops(shape, length)
    )
    decoder = batch * (shape.decoder_layers * layer + _output_flops(shape, length))
    return encoder + cross_keys_values_flops(shape, input_length=input_length, batch=batch) + decoder


def training_step_flops(shape: Shape, *, input_length: int, target_length: int, batch: int = 1) -> int:
    """Forward and backward. Each product A B has two products of the same size behind it, one per gradient: 3x forward.

    The optimizer's work, a few operations per parameter, is left out; so is anything computed again to save memory.
    """
    return 3 * forward_flops(shape, input_length=input_length, target_length=target_length, batch=batch)


def decode_step_flops(shape: Shape, *, position: int, input_length: int, batch: int = 1) -> int:
    """One token with caches, its self-attention over `position` earlier tokens and itself. `position` starts at 0."""
    _check(position=position, least=0)
    _check(input_length=input_length, batch=batch)
    if not shape.decoder_layers:
        return 0
    layer = (
        _project_flops(shape, 1)
        + _attend_flops(shape, 1, position + 1)
        + _query_output_flops(shape, 1)
        + _attend_flops(shape, 1, input_length)
        + _feed_forward_flops(shape, 1)
    )
    return batch * (shape.decoder_layers * layer + _output_flops(shape, 1))


def generate_flops(shape: Shape, *, input_length: int, target_length: int, batch: int = 1) -> int:
    """Reading the input and writing `target_length` tokens one by one with caches, greedily.

    Beam search costs about its width times the writing; make `batch` the rows that are decoded together.
    """
    _check(target_length=target_length)
    reading = encode_flops(shape, input_length=input_length, batch=batch)
    if not shape.decoder_layers:
        return reading
    reading += cross_keys_values_flops(shape, input_length=input_length, batch=batch)
    first = decode_step_flops(shape, position=0, input_length=input_length, batch=batch)
    last = decode_step_flops(shape, position=target_length - 1, input_length=input_length, batch=batch)
    return reading + (first + last) * target_length // 2  # a step's cost is linear in its position


def _project_flops(shape: Shape, length: int) -> int:
    """Queries, keys, values and the output projection of self-attention."""
    return _query_output_flops(shape, length) + _keys_values_flops(shape, length)


def _query_output_flops(shape: Shape, length: int) -> int:
    return 2 * length * shape.d_model * shape.inner * 2


def _keys_values_flops(shape: Shape, length: int) -> int:
    return 2 * length * shape.d_model * shape.kv_inner * _kv_tensors(shape)


def _attend_flops(shape: Shape, length: int, memory: int) -> int:
    """Scores and mixing. Every query head works, however few heads its keys have: grouping saves bytes, not these."""
    return 2 * length * memory * shape.inner * 2


def _feed_forward_flops(shape: Shape, length: int) -> int:
    return 2 * length * shape.d_model * shape.d_ff * (3 if shape.gated else 2)


def _output_flops(shape: Shape, length: int) -> int:
    return 2 * length * shape.d_model * shape.vocab


# Bytes


def weight_bytes(shape: Shape, dtype: str = "float32") -> int:
    """Bytes of the weights at rest.

    float32    4 per parameter
    bfloat16   2 per parameter
    int8       1 per parameter of the stacks' matrices and one float32 scale per output row, but bfloat16 for the
               feed-forward's output (its inputs have outliers; the same matrix overflows float16) and for embedding
               and output matrix, and float32 for norms and position bias
    """
    _choice("dtype", dtype, DTYPES)
    if dtype != "int8":
        return parameters(shape).total * _width(dtype)
    return sum(_int8_bytes(tensor) for tensor in tensors(shape))


def _int8_bytes(tensor: Tensor) -> int:
    if tensor.kind in ("norm", "position bias"):
        return 4 * tensor.size
    if tensor.kind in ("feed-forward output", "embedding", "output"):
        return 2 * tensor.size
    rows = tensor.dims[0] * tensor.copies
    return tensor.size + 4 * rows


def training_bytes(shape: Shape, optimizer: str, *, factored_from: int = FACTORED_FROM) -> Training:
    """Weights, gradients and the optimizer's state, all float32, which bfloat16 autocast does not change.

    adamw, adamw_scale   two moments per parameter
    adafactor            no first moment; the second is one row and one column per matrix whose sides both reach 128,
                         and whole for smaller tensors (Shazeer and Stern 2018, arXiv:1804.04235; mesh-TF optimize.py)
    muon                 one momentum for the matrices inside the stacks, two moments for all else

    >>> from deepnarrow.shapes.shape import parse
    >>> training_bytes(parse("tiny"), "adamw").total == 16 * parameters(parse("tiny")).total
    True
    """
    _choice("optimizer", optimizer, OPTIMIZERS)
    weights = weight_bytes(shape, "float32")
    if optimizer == "adafactor":
        moments = 4 * sum(_factored(tensor.dims, factored_from) * tensor.copies for tensor in tensors(shape))
    elif optimizer == "muon":
        moments = 4 * sum(tensor.size * (1 if tensor.kind in HIDDEN else 2) for tensor in tensors(shape))
    else:
        moments = 2 * weights
    return Training(weights=weights, gradients=weights, moments=moments)


def _factored(dims: tuple[int, ...], factored_from: int) -> int:
    """Numbers in Adafactor's second moment of one tensor."""
    return sum(dims) if len(dims) == 2 and min(dims) >= factored_from else prod(dims)


def self_cache_bytes(shape: Shape, *, target_length: int, batch: int = 1, dtype: str = "float32") -> int:
    """The decoder's own keys and values for `target_length` tokens; `batch` is rows times beam width."""
    _check(target_length=target_length, batch=batch)
    return _cache_bytes(shape, target_length, batch, dtype)


def cross_cache_bytes(shape: Shape, *, input_length: int, batch: int = 1, dtype: str = "float32") -> int:
    """The decoder's keys and values of the encoder's output."""
    _check(input_length=input_length, batch=batch)
    return _cache_bytes(shape, input_length, batch, dtype)


def _cache_bytes(shape: Shape, length: int, batch: int, dtype: str) -> int:
    _choice("dtype", dtype, DTYPES[:2])
    return batch * length * shape.decoder_layers * shape.kv_inner * _kv_tensors(shape) * _width(dtype)


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _choice(what: str, name: str, options: tuple[str, ...]) -> None:
    if name not in options:
        raise UserError(f"unknown {what} {name!r}; {nearest(name, options)}")


def _check(least: int = 1, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """All of the above for one shape and one job. FLOPs and bytes are of the whole batch."""

    shape: Shape
    input_length: int
    target_length: int
    batch: int
    parameters: Parameters
    encode_flops: int
    cross_keys_values_flops: int
    decode_step_flops: int  # of the last token, the dearest
    generate_flops: int
    forward_flops: int
    training_step_flops: int
    weights: dict[str, int]  # dtype -> bytes
    self_cache: dict[str, int]
    cross_cache: dict[str, int]
    training: dict[str, Training]  # optimizer -> bytes


def cost(shape: Shape, *, input_length: int = 512, target_length: int = 114, batch: int = 1) -> Cost:
    """Count everything. The lengths are T5's in pretraining: 512 tokens in, 114 out.

    >>> from deepnarrow.shapes.shape import parse
    >>> round(cost(parse("small")).forward_flops / 1e9, 1)
    35.4
    """
    _check(input_length=input_length, target_length=target_length, batch=batch)
    inputs, targets = {"input_length": input_length}, {"target_length": target_length}
    return Cost(
        shape=shape,
        input_length=input_length,
        target_length=target_length,
        batch=batch,
        parameters=parameters(shape),
        encode_flops=encode_flops(shape, **inputs, batch=batch),
        cross_keys_values_flops=cross_keys_values_flops(shape, **inputs, batch=batch),
        decode_step_flops=decode_step_flops(shape, position=target_length - 1, **inputs, batch=batch),
        generate_flops=generate_flops(shape, **inputs, **targets, batch=batch),
        forward_flops=forward_flops(shape, **inputs, **targets, batch=batch),
        training_step_flops=training_step_flops(shape, **inputs, **targets, batch=batch),
        weights={dtype: weight_bytes(shape, dtype) for dtype in DTYPES},
        self_cache={dtype: self_cache_bytes(shape, **targets, batch=batch, dtype=dtype) for dtype in DTYPES[:2]},
        cross_cache={dtype: cross_cache_bytes(shape, **inputs, batch=batch, dtype=dtype) for dtype in DTYPES[:2]},
        training={optimizer: training_bytes(shape, optimizer) for optimizer in OPTIMIZERS},
    )
