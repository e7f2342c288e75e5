"""Open a model by name (places.py), and write one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import read_json, whole_folder, write_json
from deepnarrow.model import adapters, hub_files
from deepnarrow.model.lora import adapted, merge
from deepnarrow.model.places import Found, find
from deepnarrow.model.published import read_config, write_config
from deepnarrow.model.t5 import NO_FLOAT16, T5
from deepnarrow.model.tensors import read_tensors
from deepnarrow.model.weights import as_tied, from_published, listed, to_published
from deepnarrow.model.weights import fingerprint as weights_fingerprint
from deepnarrow.runtime import folder as converted
from deepnarrow.runtime.format import open_file
from deepnarrow.shapes import Shape
from deepnarrow.text import tokenizer as tokenizers
from deepnarrow.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What may be in a folder that `save_model` replaces: a model's files, ours or another library's.
REPLACED = (*hub_files.SETTINGS, *hub_files.VOCABULARY, *hub_files.SAFE, *hub_files.OLD)


class Opened(NamedTuple):
    model: T5  # in evaluation mode
    tokenizer: Tokenizer | None  # None where the folder has none
    shape: Shape
    origin: str  # the folder read, or "owner/name@commit"
    adapter: Path | None = None  # the folder of an adapter, where there is one; its LoRA is merged into the model


def open_model(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    revision: str | None = None,
    base: str | Path | None = None,
) -> Opened:
    """Open a run folder, a Hugging Face T5 folder or a hub name. Anything broken or not a T5 is a `UserError`.

    Weights in float16, bfloat16 or float64 files become `dtype`, which may be float32 or bfloat16. Of an adapter its
    base model is opened too, the one it names or `base`: LoRA is merged into it, a soft prompt is its `prompt`.
    """
    if dtype not in DTYPES.values():
        raise UserError(NO_FLOAT16 if dtype is torch.float16 else f"models run in {' or '.join(DTYPES)}, not {dtype}")
    found = find(name, revision)
    if (found.folder / "head.json").is_file():
        raise UserError(
            f"{found.origin} is an encoder with a head, which writes no text: score it with `deepnarrow evaluate "
            f"{name} --task T`, get vectors with `deepnarrow embed {name}`, or open it with model.heads.open_head"
        )
    if adapters.is_adapter(found.folder):
        return open_adapter(found, base, device=device, dtype=dtype, dropout=dropout)
    if base is not None:
        raise UserError(f"{found.origin} is a whole model and needs no base")
    model = read_model(found.folder, dtype=dtype, dropout=dropout)
    if converted.is_native(found.folder) and (vectors := converted.prompt_in(found.folder, model.shape)) is not None:
        model.prompt = nn.Parameter(torch.tensor(vectors).to(dtype))
    tokenizer = read_tokenizer(found.folder)
    if tokenizer is not None and tokenizer.size > model.shape.vocab:
        raise UserError(
            f"{found.folder}: the tokenizer has {tokenizer.size:,} ids but the model only {model.shape.vocab:,} rows "
            "of embedding, so the two do not belong together"
        )
    return Opened(model.to(device).eval(), tokenizer, model.shape, found.origin)


def open_adapter(
    found: Found, base: str | Path | None, *, device: str | torch.device, dtype: torch.dtype, dropout: float
) -> Opened:
    """An adapter on its base model. Merged in float32, whatever the dtype then asked for."""
    adapter = adapters.read_adapter(found.folder)
    under = open_base(adapter, base, dropout)
    if under.model.prompt is not None:
        raise UserError(f"{under.origin} is a soft prompt itself; a prompt or LoRA over it is not supported")
    adapters.check_base(adapter, under.model, under.origin)
    adapters.apply(adapter, under.model)
    model = merge(under.model) if adapter.lora is not None else under.model
    return under._replace(
        model=model.to(device, dtype).requires_grad_(True).eval(), origin=found.origin, adapter=found.folder
    )


def open_prompts(names: Sequence[str | Path], base: Opened) -> list[Tensor]:
    """Soft prompts [P, D] of runs or folders, all over one model, which must be in float32 as it was opened.

    They go into `generate(..., prompts=...)`, where every input may have another.
    """
    held = weights_fingerprint(base.model.state_dict())
    device = base.model.embedding.weight.device
    return [read_prompt(name, base.shape, held, base.origin).to(device) for name in names]


def read_prompt(name: str | Path, shape: Shape, fingerprint: str, origin: str) -> Tensor:
    """A soft prompt [P, D] over the model of this shape, fingerprint and origin."""
    adapter = adapters.read_adapter(find(name).folder)
    if adapter.lora is not None:
        raise UserError(f"{name} is LoRA, not a soft prompt; open it by itself, as MODEL")
    adapters.check_fingerprint(adapter, fingerprint, origin)
    return adapters.prompt_vectors(adapter, shape)


def open_base(adapter: adapters.Adapter, base: str | Path | None, dropout: float) -> Opened:
    named = base if base is not None else adapter.base.origin if adapter.base else None
    if named is None:
        raise UserError(
            f"{adapter.folder} does not say which model it adapts; write the folder or hub name into its "
            f"{adapters.CONFIG} as base_model_name_or_path, or call open_model(..., base=...)"
        )
    if Path(named).is_dir() and Path(named).resolve() == adapter.folder.resolve():
        raise UserError(f"{adapter.folder} names itself as the model it adapts; name its base")
    try:
        return open_model(named, dropout=dropout)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(
            f"{adapter.folder} adapts {named}, which cannot be opened ({str(error).rstrip('.')}); name its new "
            f"place as base_model_name_or_path in {adapter.folder / adapters.CONFIG}, or call open_model(..., base=...)"
        ) from None


def read_shape(folder: Path) -> Shape:
    """A model folder's shape, from its config.json alone."""
    return read_config(read_settings(folder), where=str(folder / "config.json")).shape


