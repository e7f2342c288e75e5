"""What answers texts: the native runtime where it is there and the model runs on a CPU, else PyTorch.

Nothing here imports torch before it is clear that PyTorch answers, or that a model has to be converted first.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

    from deepnarrow.runtime.engine import Engine
    from deepnarrow.runtime.limits import Output
    from deepnarrow.runtime.native import NativeEngine
    from deepnarrow.runtime.options import AnySearch
    from deepnarrow.text.tokenizer import Tokenizer

RUNTIMES = ("auto", "native", "torch")
NATIVE_DEVICES = ("auto", "cpu")
INT8 = "int8"
Found = Iterator[tuple[int, "list[Output]"]]


class Answering(NamedTuple):
    """A model that is ready to answer."""

    tokenizer: "Tokenizer"
    origin: str
    # (inputs, search, *, max_tokens, batch, on_token, prompts, scores): answers as they are found
    each: Callable[..., Found]
    prompts: Sequence[Any]  # those asked for, as `each` wants them
    engine: "Callable[[], Engine]"  # the same model, step by step
    own: Any = None  # a prompt [P, D] that the model has of itself and the engine does not know of

    def fronts(self, prompts: Sequence[Any] | None, inputs: int) -> Sequence[Any] | None:
        """A prompt for each input as the engine wants it."""
        if prompts is None:
            return None if self.own is None else [self.own] * inputs
        return [prompt.cpu().numpy() if hasattr(prompt, "cpu") else prompt for prompt in prompts]


def ready(
    model: str,
    prompts: Sequence[str] = (),
    *,
    runtime: str = "auto",
    device: str = "auto",
    dtype: str | None = None,
    revision: str | None = None,
    many: bool = False,
) -> Answering:
    """Open a model for `generate`. `dtype` None: float32, or what a converted folder has. `many`: so many texts that
    a start may take longer.
    """
    if goes_native(model, runtime, device, dtype):
        opened = open_native(model, dtype, revision, must=must_be_native(runtime, dtype), resident=many)
        if opened is not None:
            return natively(opened, prompts)
    return by_torch(model, prompts, device, dtype, revision)


def goes_native(model: str, runtime: str, device: str, dtype: str | None, doing: str = "answering") -> bool:
    """Whether the native runtime is to do it and is there; where it is not, one line says so."""
    check_runtime(runtime, device)
    check_dtype(dtype)
    if runtime == "torch" or not wants_native(model, runtime, device, dtype):
        return False
    from deepnarrow.runtime.native import NotBuiltError, library

    try:
        library()
    except NotBuiltError as why:
        if must_be_native(runtime, dtype):
            raise UserError(f"the native runtime is not there: {why}") from None
        say(f"{doing} with PyTorch, since the native runtime is not there: {why}")
        return False
    return True


def check_runtime(runtime: str, device: str) -> None:
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}; {nearest(runtime, RUNTIMES)}")
    if runtime == "native" and device not in NATIVE_DEVICES:
        raise UserError(f"the native runtime runs on the CPU, not on {device}; leave out --device or --runtime")


def check_dtype(dtype: str | None) -> None:
    """Refuse a word that is no precision of either runtime; why not float16, PyTorch's part says."""
    from deepnarrow.runtime.layout import PRECISIONS

    if dtype is not None and dtype not in (*PRECISIONS, "float16", "fp16", "half"):
        raise UserError(f"unknown dtype {dtype!r}; {nearest(dtype, PRECISIONS)}")


def must_be_native(runtime: str, dtype: str | None) -> bool:
    """Whether PyTorch may not take the native runtime's place."""
    return runtime == "native" or dtype == INT8


def wants_native(model: str, runtime: str, device: str, dtype: str | None) -> bool:
    """Whether the native runtime is what was asked for, or the best there is for it."""
    from deepnarrow.runtime.layout import PRECISIONS

    if dtype is not None and dtype not in PRECISIONS:
        return False  # PyTorch's part says what is wrong with it
    if runtime == "native" or dtype == INT8:
        return device in NATIVE_DEVICES
    return device == "cpu" or (device == "auto" and (is_converted(model) or not cuda()))


def is_converted(model: str) -> bool:
    from deepnarrow.runtime.folder import is_native

    return is_native(Path(model).expanduser())


def cuda() -> bool:
    """Whether PyTorch would find a CUDA device; it is asked only where the system knows of one."""
    if not any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return os.name == "nt" and torch_finds_cuda()
    return torch_finds_cuda()


def torch_finds_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def say(line: str) -> None:
    print(f"deepnarrow: {' '.join(line.split())}", file=sys.stderr, flush=True)


class Native(NamedTuple):
    """A model opened in the native runtime."""

    engine: "NativeEngine"
    tokenizer: "Tokenizer"
    origin: str
    file: Path
    own: "np.ndarray | None"  # the soft prompt [P, D] that its folder holds, which the engine does not know of


