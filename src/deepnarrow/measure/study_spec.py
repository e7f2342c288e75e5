"""What a study is: which shapes, trained on what, asked what, timed how. One TOML file, one frozen value.

name = "Three shapes of equal size"
shapes = ["tiny-nl2", "tiny", "tiny-dm128-nl16"]
seeds = [0, 1]

[corpus]
sources = ["articles.jsonl.gz"]     # or `folder = "..."`, token shards that are already built
vocab = 8192                        # trains a vocabulary; or `tokenizer = "..."`, one that exists

[pretrain]                          # any key of a training config
steps = 2000
batch = 32
input_length = 256

[[tasks]]
name = "sst2"
data = "sst2"                       # a folder of files; left out, the task's own source
split = "validation"
steps = 500                         # and any other key of a training config

[bench]
input_length = 256
target_length = 32
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes import parse

Settings = Mapping[str, Any]  # keys of a training config, and their values


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """Where the pretraining text comes from: built shards in `folder`, or `sources` to build them from."""

    folder: str | None = None
    sources: tuple[str, ...] = ()
    tokenizer: str | None = None
    vocab: int | None = None  # ids of the vocabulary to train, sentinels included
    held_out: float = 0.02  # share of the documents kept for the held-out loss

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.sources):
            raise UserError("a study's [corpus] needs `sources`, or `folder` with built shards, not both")
        if self.sources and (self.tokenizer is None) == (self.vocab is None):
            raise UserError("a study's [corpus] with `sources` needs either `tokenizer` or `vocab`")


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task: where its rows are, how long to fine-tune, on what to judge."""

    name: str
    data: str | None = None
    train_split: str = "train"
    split: str = "validation"
    train_items: int | None = None
    items: int | None = None  # judged items; None: the whole split
    training: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """At which lengths (tokens) the shapes are timed, how many examples at once, how often."""

    input_length: int = 128
    target_length: int = 32
    batch: int = 1
    repeats: int = 7
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Study:
    name: str
    shapes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    corpus: CorpusPlan
    pretrain: Settings
    tasks: tuple[TaskPlan, ...]
    bench: BenchPlan = field(default_factory=BenchPlan)

    def __post_init__(self) -> None:
        if not self.shapes or not self.seeds or not self.tasks:
            raise UserError("a study needs at least one of each: shapes, seeds, tasks")
        object.__setattr__(self, "shapes", tuple(str(parse(shape)) for shape in self.shapes))
        for what, values in (("shape", self.shapes), ("seed", self.seeds), ("task", [t.name for t in self.tasks])):
            twice = sorted({str(value) for value in values if list(values).count(value) > 1})
            if twice:
                raise UserError(f"the study names {what} {twice[0]} twice")

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def fingerprint(*parts: object) -> str:
    """Twelve hexadecimal digits that change when any part does; what a ledger line is recognised by.

    >>> fingerprint({"steps": 3}) == fingerprint({"steps": 3})
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=asdict).encode()).hexdigest()[:12]


def read_study(path: Path) -> Study:
    """Read a study's TOML file; unknown keys are refused, paths in it are relative to the file."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such study file: {path}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    return study_from(values, where=str(path), beside=path.parent)


def study_from(values: Mapping[str, Any], *, where: str, beside: Path) -> Study:
    """Build a `Study` from the parsed file `where`; its relative paths are read from `beside`."""
    values = dict(values)
    _check(values, Study, where)
    for name in ("name", "shapes", "corpus", "pretrain", "tasks"):
        if name not in values:
            raise UserError(f"{where} needs {name!r}")
    corpus = dict(values["corpus"])
    _check(corpus, CorpusPlan, f"[corpus] of {where}")
    for key in ("folder", "tokenizer"):
        if key in corpus:
            corpus[key] = _located(corpus[key], beside)
    corpus["sources"] = tuple(_located(source, beside) for source in corpus.get("sources", ()))
    bench = dict(values.get("bench", {}))
    _check(bench, BenchPlan, f"[bench] of {where}")
    return Study(
        name=str(values["name"]),
        shapes=tuple(values["shapes"]),
        seeds=tuple(values.get("seeds", (0,))),
        corpus=CorpusPlan(**corpus),
        pretrain=dict(values["pretrain"]),
        tasks=tuple(_task(dict(task), where, beside) for task in values["tasks"]),
        bench=BenchPlan(**bench),
    )


def _task(values: dict[str, Any], where: str, beside: Path) -> TaskPlan:
    if "name" not in values:
        raise UserError(f"every [[tasks]] of {where} needs a name")
    own = {key: values.pop(key) for key in list(values) if key in {f.name for f in fields(TaskPlan)} - {"training"}}
    if "data" in own:
        own["data"] = _located(own["data"], beside)
    return TaskPlan(**own, training=values)


def _located(text: str, beside: Path) -> str:
    """A path relative to the study's file; names such as `builtin:python` and existing absolute paths stay."""
    return text if ":" in text or text == "bytes" else str(beside / text)


def _check(values: Mapping[str, Any], kind: type, where: str) -> None:
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
