"""Checkpoints that every rank writes its part of, by torch's Distributed Checkpoint.

The parts are safetensors files, each with the offsets of what it holds in its header, so that another number of ranks,
or one process, reads them back as it needs them. Nothing is pickled.
"""

import math
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5
from deepnarrow.train import optim
from deepnarrow.train.parallel import Ranks, is_split, like, local

FOLDER = "shards"  # within a checkpoint
MODEL, OPTIMIZER = "model/", "optimizer/"


def tensors(model: T5, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that goes into the shards. Step counts become vectors of one: the reader takes slices only."""
    found = {MODEL + name: tensor.detach() for name, tensor in model.state_dict().items()}
    found |= {OPTIMIZER + name: tensor for name, tensor in optim.state_tensors(optimizer, model).items()}
    return {name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in found.items()}


def write(folder: Path, held: dict[str, Tensor], ranks: Ranks) -> None:
    """Write this rank's part; returns once all ranks have."""
    from torch.distributed import checkpoint

    checkpoint.save(held, storage_writer=_writer(folder), process_group=ranks.saving)


def write_beside(folder: Path, held: dict[str, Tensor], ranks: Ranks) -> "Future[Any]":
    """The same in a thread, from a copy made now: what is on a GPU, torch brings to the processor's memory first."""
    from torch.distributed import checkpoint

    copied = {name: tensor.clone() if tensor.device.type == "cpu" else tensor for name, tensor in held.items()}
    found = checkpoint.async_save(copied, storage_writer=_writer(folder), process_group=ranks.saving)
    return cast("Future[Any]", found)


def _writer(folder: Path) -> Any:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    return HuggingFaceStorageWriter(str(folder), save_distributed=True)


def read(folder: Path, model: T5, optimizer: Optimizer, ranks: Ranks) -> None:
    """Fill the model and the optimizer with this rank's part of a checkpoint, whatever number of ranks wrote it."""
    from torch.distributed import checkpoint

    try:
        sizes = _reader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # whatever a damaged file makes of safetensors' parser
        raise UserError(f"{folder} cannot be read ({error})") from None
    parameters = dict(model.named_parameters())
    check_names(folder, {name.removeprefix(MODEL) for name in sizes if name.startswith(MODEL)}, set(parameters))
    held: dict[str, Tensor] = {MODEL + name: parameter.detach() for name, parameter in parameters.items()}
    for name, stored in sizes.items():
        if name.startswith(OPTIMIZER):
            if owner(name) not in parameters:
                raise UserError(f"{folder} holds optimizer state for {owner(name)!r}, which this model does not have")
            held[name] = empty(stored.size, parameters[owner(name)])
    for name, tensor in held.items():
        if name not in sizes or tensor.shape != sizes[name].size:
            raise UserError(f"{folder}: {name!r} is not what this model needs, {list(tensor.shape)}")
        there = sum(math.prod(chunk.sizes) for chunk in sizes[name].chunks)
        if there != tensor.numel():  # the reader would leave the rest as it finds it
            raise UserError(
                f"{folder} holds {there:,} of the {tensor.numel():,} numbers of {name!r}; a file is missing"
            )
    try:
        if ranks.size > 1:
            checkpoint.load(held, storage_reader=_reader(folder), process_group=ranks.saving)
        else:
            with warnings.catch_warnings():  # that this is a single process is meant
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                checkpoint.load(held, storage_reader=_reader(folder), no_dist=True)
    except Exception as error:
        raise UserError(f"{folder} cannot be read ({type(error).__name__}: {error})") from None
    state = {}
    for name, tensor in held.items():
        if name.startswith(OPTIMIZER):
            tensor = tensor[0] if name.endswith("/step") else tensor
            place = parameters[owner(name)]
            whole = is_split(tensor) or name.endswith("/step")
            state[name.removeprefix(OPTIMIZER)] = tensor if whole else like(tensor, place)
    optim.load_state(optimizer, model, state, source=str(folder))


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder))


def check_names(folder: Path, held: set[str], wanted: set[str]) -> None:
    if held != wanted:
        odd = sorted(held ^ wanted)[0]
        raise UserError(f"{folder} {'lacks' if odd in wanted else 'also has'} {odd!r}")


def owner(name: str) -> str:
    """
    >>> owner("optimizer/decoder.norm.weight/moment")
    'decoder.norm.weight'
    """
    return name.removeprefix(OPTIMIZER).rpartition(optim.SEPARATOR)[0]


def empty(size: torch.Size, parameter: Tensor) -> Tensor:
    """Room for an optimizer's state: laid out as its parameter where it is as large, else whole."""
    if size == parameter.shape:
        return torch.empty_like(parameter, dtype=torch.float32, requires_grad=False).detach()
    return torch.empty(size, dtype=torch.float32)


def fill(model: T5, optimizer: Optimizer, weights: dict[str, Tensor], state: dict[str, Tensor], *, source: str) -> None:
    """Take this rank's part of tensors that were read whole: of every parameter that is trained."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_names(Path(source).parent, set(weights), set(parameters))
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(local(like(weights[name], parameter)))
    laid_out = {}
    for name, tensor in state.items():
        known = owner(name) in parameters and tensor.ndim > 0
        laid_out[name] = like(tensor, parameters[owner(name)]) if known else tensor
    optim.load_state(optimizer, model, laid_out, source=source)