def open_native(
    model: str | Path,
    dtype: str | None,
    revision: str | None = None,
    *,
    must: bool,
    doing: str = "answering",
    encoder: bool = False,
    resident: bool = False,
) -> Native | None:
    """Open a model in the native runtime; None where it cannot be kept converted and PyTorch may take its place.

    With `encoder` a model with a head is welcome, of which the head is left out; for `resident` see `open_engine`.
    """
    from deepnarrow.hub.native import native_folder
    from deepnarrow.runtime.folder import mark_checked, prompt_in, state_of, was_checked
    from deepnarrow.runtime.format import NAME
    from deepnarrow.runtime.native import open_engine
    from deepnarrow.text.piece_index import open_indexed
    from deepnarrow.text.tokenizer import load_if_any

    told = say if sys.stderr.isatty() else None
    try:
        found = native_folder(model, dtype, revision=revision, say=told, encoder=encoder)
    except OSError as error:
        if must:
            raise
        say(f"{doing} with PyTorch, since the model cannot be kept converted: {error} (DEEPNARROW_CACHE says where)")
        return None
    tokenizer = with_tokenizer(open_indexed(found.folder) or load_if_any(found.folder), found.origin)
    file, state = found.folder / NAME, state_of(found.folder / NAME)
    checked = was_checked(file)
    engine = open_engine(file, verify=not checked, resident=resident)
    if not checked:
        mark_checked(file, state)
    if tokenizer.size > engine.shape.vocab:
        raise UserError(
            f"{found.folder}: the tokenizer has {tokenizer.size:,} ids but the model only {engine.shape.vocab:,} rows "
            "of embedding, so the two do not belong together"
        )
    return Native(engine, tokenizer, found.origin, file, prompt_in(found.folder, engine.shape))


def natively(opened: Native, prompts: Sequence[str]) -> Answering:
    from deepnarrow.runtime.search import generate_each

    engine, tokenizer, origin, file, own = opened
    vectors = prompt_vectors(prompts, file, origin) if prompts else []

    def each(
        inputs: Sequence[Sequence[int]], search: "AnySearch", *, prompts: Sequence[Any] | None, **rest: Any
    ) -> Found:
        given = [own] * len(inputs) if prompts is None and own is not None else prompts
        return generate_each(engine, inputs, search, eos=tokenizer.eos, prompts=given, **rest)

    return Answering(tokenizer, origin, each, vectors, lambda: engine, own)


def prompt_vectors(names: Sequence[str], file: Path, origin: str) -> list[Any]:
    """Soft prompts [P, D] over the model that a converted file was made from."""
    from deepnarrow.model.folder import read_prompt
    from deepnarrow.runtime.format import open_file

    base = open_file(file, verify=False)
    fingerprint = str(base.source.get("fingerprint", ""))
    return [read_prompt(name, base.shape, fingerprint, origin).numpy() for name in names]


def by_torch(model: str, prompts: Sequence[str], device: str, dtype: str | None, revision: str | None) -> Answering:
    from deepnarrow.model import decode
    from deepnarrow.model.folder import open_model, open_prompts, resolve_device, resolve_dtype

    refuse_int8(dtype)
    resolved = resolve_dtype(dtype or "float32")
    vectors: Sequence[Any] = []
    if prompts:  # they know their base by its weights as they were
        opened = open_model(model, device=resolve_device(device), revision=revision)
        vectors = open_prompts(prompts, opened)
        opened.model.to(resolved)
    else:
        opened = open_model(model, device=resolve_device(device), dtype=resolved, revision=revision)
    tokenizer = with_tokenizer(opened.tokenizer, opened.origin)

    def each(inputs: Sequence[Sequence[int]], search: "AnySearch", *, scores: bool = True, **rest: Any) -> Found:
        del scores  # they cost next to nothing here
        its = getattr(decode, type(search).__name__)(**asdict(search))
        return decode.generate_each(opened.model, inputs, its, eos=tokenizer.eos, vocab_limit=tokenizer.size, **rest)

    def engine() -> "Engine":
        from deepnarrow.model.engine import TorchEngine

        return cast("Engine", TorchEngine(opened.model, vocab_limit=tokenizer.size))

    return Answering(tokenizer, opened.origin, each, vectors, engine)


def refuse_int8(dtype: str | None) -> None:
    if dtype == INT8:
        raise UserError("int8 is a precision of the native runtime; PyTorch runs in float32 or bfloat16")


def with_tokenizer(tokenizer: "Tokenizer | None", origin: str) -> "Tokenizer":
    if tokenizer is None:
        raise UserError(
            f"{origin} has no tokenizer, so it can neither read nor write text; put its tokenizer.json or "
            "spiece.model into that folder"
        )
    return tokenizer
