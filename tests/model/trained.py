"""Small models that know when to end, trained once for all tests of decoding."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import nn

from deepnarrow.model.inference import pad
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse


def pairs(count: int, vocab: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Some ids, and about seven in ten of them: a task with answers of many lengths, and never quite certain."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = rng.integers(3, vocab, rng.integers(1, 12)).tolist()
        yield [*ids, 1], [*(id for id in ids if rng.random() < 0.7), 1]


@cache
def trained(name: str) -> T5:
    """A model that knows when to end. One with random weights nearly never does, or at once."""
    model = T5(parse(name))
    initialise(model, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(80):
        inputs, targets = (pad(rows) for rows in zip(*pairs(32, model.shape.vocab, step), strict=True))
        nn.functional.cross_entropy(model(inputs, targets).flatten(0, 1), targets.flatten(), ignore_index=0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
