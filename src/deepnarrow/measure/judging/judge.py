"""Judge a model on a task, or take the evaluation that is kept of just that."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.measure.answerer import Answerer
from deepnarrow.measure.evaluate import LIKELIHOOD, Evaluation, evaluate, search_of
from deepnarrow.measure.heads import evaluate_head
from deepnarrow.measure.judging import kept
from deepnarrow.measure.judging.items import fingerprint
from deepnarrow.measure.judging.kept import Kept
from deepnarrow.measure.judging.subject import TORCH, Subject, identity, plain_json
from deepnarrow.model.decode import Search
from deepnarrow.model.heads import OpenedHead
from deepnarrow.tasks import Loaded, Task


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a model: a task's items, and the protocol they are judged by."""

    task: Task
    split: str
    data: Path | None = None
    limit: int | None = None
    search: Search | None = None
    beam: int | None = None  # said of `search` in folder names
    as_t5: bool = False
    likelihood: bool = False
    batch: int | None = None
    seed: int = 0

    @cached_property
    def loaded(self) -> Loaded:
        return tasks.load(self.task, self.split, data=self.data, limit=self.limit)

    @cached_property
    def items(self) -> str:
        return fingerprint(self.loaded.pairs)

    @property
    def protocol(self) -> str:
        how = search_of(self.task, self.search, as_t5=self.as_t5)
        return LIKELIHOOD if how is None else repr(how)

    @property
    def differences(self) -> dict[str, Any]:
        """What sets this apart from the plain evaluation, for folder names and ledger records."""
        asked = {"limit": self.limit, "beam": self.beam, "protocol": "t5" if self.as_t5 else None}
        return {name: value for name, value in asked.items() if value is not None}


class Judged(NamedTuple):
    kept: Kept
    reused: bool


def judge(one: Subject, wanted: Wanted, *, again: bool = False, out: Path | None = None) -> Judged:
    """Judge, and keep the evaluation; an evaluation kept of the same weights, items and protocol is not made again.

    In float32 it does not matter which runtime made it, unless one is insisted on. `again` makes it in any case. `out`
    is where to keep it instead of the model's own place.
    """
    asked = plain_json(
        {
            **identity(wanted.task),
            "split": wanted.split,
            "limit": wanted.limit,
            "items": wanted.items,
            "protocol": wanted.protocol,
            "dtype": one.precision,
            "weights": one.weights,
            "seed": wanted.seed,
        }
    )
    folder = place(one, wanted, out, asked)
    if not again and kept.identity_in(folder) == asked:
        found = kept.read(folder)
        if (not wanted.likelihood or has_likelihood(found)) and (not one.way.insisted or made_by(found, one)):
            return Judged(found, True)
    return Judged(kept.keep(folder, evaluated(one.opened, wanted), asked, about(one, wanted)), False)


def evaluated(opened: Answerer | OpenedHead, wanted: Wanted) -> Evaluation:
    if isinstance(opened, OpenedHead):
        if wanted.search is not None or wanted.as_t5 or wanted.likelihood:
            raise UserError(f"{opened.origin} has a head, which answers in one pass; leave out how to search or score")
        return evaluate_head(opened, wanted.task, wanted.loaded.pairs, seed=wanted.seed)
    return evaluate(
        opened,
        wanted.task,
        wanted.loaded.pairs,
        batch=wanted.batch,
        search=wanted.search,
        as_t5=wanted.as_t5,
        likelihood=wanted.likelihood,
        seed=wanted.seed,
    )


def place(one: Subject, wanted: Wanted, out: Path | None, asked: Mapping[str, Any]) -> Path:
    """The folder of an evaluation. Other items under the same name get a folder of their own; other weights do not."""
    named = [f"{key}-{value}" if key != "protocol" else str(value) for key, value in wanted.differences.items()]
    if one.precision != "float32":
        named.append(one.precision)
    if one.run is not None and Path(one.name) != one.run:
        named.append(str(one.checkpoint))
    folder = (out or one.home) / kept.folder_name(wanted.task.name, wanted.split, named)
    if kept.identity_in(folder).get("items", asked["items"]) != asked["items"]:
        return folder.with_name(f"{folder.name}.items-{asked['items'][:8]}")
    return folder


def about(one: Subject, wanted: Wanted) -> dict[str, Any]:
    """What a reader of a score wants to know besides."""
    opened = one.opened
    if isinstance(opened, OpenedHead):
        weights = list(opened.model.parameters())
        count, device = sum(weight.numel() for weight in weights), str(weights[0].device)
        runtime = f"{TORCH} {one.way.dtype} {device}"
    else:
        count, device, runtime = opened.parameters, opened.device, opened.runtime
    return {
        "split": wanted.split,
        "data": wanted.loaded.origin,
        "skipped": wanted.loaded.skipped,
        "model": {
            "name": one.name,
            "origin": one.origin,
            "checkpoint": one.checkpoint,
            "shape": str(opened.shape),
            "parameters": count,
            "weights": one.weights,
            "seed": one.record.get("config", {}).get("seed"),
        },
        "device": device,
        "dtype": one.way.dtype,
        "runtime": runtime,
        "differences": wanted.differences,
    }


def made_by(found: Kept, one: Subject) -> bool:
    """Whether the runtime that is asked for made it; those from before there was a choice were PyTorch's."""
    return str(found.about.get("runtime", TORCH)).split()[0] == one.way.runtime


def has_likelihood(found: Kept) -> bool:
    rows = found.evaluation.predictions
    return any(one.log_likelihood is not None for one in rows) or all(one.negated for one in rows)


def split_of(task: Task, split: str | None, data: Path | None) -> str:
    """The split asked for, else validation; a task of its own source may only have another to judge on."""
    if split is not None or data is not None or "validation" in task.sources:
        return split or "validation"
    judged = [name for name in task.sources if not name.startswith("train")]
    if not judged:
        raise UserError(f"task {task.name} has no split to judge on by itself; give --data, or --split train")
    return judged[0]


def data_of(task: Task, data: Path | None, *, alone: bool) -> Path | None:
    """Where a task's rows are; of several tasks each has a folder, or a file, of its name in `data`."""
    if data is None or alone:
        return data
    found = [path for path in (data / task.name, *sorted(data.glob(f"{task.name}.*"))) if path.exists()]
    if not found:
        raise UserError(f"{data} has no folder {task.name}; several tasks are read from DIR/{task.name} and so on")
    return found[0]
