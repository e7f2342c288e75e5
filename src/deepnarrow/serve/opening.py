"""A model as the server runs it: which runtime, its tokenizer, its soft prompts."""

import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import Engine
from deepnarrow.serve.scheduler import Room
from deepnarrow.text.vocabulary import Tokenizer

PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8"}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a worker is to run.

    model      a run, a folder, a hub name
    prompts    soft prompts over it by the names they are served under
    runtime    "native", "torch", or "auto": native on a CPU where there is a library
    """

    model: str
    prompts: dict[str, str] = field(default_factory=dict)
    runtime: str = "auto"
    device: str = "auto"
    precision: str = "float32"
    threads: int | None = None
    kernels: str | None = None
    room: Room = field(default_factory=Room)


class Served(NamedTuple):
    engine: Engine
    tokenizer: Tokenizer | None
    prompts: dict[str, np.ndarray]


def open_served(spec: Spec) -> Served:
    return open_torch(spec)


def open_torch(spec: Spec) -> Served:
    import torch

    from deepnarrow.model.engine import TorchEngine
    from deepnarrow.model.folder import open_model, open_prompts, resolve_device, resolve_dtype

    if spec.precision == "int8":
        raise UserError("PyTorch serves float32 and bfloat16; int8 is of the native runtime")
    if spec.threads:
        torch.set_num_threads(spec.threads)
    dtype, device = resolve_dtype(spec.precision), resolve_device(spec.device)
    opened = open_model(spec.model)  # prompts know their base by its weights as they were
    names = list(spec.prompts)
    vectors = open_prompts([spec.prompts[name] for name in names], opened) if names else []
    model = opened.model.to(device, dtype)
    tokenizer = opened.tokenizer
    engine: Any = TorchEngine(model, vocab_limit=tokenizer.size if tokenizer else None)
    prompts = {name: tensor.float().cpu().numpy() for name, tensor in zip(names, vectors, strict=True)}
    return Served(engine, tokenizer, prompts)


def say(line: str) -> None:
    print(f"deepnarrow: {line}", file=sys.stderr, flush=True)
