"""First weights, as the original Mesh TensorFlow code drew them.

Sources: mesh_tensorflow/transformer/{attention,transformer_layers,transformer,vocab_embeddings}.py. Two rows differ
from the `transformers` library, whose untied output starts with deviation 1 (a first loss near 60 in place of 10) and
whose position table is normal.

    embedding           normal, deviation 1
    query               normal, (d_model * d_kv)**-0.5      the missing 1/sqrt(d_kv) of the logits is here
    key, value          normal, d_model**-0.5
    attention output    normal, (num_heads * d_kv)**-0.5
    wi, wi_0, wi_1      truncated normal, d_model**-0.5
    wo                  truncated normal, d_ff**-0.5
    untied output       truncated normal, d_model**-0.5
    position table      uniform, Glorot over (num_heads, buckets)
    norms               1

A truncated normal is drawn again beyond two deviations and not widened to make up for it, so that its own deviation is
0.88 of the one stated.
"""

import hashlib
import math

import torch
from torch import Tensor

from deepnarrow.model.t5 import T5
from deepnarrow.shapes import Shape


@torch.no_grad()
def initialise(model: T5, seed: int) -> None:
    """Set every weight. Each is drawn from its own stream, keyed by seed and name, so none depends on the others.

    Values do not depend on the device or dtype they end up in, beyond rounding.
    """
    for name, weight in model.named_parameters():
        weight.copy_(drawn(name, weight.shape, model.shape, stream(seed, name)))


def stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def drawn(name: str, size: torch.Size, shape: Shape, generator: torch.Generator) -> Tensor:
    """The first value of the weight called `name` in a `T5`."""
    part = name.split(".")[-2]
    fresh = torch.empty(size)
    if part.endswith("norm"):
        return torch.ones(size)
    if part == "position":
        limit = math.sqrt(6 / (shape.num_heads + shape.relative_buckets))
        return fresh.uniform_(-limit, limit, generator=generator)
    if part in ("wi", "wi_0", "wi_1", "wo") or name == "output.weight":
        deviation = (shape.d_ff if part == "wo" else shape.d_model) ** -0.5
        return torch.nn.init.trunc_normal_(fresh, 0, deviation, -2 * deviation, 2 * deviation, generator=generator)
    deviations = {
        "embedding": 1.0,
        "query": (shape.d_model * shape.d_kv) ** -0.5,
        "key": shape.d_model**-0.5,
        "value": shape.d_model**-0.5,
        "output": shape.inner**-0.5,
    }
    return fresh.normal_(0, deviations[part], generator=generator)
