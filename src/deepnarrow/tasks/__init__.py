"""Tasks: what text goes in, what text should come out, and how it is scored.

A task is one declarative entry in a file of this folder. Its version rises whenever its text or its scoring changes,
so that old numbers stop matching. Rows come from its own source or from a user's files; both give the same pairs.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import sha256
from deepnarrow.tasks.baselines import Baseline
from deepnarrow.tasks.metrics import Metric
from deepnarrow.tasks.pair import Pair

__all__ = [
    "Loaded", "Pair", "Row", "Source", "Task", "add", "answers", "column", "describe", "get", "hub", "label", "load",
    "load_pairs", "names", "targets", "text",
]  # fmt: skip

Row = dict[str, Any]


class Source(NamedTuple):
    """Where one split comes from: `spec` names it, `rows` opens it, `origin`, once read, says exactly what was read."""

    spec: str
    rows: Callable[[], Iterable[Row]]
    origin: Callable[[], str]


class Loaded(NamedTuple):
    """The pairs of one split, with what a score needs to be believed.

    `origin` names the files with their hash, or the hub's data set with the revision that was read. `skipped` counts
    rows without an answer.
    """

    pairs: list[Pair]
    origin: str
    skipped: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. `to_pair` gives None for a row without an answer, which is then left out and counted.

    With `labels`, a closed set, a model is scored by which label it finds most likely, so it never answers beside the
    set; without, by what it generates. Lengths are tokens, EOS included.
    """

    name: str
    version: int
    about: str  # one line
    sources: Mapping[str, Source]
    to_pair: Callable[[Row], Pair | None]
    metrics: tuple[Metric, ...]
    baseline: Baseline
    input_tokens: int
    target_tokens: int
    labels: tuple[str, ...] | None = None
    every_answer: bool = False  # train on each accepted answer of a pair, not on the first alone
    beam: int = 1  # the width of the paper's search, where it generates
    paper: str | None = None
    made_from: Mapping[str, Any] | None = None  # for a task of a user's own data: what makes it again (own.py)

    @property
    def main_metric(self) -> str:
        """The metric that chooses checkpoints and orders tables: the first one."""
        return self.metrics[0].name


TASKS: dict[str, Task] = {}
SPLIT_FILE = re.compile(
    r"(?P<split>.+?)(-\d+-of-\d+)?\.(?P<kind>(jsonl|ndjson|json|csv|tsv|parquet)(\.gz|\.zst)?)"
)  # "train.jsonl.gz", "train-00000-of-00002.parquet"


def hub(dataset: str, split: str, *, config: str | None = None, start: int = 0, stop: int | None = None) -> Source:
    """A split of a data set on the Hugging Face hub, or its rows from `start` to before `stop`.

    "owner/name@revision" reads another revision than the newest.
    """
    spec = ":".join(part for part in ("hub", dataset, config, split) if part)

    def rows() -> Iterable[Row]:
        from deepnarrow.text import sources

        return islice(sources.rows(spec), start, stop)

    part = f"[{start}:{'' if stop is None else stop}]" if start or stop is not None else ""
    return Source(spec + part, rows, lambda: f"{spec}{part} at {revision(dataset)}")


def revision(dataset: str) -> str:
    """The commit that the hub serves now; asked for, never assumed."""
    from huggingface_hub import dataset_info

    name, _, branch = dataset.partition("@")
    try:
        return dataset_info(name, revision=branch or None).sha or "an unknown revision"
    except Exception:  # the network went away, or the files came out of a cache; the rows are read all the same
        return "an unknown revision"


def from_file(path: Path) -> Source:
    """A file's rows; its origin is its name and the beginning of its SHA-256."""

    def rows() -> Iterable[Row]:
        from deepnarrow.text import sources

        return sources.rows(path)

    return Source(str(path), rows, lambda: f"{path.name} (sha256 {sha256(path)[:12]})")


def add(task: Task) -> Task:
    if task.name in TASKS:
        raise ValueError(f"task {task.name!r} is already defined")
    return TASKS.setdefault(task.name, task)


def get(name: str) -> Task:
    """Find a task by name, or make one of a user's file or folder (see own.py).

    An unknown name is a `UserError` with the nearest ones.
    """
    known = names()
    if name in TASKS:
        return TASKS[name]
    from deepnarrow.tasks import own

    if own.is_path(name):
        return own.own_task(name)
    raise UserError(f"unknown task {name!r}; {nearest(name, known)} (Or give a file of your own, as in mytask.jsonl.)")


