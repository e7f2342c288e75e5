"""What is judged: a run, one of its checkpoints, a Hugging Face folder or a hub name; opened when it must answer."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.files import sha256
from deepnarrow.measure.answerer import Answerer, answerer
from deepnarrow.model.folder import find, open_model, read_shape, resolve_device, resolve_dtype
from deepnarrow.model.heads import OpenedHead, is_head, open_head
from deepnarrow.shapes import Shape
from deepnarrow.tasks import Task, own
from deepnarrow.train.run_folder import FILE, read_run

HOME = "evaluations"
TRAINING_ONLY = {"optimizer.safetensors", "state.json"}  # in a checkpoint, and no part of what answers


NATIVE, TORCH = "native", "torch"


class Way(NamedTuple):
    """How a model is run when it must answer."""

    runtime: str  # NATIVE or TORCH
    dtype: str
    open: Callable[[], Answerer | OpenedHead]
    insisted: bool = False  # whether the runtime was named, so that the other one's answers do not do

    @property
    def precision(self) -> str:
        """What evaluations that may stand for each other have in common: in float32 the two runtimes agree."""
        return self.dtype if self.runtime == TORCH or self.dtype == "float32" else f"{self.runtime} {self.dtype}"


@dataclass(frozen=True)
class Subject:
    """A model by its name, and where its evaluations are kept: in its run, else in ./evaluations."""

    name: str
    folder: Path  # of the weights
    origin: str
    run: Path | None
    choose: Callable[[Path], Way]  # how to run what a folder holds

    @cached_property
    def weights(self) -> str:
        """A SHA-256 over the model's files, so that an evaluation says whose it is."""
        files = sorted(path for path in self.folder.iterdir() if path.is_file() and path.name not in TRAINING_ONLY)
        return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint of the run that answers."""
        return self.folder.name if self.run is not None else None

    @cached_property
    def shape(self) -> Shape:
        return read_shape(self.folder)

    @cached_property
    def way(self) -> Way:
        return self.choose(self.folder)

    @property
    def precision(self) -> str:
        return self.way.precision

    @cached_property
    def opened(self) -> Answerer | OpenedHead:
        return self.way.open()

    @cached_property
    def home(self) -> Path:
        if self.run is not None:
            return self.run / HOME
        plain = re.sub(r"[^\w.@-]+", "--", self.name.strip("/.")) or "model"
        return Path(HOME) / f"{plain}-{self.weights[:8]}"

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """run.json, or nothing."""
        return read_run(self.run) if self.run is not None else {}

    @cached_property
    def tasks(self) -> list[Task]:
        """What the run was fine-tuned on: one task, several, or none."""
        origin = self.record.get("origin", {})
        names, specs = origin.get("task"), origin.get("task_spec")
        if not names:
            return []
        if isinstance(names, str):
            names, specs = [names], [specs]
        specs = specs or [None] * len(names)
        return [own.from_spec(spec) if spec else tasks.get(name) for name, spec in zip(names, specs, strict=True)]

    def task(self, name: str) -> Task:
        """A task by name; a run knows those of own data that it was trained on."""
        return next((task for task in self.tasks if task.name == name), None) or tasks.get(name)


def torch_way(*, device: str = "auto", dtype: str = "float32", insisted: bool = False) -> Callable[[Path], Way]:
    """A way for any folder: opened and run by PyTorch."""
    where, kind = resolve_device(device), resolve_dtype(dtype)

    def way(folder: Path) -> Way:
        def opened() -> Answerer | OpenedHead:
            if is_head(folder):
                return open_head(folder, device=where, dtype=kind)
            return answerer(open_model(folder, device=where, dtype=kind))

        return Way(TORCH, dtype, opened, insisted)

    return way


def subject(name: str | Path, choose: Callable[[Path], Way] | None = None) -> Subject:
    """Find what a name stands for. Nothing of it is read yet. `choose` says how to run it; None: by PyTorch."""
    choose = choose or torch_way()
    found = find(name)
    path = Path(name).expanduser()
    run = next((one for one in (path, path.parent.parent) if path.is_dir() and (one / FILE).is_file()), None)
    if run is not None and run != path and path.parent.name != "checkpoints":
        run = None
    return Subject(str(name), found.folder, found.origin, run, choose)


def seeds_in(name: str | Path) -> list[Path]:
    """The runs `seed-0`, `seed-1` and so on of a folder, by number; none where it holds no such runs."""
    folder = Path(name).expanduser()
    numbered = ((re.fullmatch(r"seed-(\d+)", path.name), path) for path in folder.glob("seed-*"))
    found = sorted((int(match[1]), path) for match, path in numbered if match and (path / FILE).is_file())
    return [path for _, path in found] if not (folder / FILE).is_file() else []


def tasks_for(one: Subject, names: str | None) -> list[Task]:
    """The tasks named, one or several with commas; without names those the run was fine-tuned on."""
    if names is None:
        if one.tasks:
            return one.tasks
        raise UserError(f"{one.name} was not fine-tuned on a task here; name one with --task (evaluate --list)")
    return [one.task(name.strip()) for name in ([names] if Path(names).exists() else names.split(","))]


def identity(task: Task) -> dict[str, Any]:
    """A task as records name it; of a user's own data also what it was made of, wherever the file lies."""
    made = {key: value for key, value in (own.spec(task) or {}).items() if key != "path"}
    return {"task": task.name, "task_version": task.version} | ({"task_spec": made} if made else {})


def plain_json(value: Any) -> Any:
    """A value as it comes back from a JSON file, tuples as lists."""
    return json.loads(json.dumps(value))
