"""Read a published model's tensors from disk: one safetensors file, several with an index, or PyTorch's old format."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.files import read_json

SAFE, OLD = "model.safetensors", "pytorch_model.bin"
FOREIGN = {"flax_model.msgpack": "Flax", "tf_model.h5": "TensorFlow", "model.ckpt.index": "TensorFlow"}


def read_tensors(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every tensor of a model folder under its published name, in `dtype`, on the CPU.

    Old files are read without running what they pickle. A missing, broken or partial file is a `UserError`.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_file(file):
            if not tensor.is_floating_point():
                raise UserError(
                    f"{file}: {name} holds {str(tensor.dtype).removeprefix('torch.')} numbers; quantised weights "
                    "cannot be read, take the model's float32, bfloat16 or float16 files"
                )
            found[name] = tensor.to(dtype, copy=True)  # a copy, since it may lie in a file that someone replaces
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, the first kind present of: safetensors, its shards, .bin, its shards."""
    for name in (SAFE, OLD):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return shards(folder, folder / f"{name}.index.json")
    foreign = [f"{name} ({framework})" for name, framework in FOREIGN.items() if (folder / name).exists()]
    if foreign:
        raise UserError(f"{folder} has weights only as {', '.join(foreign)}; convert them to {SAFE} first")
    raise UserError(f"{folder} has no weights: expected {SAFE}, {SAFE}.index.json with its shards, or {OLD}")


def shards(folder: Path, index: Path) -> list[Path]:
    listing = read_json(index)
    names = listing.get("weight_map") if isinstance(listing, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{index} is not a list of shards: it lacks "weight_map", from tensor to file')
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is not a file beside it")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, one of the {len(files)} shards {index.name} lists; fetch it again")
    return [folder / name for name in files]


def read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    yield from read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)


def read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                yield name, opened.get_tensor(name)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(broken(file, error)) from None


def read_pickle(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} cannot be read as plain tensors ({first_line(error)}); it is broken, or it holds Python objects, "
            "which are not run: convert it to safetensors"
        ) from None
    except Exception as error:  # torch's reader meets cut-off bytes with whatever error they lead to
        raise UserError(broken(file, error)) from None
    if not isinstance(state, dict):
        raise UserError(f"{file} holds a {type(state).__name__}, not a dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{file}: its entry {name!r} is a {type(tensor).__name__}, not a tensor")
        yield str(name), tensor


def broken(file: Path, error: Exception) -> str:
    return f"{file} is broken or only a part of a file ({first_line(error)}); fetch or write it again"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
