"""Models that know when to end, and engines over them: PyTorch, and the native library where it is built."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch

from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.inference import pad
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import format
from deepnarrow.runtime.engine import Engine
from deepnarrow.shapes import parse

SHAPE = "tiny-nl2-dm64-ff128-kv16-v96"


def pairs(count: int, vocab: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Some ids, and about seven in ten of them: a task with answers of many lengths, and never quite certain."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = rng.integers(3, vocab, rng.integers(1, 12)).tolist()
        yield [*ids, 1], [*(id for id in ids if rng.random() < 0.7), 1]


def runs(count: int, vocab: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Ids that follow one another, to be repeated: soon learnt, by small models too, and easily guessed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        first = int(rng.integers(3, vocab - 16))
        ids = list(range(first, first + int(rng.integers(2, 14))))
        yield [*ids, 1], [*ids, 1]


TASKS = {"pairs": pairs, "runs": runs}


@cache
def trained_model(shape: str = SHAPE, task: str = "pairs", steps: int = 80, seed: int = 3) -> T5:
    """One with random weights nearly never ends, or at once."""
    model = T5(parse(shape))
    initialise(model, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        inputs, targets = (pad(rows) for rows in zip(*TASKS[task](32, model.shape.vocab, step), strict=True))
        logits = model(inputs, targets)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def random_weights(shape: str, seed: int = 1) -> T5:
    model = T5(parse(shape))
    initialise(model, seed=seed)
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> Callable[..., T5]:
    return trained_model


@pytest.fixture(scope="session")
def untrained() -> Callable[..., T5]:
    return random_weights


@pytest.fixture(scope="session", params=["torch", "native"])
def engine_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """`engine_of(model, vocab_limit=None)`: the model behind the contract of runtime/engine.py."""
    if request.param == "torch":
        return TorchEngine
    native = pytest.importorskip("deepnarrow.runtime.native", reason="the native runtime is not there")
    return lambda model, *, vocab_limit=None: native_engine(native, model, vocab_limit, tmp_path_factory)


def native_engine(native, model: T5, vocab_limit: int | None, folders: pytest.TempPathFactory) -> Engine:
    if not native.usable():
        pytest.skip("the native library is not built")
    path = folders.mktemp("native") / format.NAME
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    format.write(path, model.shape, "float32", state, vocab_limit=vocab_limit)
    return native.open_engine(path, threads=1)


@pytest.fixture(scope="session")
def texts() -> Callable[..., list[list[int]]]:
    """`texts(model, 24)`: inputs of the task that `trained` models learnt."""
    return lambda model, count=24, seed=9, task="pairs": [
        inputs for inputs, _ in TASKS[task](count, model.shape.vocab, seed)
    ]