def names() -> list[str]:
    """Every task. The first call imports this folder's files, so none has to be remembered."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return sorted(TASKS)


def describe(task: Task) -> dict[str, Any]:
    """What a task is, as JSON would have it."""
    return {
        "name": task.name,
        "version": task.version,
        "about": task.about,
        "paper": task.paper,
        "metrics": [metric.name for metric in task.metrics],
        "labels": task.labels,
        "every_answer": task.every_answer,
        "beam": task.beam,
        "baseline": task.baseline.name,
        "input_tokens": task.input_tokens,
        "target_tokens": task.target_tokens,
        "splits": {split: source.spec for split, source in task.sources.items()},
    }


def targets(task: Task, pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    """What a model learns from: input and target texts. A negated pair teaches nothing and is left out.

    The target is a pair's first accepted answer; with `every_answer` each of them makes a target of its own.
    """
    return [
        (pair.inputs, answer)
        for pair in pairs
        if not pair.negated
        for answer in (pair.accepted if task.every_answer else pair.accepted[:1])
    ]


def load_pairs(task: Task, split: str, *, data: Path | None = None, limit: int | None = None) -> list[Pair]:
    """The pairs of a split; see `load`."""
    return load(task, split, data=data, limit=limit).pairs


def load(task: Task, split: str, *, data: Path | None = None, limit: int | None = None) -> Loaded:
    """Read a split from the task's own source, or from `data`: one file, or a folder with `<split>.jsonl` and the like.

    "train+validation" is both, one after the other. `limit` keeps the first pairs. Raises `UserError` for an unknown
    split, a missing file, a missing column, and where no row has an answer.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} leaves nothing of task {task.name}; ask for 1 or more")
    parts = list(dict.fromkeys(part.strip() for part in split.split("+")))
    if data is None:
        sources = [own_source(task, part) for part in parts]
    else:
        paths = dict.fromkeys(path for part in parts for path in files(Path(data), part))
        sources = [from_file(path) for path in paths]
    opened: list[Source] = []

    def every() -> Iterator[Pair | None]:
        for source in sources:
            opened.append(source)
            yield from read(task, source)

    pairs: list[Pair] = []
    skipped = 0
    for pair in every():
        if pair is None:
            skipped += 1
        else:
            pairs.append(pair)
            if len(pairs) == limit:
                break
    origin = ", ".join(source.origin() for source in opened)
    if not pairs:
        remedy = "; a folder with train.jsonl and validation.jsonl leaves nothing to chance" if task.made_from else ""
        raise UserError(f"no row with an answer for task {task.name} in {origin}: {skipped} rows were read{remedy}")
    return Loaded(pairs, origin, skipped)


def read(task: Task, source: Source) -> Iterator[Pair | None]:
    for number, row in enumerate(source.rows(), start=1):
        try:
            pair = task.to_pair(row)
        except UserError as error:
            raise UserError(f"{source.spec}, row {number}, does not suit task {task.name}: {error}") from None
        yield pair


def own_source(task: Task, split: str) -> Source:
    if split not in task.sources:
        raise UserError(f"task {task.name} has no split {split!r}; {nearest(split, task.sources)}")
    return task.sources[split]


def files(where: Path, split: str) -> list[Path]:
    """The file named, or a folder's files of the split: `train.csv.gz`, or `train-00000-of-00002.parquet` and so on."""
    if not where.is_dir():
        return [where]
    found = sorted(path for path in where.iterdir() if path.is_file() and not path.name.startswith("."))
    chosen = [path for path in found if (match := SPLIT_FILE.fullmatch(path.name)) and match["split"] == split]
    kinds = {SPLIT_FILE.fullmatch(path.name)["kind"] for path in chosen}  # type: ignore[index]
    if len(kinds) == 1:
        return chosen
    there = ", ".join(path.name for path in found[:12]) or "nothing"
    if chosen:
        raise UserError(f"{where} holds the split {split} more than once ({there}); name one file")
    raise UserError(
        f"{where} holds no {split}.jsonl (or .csv, .tsv, .parquet); it holds {there}; name one file or split"
    )


def column(row: Row, *names: str) -> Any:
    """The first of these columns that the row has with a value."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UserError(f"a column {' or '.join(names)} is needed; the row has {', '.join(map(str, row)) or 'none'}")


def text(row: Row, *names: str) -> str:
    """The same, where only text will do."""
    value = column(row, *names)
    if not isinstance(value, str):
        raise UserError(f"column {' or '.join(names)} must be text, not {json.dumps(value, default=str)[:60]}")
    return value


def label(row: Row, labels: Sequence[str], *names: str) -> str | None:
    """The label's word, from the word or its number (a CSV file's numbers are text); None for -1, GLUE's "unknown".

    >>> [label({"label": value}, ("False", "True"), "label") for value in (1, "0", "true", False, -1)]
    ['True', 'False', 'True', 'False', None]
    """
    value = column(row, *names)
    written = str(value).strip().lower()
    if written == "-1":
        return None
    words = {word.lower(): word for word in labels}
    if written in words:
        return words[written]
    if written.isdecimal() and int(written) < len(labels):
        return labels[int(written)]
    raise UserError(f"label {value!r} is neither a number from 0 to {len(labels) - 1} nor one of {', '.join(labels)}")


def answers(row: Row, *names: str) -> list[str]:
    """Accepted answers from any shape they come in: a text, a list, SQuAD's `{"text": [...]}`, or a list as JSON text.

    >>> answers({"answers": {"text": ["Ada"], "answer_start": [7]}}, "answers"), answers({"answer": "Ada"}, "answer")
    (['Ada'], ['Ada'])
    """
    value = unpacked(column(row, *names))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
        raise UserError(f"column {' or '.join(names)} must hold texts, not {json.dumps(value, default=str)[:60]}")
    return [one.strip() for one in found if one.strip()]


def unpacked(value: Any) -> Any:
    """The answers inside SQuAD's record, or inside JSON text where it holds a record or a list of texts."""
    if isinstance(value, Mapping):
        return value.get("text", value)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            inner = unpacked(json.loads(value))
        except json.JSONDecodeError:
            return value
        if isinstance(inner, list) and all(isinstance(one, str) for one in inner):
            return inner
    return value
