"""Checkpoints: each one a Hugging Face folder with the training state beside it, whole or absent.

RUN/checkpoints.json                    {"last": "step-00000200", "best": "step-00000100"}
RUN/checkpoints/step-00000200/
    config.json, model.safetensors, tokenizer files      what `open_model` reads
    optimizer.safetensors, state.json                    what going on needs besides
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, whole_folder, write_json
from deepnarrow.model.folder import read_model, save_model
from deepnarrow.model.t5 import T5
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import optim
from deepnarrow.train.state import State


def name(step: int) -> str:
    """
    >>> name(200)
    'step-00000200'
    """
    return f"step-{step:08d}"


def steps(out: Path) -> list[int]:
    """Steps of the checkpoints of a run, ascending."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in (out / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def save(out: Path, model: T5, tokenizer: Tokenizer | None, optimizer: Optimizer, state: State, *, keep: int) -> Path:
    """Write a checkpoint of this step, point `checkpoints.json` at it, and drop the ones no longer kept."""
    folder = out / "checkpoints" / name(state.step)
    with disk_errors(folder), whole_folder(folder) as temporary:
        save_model(model, tokenizer, temporary)
        save_file(optim.state_tensors(optimizer, model), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", state.to_json())
    point(out, state)
    prune(out, state, keep)
    return folder


def point(out: Path, state: State) -> None:
    existing = steps(out)
    best = name(state.best.step) if state.best and state.best.step in existing else None
    write_json(out / "checkpoints.json", {"last": name(existing[-1]) if existing else None, "best": best})


def prune(out: Path, state: State, keep: int) -> None:
    """Keep the last `keep` checkpoints and the best one."""
    existing = steps(out)
    kept = {*existing[-keep:], state.best.step if state.best else None}
    for step in existing:
        if step not in kept:
            folder = out / "checkpoints" / name(step)
            leaving = folder.rename(folder.with_name(f".{folder.name}.old"))  # never seen half deleted
            shutil.rmtree(leaving, ignore_errors=True)


def restore(out: Path, model: T5, optimizer: Optimizer) -> State:
    """Load the last checkpoint into `model` and `optimizer`; without one, leave both and start at step 0."""
    sweep(out)
    existing = steps(out)
    if not existing:
        return State()
    folder = out / "checkpoints" / name(existing[-1])
    with readable(folder):
        state = State.from_json(read_json(folder / "state.json"), source=str(folder / "state.json"))
        model.load_state_dict(read_model(folder).state_dict())
        tensors = read_tensors(folder / "optimizer.safetensors")
        optim.load_state(optimizer, model, tensors, source=str(folder / "optimizer.safetensors"))
    if state.step != existing[-1]:
        raise UserError(f"{folder / 'state.json'} is of step {state.step}; delete {folder} and run again")
    if state.best and state.best.step not in existing:
        state.best = None  # it went when a better one came, and that one was deleted by hand
    point(out, state)
    return state


def last_state(out: Path) -> State | None:
    """The state of the last checkpoint, read without its tensors."""
    existing = steps(out)
    if not existing:
        return None
    path = out / "checkpoints" / name(existing[-1]) / "state.json"
    with readable(path.parent):
        return State.from_json(read_json(path), source=str(path))


def sweep(out: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for pattern in (".step-*", "..step-*"):
        for path in (out / "checkpoints").glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """A broken file in a checkpoint: say which, and how to go on from the checkpoint before."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; this checkpoint is damaged: delete the folder {folder} and run the same "
            "command again to go on from the one before it"
        ) from None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """safetensors reports a full disk in its own way; make it the operating system's error again."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if not number:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from None
