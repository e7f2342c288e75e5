"""A model as the server runs it: which runtime, its tokenizer, its soft prompts."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import Engine
from deepnarrow.serve.scheduler import Room
from deepnarrow.text.vocabulary import Tokenizer


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
    own: np.ndarray | None = None  # a soft prompt in front of every input, where the model is one


def open_served(spec: Spec) -> Served:
    """By the native runtime on a CPU, where its library is there and can keep the model; else by PyTorch."""
    if spec.runtime == "torch":
        return open_torch(spec)
    must = spec.runtime == "native" or spec.precision == "int8"
    if must and spec.device not in ("auto", "cpu"):
        raise UserError(f"the native runtime, and with it int8, is of the CPU, not of {spec.device}")
    if not must and spec.device != "cpu" and (spec.device != "auto" or has_cuda()):
        return open_torch(spec)

    from deepnarrow.runtime.native import NotBuiltError, library

    try:
        library()
    except NotBuiltError as why:
        if must:
            raise UserError(f"the native runtime is not there: {why}") from None
        say(f"serving {spec.model} with PyTorch, since the native runtime is not there: {why}")
        return open_torch(spec)
    try:
        return open_native(spec)
    except OSError as error:
        if must:
            raise
        say(f"serving {spec.model} with PyTorch, since it cannot be kept converted: {error}")
        return open_torch(spec)


def has_cuda() -> bool:
    """Whether PyTorch finds a CUDA device; it is asked only where the system knows of one."""
    if not any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def open_native(spec: Spec) -> Served:
    from deepnarrow.hub.native import native_folder
    from deepnarrow.runtime.folder import is_native, mark_checked, prompt_in, state_of, was_checked
    from deepnarrow.runtime.format import NAME
    from deepnarrow.runtime.native import open_engine
    from deepnarrow.text.tokenizer import load_if_any

    converted = is_native(Path(spec.model).expanduser())  # then it has its own precision
    precision = None if converted and spec.precision == "float32" else spec.precision
    folder = native_folder(spec.model, precision, say=say).folder
    file = folder / NAME
    state, checked = state_of(file), was_checked(file)
    engine: Any = open_engine(file, threads=spec.threads, kernels=spec.kernels, verify=not checked, resident=True)
    if not checked:
        mark_checked(file, state)
    prompts = {name: native_prompt(run, file, folder) for name, run in spec.prompts.items()}
    return Served(engine, load_if_any(folder), prompts, prompt_in(folder, engine.shape))


def native_prompt(run: str, file: Path, origin: Path) -> np.ndarray:
    """A soft prompt over the model that a converted file was made from."""
    from deepnarrow.model.folder import read_prompt
    from deepnarrow.runtime.format import open_file

    base = open_file(file, verify=False)
    return read_prompt(run, base.shape, str(base.source.get("fingerprint", "")), str(origin)).numpy()


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
    own = None if model.prompt is None else model.prompt.detach().float().cpu().numpy()
    model.prompt = None
    engine: Any = TorchEngine(model, vocab_limit=tokenizer.size if tokenizer else None)
    prompts = {name: tensor.float().cpu().numpy() for name, tensor in zip(names, vectors, strict=True)}
    return Served(engine, tokenizer, prompts, own)


def say(line: str) -> None:
    print(f"deepnarrow: {line}", file=sys.stderr, flush=True)