def read_settings(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        there = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
        raise UserError(f"{folder} is not a model folder: it has no config.json (it holds {shown or 'nothing'})")
    return read_json(path)


def read_model(folder: Path, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> T5:
    """The model of a Hugging Face T5 folder, or of a converted one as it was rounded, on the CPU."""
    if converted.is_native(folder):
        return read_native(folder, dtype=dtype, dropout=dropout)
    said = read_config(read_settings(folder), where=str(folder / "config.json"))
    tensors = read_tensors(folder, dtype)
    shape = as_tied(said.shape, tensors)
    state = from_published(tensors, shape, scaled=said.scaled, may_lack_output=said.may_lack_output, where=str(folder))
    with torch.device("meta"):
        model = T5(shape, dropout=dropout)
    model.load_state_dict(state, assign=True)
    return model


def read_native(folder: Path, *, dtype: torch.dtype, dropout: float) -> T5:
    """The model of a converted file: what int8 and bfloat16 left of the weights. The shape is the file's own."""
    file = open_file(folder / converted.NAME)
    with torch.device("meta"):
        model = T5(file.shape, dropout=dropout)
    state = {name: torch.tensor(tensor).to(dtype) for name, tensor in file.tensors().items()}
    model.load_state_dict(state, assign=True)
    return model


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model folder, or None where there is none."""
    return tokenizers.load_if_any(folder)


def save_model(model: T5, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write a folder that `open_model` and transformers read, whole or not at all, in the model's dtype.

    Knobs a published T5 does not have are written out as equal tensors; our loader makes them one again. A folder that
    holds anything but a model is not replaced.
    """
    if model.prompt is not None or adapted(model):
        raise UserError(
            "a Hugging Face folder holds whole models: merge LoRA first; a soft prompt is an adapter over its model"
        )
    check_replaceable(folder)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    eos = tokenizer.eos if tokenizer else 1
    tensors = to_published({name: tensor.detach() for name, tensor in model.state_dict().items()}, model.shape)
    with whole_folder(folder) as temporary:
        if tokenizer is not None:
            tokenizer.save(temporary)
        write_json(temporary / "generation_config.json", generation_config(eos))
        # what is written out may be one tensor under two names, which safetensors refuses
        own = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(own, temporary / "model.safetensors", metadata={"format": "pt"})
        config = write_config(model.shape, dtype=dtype, dropout=model.dropout, eos=eos)
        write_json(temporary / "config.json", config)


def generation_config(eos: int) -> dict[str, int]:
    return {"decoder_start_token_id": 0, "eos_token_id": eos, "pad_token_id": 0}


def check_replaceable(folder: Path, also: Sequence[str] = ()) -> None:
    """Refuse a folder that holds anything but a model's files and those named in `also`."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder to write the model to")
    if not folder.is_dir():
        return
    known = (*REPLACED, *also)
    others = sorted(path.name for path in folder.iterdir() if not any(path.match(pattern) for pattern in known))
    if others:
        raise UserError(
            f"{folder} holds more than a model ({listed(others)}) and writing would replace all of it; "
            "name another folder"
        )


def resolve_device(name: str) -> torch.device:
    """ "auto" is a CUDA device where there is one, else the CPU; "cpu", "cuda" and "cuda:1" are themselves."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"unknown device {name!r}; {nearest(name, ('auto', 'cpu', 'cuda'))}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"this machine has {torch.cuda.device_count()} CUDA devices, so {name} is not there; use cpu")
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype:
    """
    >>> resolve_dtype("bfloat16")
    torch.bfloat16
    """
    if name in ("float16", "fp16", "half"):
        raise UserError(NO_FLOAT16)
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; {nearest(name, DTYPES)}")
    return DTYPES[name]
