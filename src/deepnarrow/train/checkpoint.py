"""Checkpoints: each one a Hugging Face folder with the training state beside it, whole or absent.

RUN/checkpoints.json                    {"last": "step-00000200", "best": "step-00000100"}
RUN/checkpoints/step-00000200/
    config.json, model.safetensors, tokenizer files      what `open_model` reads
    optimizer.safetensors, state.json                    what going on needs besides
    shards/                                              where the weights are spread over ranks, in place of
                                                         optimizer.safetensors: weights and moments, a file from each

Either kind is read by any number of ranks. A large model's checkpoint on the way has no model.safetensors; the best,
the last and those of models of up to a billion parameters do.
"""

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, take_place, whole_folder, write_json
from deepnarrow.model.t5 import T5
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import optim, shards
from deepnarrow.train.learner import TEXT_TO_TEXT, Learner
from deepnarrow.train.parallel import Ranks
from deepnarrow.train.state import State

ALWAYS_WHOLE = 10**9  # parameters up to which every sharded checkpoint is a Hugging Face folder too


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


def save(
    out: Path,
    model: T5,
    tokenizer: Tokenizer | None,
    optimizer: Optimizer,
    state: State,
    *,
    keep: int,
    learner: Learner = TEXT_TO_TEXT,
) -> Path:
    """Write a checkpoint of this step, point `checkpoints.json` at it, and drop the ones no longer kept."""
    return write_whole(out, model, tokenizer, optim.state_tensors(optimizer, model), state, keep, learner)


def write_whole(
    out: Path,
    model: T5,
    tokenizer: Tokenizer | None,
    moments: dict[str, torch.Tensor],
    state: State,
    keep: int,
    learner: Learner,
) -> Path:
    folder = out / "checkpoints" / name(state.step)
    with disk_errors(folder), whole_folder(folder) as temporary:
        learner.save(model, tokenizer, temporary)
        save_file(moments, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", state.to_json())
    point(out, state)
    prune(out, state, keep)
    return folder


class Saver:
    """Writes the checkpoints of a run, from one rank or from all, at once or in a thread beside training.

    In a thread, what is written is a copy of the moment `save` was called. One checkpoint is finished before the next
    is begun, and an error of the thread comes up then, or in `finish`.
    """

    def __init__(self, out: Path, ranks: Ranks, *, beside: bool, learner: Learner = TEXT_TO_TEXT) -> None:
        self.out, self.ranks, self.beside, self.learner = out, ranks, beside, learner
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: list[Future[Any]] = []

    def save(
        self, model: T5, tokenizer: Tokenizer | None, optimizer: Optimizer, state: State, *, keep: int, chosen: bool
    ) -> None:
        """`chosen` checkpoints, the best and the last, are Hugging Face folders whatever their size."""
        self.finish()
        state = copy.deepcopy(state)
        if self.ranks.sharded:
            self._save_shards(model, tokenizer, optimizer, state, keep, chosen)
        elif not self.beside:
            self.ranks.first_says(
                lambda: str(save(self.out, model, tokenizer, optimizer, state, keep=keep, learner=self.learner))
            )
        elif self.ranks.first:
            frozen = copy.deepcopy(model)
            moments = {key: value.clone() for key, value in optim.state_tensors(optimizer, model).items()}
            self._begin(lambda: write_whole(self.out, frozen, tokenizer, moments, state, keep, self.learner))

    def _save_shards(
        self, model: T5, tokenizer: Tokenizer | None, optimizer: Optimizer, state: State, keep: int, chosen: bool
    ) -> None:
        folder = self.out / "checkpoints" / name(state.step)
        temporary = folder.with_name(f".{folder.name}.saving")
        large = sum(parameter.numel() for parameter in model.parameters()) > ALWAYS_WHOLE
        whole = None if large and not chosen else self.ranks.whole(model, torch.device("cpu"), first_only=True)
        self.ranks.first_says(lambda: fresh_folder(temporary / shards.FOLDER))
        held = shards.tensors(model, optimizer)

        def publish() -> None:
            with disk_errors(folder):
                if whole is not None:
                    self.learner.save(whole, tokenizer, temporary / "whole")
                    for file in (temporary / "whole").iterdir():
                        file.rename(temporary / file.name)
                    (temporary / "whole").rmdir()
                write_json(temporary / "state.json", state.to_json())
                take_place(temporary, folder)
            point(self.out, state)
            prune(self.out, state, keep)

        if not self.beside:
            shards.write(temporary / shards.FOLDER, held, self.ranks)
            self.ranks.first_says(publish)
            return
        written = shards.write_beside(temporary / shards.FOLDER, held, self.ranks)
        self.writing = [written]
        if self.ranks.first:

            def once_written() -> None:
                written.result()
                publish()

            self._begin(once_written)

    def _begin(self, work: Callable[[], Any]) -> None:
        self.writing.append(self.pool.submit(work))

    def finish(self) -> None:
        """Until what was begun is written, on every rank."""
        writing, self.writing = self.writing, []
        if not self.beside:
            return
        wait(writing)  # on every rank: the threads talk to each other, and two saves at once would mix their words
        self.ranks.first_says(lambda: [future.result() for future in writing] and None)
        for future in writing:
            future.result()

    def close(self) -> None:
        """Let go of the thread; what it still writes, it writes."""
        self.pool.shutdown(wait=False)


def fresh_folder(path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.mkdir(parents=True)


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


def restore(
    out: Path, model: T5, optimizer: Optimizer, ranks: Ranks | None = None, learner: Learner = TEXT_TO_TEXT
) -> State:
    """Load the last checkpoint into `model` and `optimizer`; without one, leave both and start at step 0."""
    ranks = ranks or Ranks()
    ranks.first_says(lambda: sweep(out))
    existing = steps(out)
    if not existing:
        return State()
    folder = out / "checkpoints" / name(existing[-1])
    with readable(folder):
        state = State.from_json(read_json(folder / "state.json"), source=str(folder / "state.json"))
        if (folder / shards.FOLDER).is_dir():
            shards.read(folder / shards.FOLDER, model, optimizer, ranks)
        else:
            weights, moments = learner.restore(folder), read_tensors(folder / "optimizer.safetensors")
            shards.fill(model, optimizer, weights, moments, source=str(folder / "optimizer.safetensors"))
    if state.step != existing[-1]:
        raise UserError(f"{folder / 'state.json'} is of step {state.step}; delete {folder} and run again")
    if state.best and state.best.step not in existing:
        state.best = None  # it went when a better one came, and that one was deleted by hand
    ranks.first_says(lambda: point(out, state))
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
