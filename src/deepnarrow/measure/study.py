"""A study: several shapes through one protocol, every number into one ledger.

Each shape and seed is pretrained on equal tokens, fine-tuned on every task and judged on the same items; then all
shapes are timed in turn. Whatever is finished is in the ledger and is not done again; whatever was broken off goes on
from its last checkpoint. So starting a study again is how it is resumed, and shapes or seeds may be added to it.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.measure import ledger
from deepnarrow.measure.ceilings import ceilings
from deepnarrow.measure.evaluate import evaluate
from deepnarrow.measure.ledger import Record, record
from deepnarrow.measure.speed import Entry, conditions_here, time_models
from deepnarrow.measure.study_spec import Study, TaskPlan
from deepnarrow.measure.timing import to_records
from deepnarrow.model.folder import Opened, open_model, resolve_device
from deepnarrow.shapes import parse
from deepnarrow.shapes.counts import parameters
from deepnarrow.tasks import Pair, Task, get, load_pairs
from deepnarrow.text import tokenizer as tokenizers
from deepnarrow.text.building import build
from deepnarrow.text.corpus import Corpus, open_corpus
from deepnarrow.text.sources import documents
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.text.train_tokenizer import train as train_tokenizer
from deepnarrow.train.config import Config
from deepnarrow.train.finetune import Lesson, finetune
from deepnarrow.train.pretrain import fit_vocab, pretrain
from deepnarrow.train.recipes import finetune_miniature, miniature

FILE = "study.json"
MAY_GROW = ("name", "shapes", "seeds")  # what a study in a folder may be changed in

Say = Callable[[str], None]


def run_study(
    study: Study, out: Path, *, device: str = "auto", command: str | None = None, say: Say | None = None
) -> list[Record]:
    """Do what is not done yet and return every record of the study. `command` is how to do it again, for the report.

    Raises `UserError` where `out` holds another study, and what its parts raise: an interrupt leaves everything so that
    the same call goes on.
    """
    say = say or announce
    enter(study, out, command)
    work = Work(study=study, out=out, device=device, say=say, corpus=corpus_of(study, out, say))
    tasks = [(plan, get(plan.name)) for plan in study.tasks]
    stages = [(shape, seed) for seed in study.seeds for shape in work.shapes]
    for number, (shape, seed) in enumerate(stages, start=1):
        work.where = f"{number}/{len(stages)} {shape}, seed {seed}"
        work.pretrain(shape, seed)
        for plan, task in tasks:
            work.finetune_and_judge(shape, seed, plan, task)
    work.time_shapes()
    return work.records()


@dataclass
class Work:
    """A study in progress: where it is kept, what it reads, which line of work it is at."""

    study: Study
    out: Path
    device: str
    say: Say
    corpus: Corpus
    where: str = ""

    @property
    def shapes(self) -> list[str]:
        """The study's shapes with the vocabulary of its corpus."""
        return [fit_vocab(miniature(shape), self.corpus).shape for shape in self.study.shapes]

    @property
    def ledger(self) -> Path:
        return self.out / ledger.FILE

    def records(self) -> list[Record]:
        return ledger.read(self.ledger) if self.ledger.exists() else []

    def done(self, **what: Any) -> bool:
        return bool(ledger.select(self.records(), **what))

    def run(self, shape: str, seed: int, name: str) -> Path:
        return self.out / "runs" / shape / f"seed-{seed}" / name

    def model_name(self, run: Path) -> str:
        """How records name a run: its path within the study's folder, so that the folder can be moved."""
        return run.relative_to(self.out).as_posix()

    def peak_flops(self, config: Config) -> float:
        return ceilings(str(resolve_device(self.device))).gemm(config.dtype) * 1e9

    def pretrain(self, shape: str, seed: int) -> None:
        if self.done(kind="training", shape=shape, seed=seed, task=None):
            return
        config = miniature(shape, **settings(self.study.pretrain, seed=seed))
        self.say(f"{self.where}: pretraining, {config.steps:,} steps of {config.batch} x {config.input_length} tokens")
        run = self.run(shape, seed, "pretrain")
        result = pretrain(config, self.corpus, run, device=self.device, peak_flops=self.peak_flops(config))
        found = {
            "held_out_loss": (result.held_out_loss, "nats/token"),
            "training_loss": (result.loss, "nats/token"),
            "tokens_per_second": (result.tokens_per_second, "tokens/s"),
        }
        lines = [
            record(
                kind="training",
                shape=shape,
                model=self.model_name(run),
                metric=metric,
                value=value,
                unit=unit,
                seed=seed,
                parameters=parameters(parse(shape)).total,
                extra={"steps": config.steps, "batch": config.batch, "input_length": config.input_length},
            )
            for metric, (value, unit) in found.items()
            if value is not None
        ]
        ledger.append(self.ledger, lines)

    def finetune_and_judge(self, shape: str, seed: int, plan: TaskPlan, task: Task) -> None:
        if self.done(kind="score", shape=shape, seed=seed, task=task.name):
            return
        start = open_model(self.run(shape, seed, "pretrain"))
        config = finetune_miniature(shape, **settings({"input_length": task.input_tokens, **plan.training}, seed=seed))
        self.say(f"{self.where}: fine-tuning on {task.name}, {config.steps:,} steps of {config.batch} examples")
        run = self.run(shape, seed, task.name)
        lesson = Lesson(task, pairs_of(plan, task, plan.train_split, plan.train_items))
        finetune(config, start, [lesson], run, device=self.device, peak_flops=self.peak_flops(config))
        self.judge(run, shape, seed, plan, task, config)

    def judge(self, run: Path, shape: str, seed: int, plan: TaskPlan, task: Task, config: Config) -> None:
        pairs = pairs_of(plan, task, plan.split, plan.items)
        self.say(f"{self.where}: judging on {len(pairs):,} items of {task.name}")
        opened: Opened = open_model(run, device=str(resolve_device(self.device)))
        found = evaluate(opened, task, pairs, seed=seed)
        found.write_predictions(self.out / "predictions" / shape / f"seed-{seed}" / f"{task.name}.jsonl")
        ledger.append(
            self.ledger,
            found.records(
                model=self.model_name(run),
                shape=shape,
                split=plan.split,
                seed=seed,
                parameters=parameters(parse(shape)).total,
                extra={"steps": config.steps, "batch": config.batch},
            ),
        )

    def time_shapes(self) -> None:
        """Time all shapes again when one is new: only what is timed in turn may be compared."""
        timed = {one.shape for one in ledger.select(self.records(), kind="timing")}
        if timed >= set(self.shapes):
            return
        plan = self.study.bench
        at = conditions_here(
            input_length=plan.input_length,
            target_length=plan.target_length,
            batch=plan.batch,
            dtype=plan.dtype,
            device=str(resolve_device(self.device)),
        )
        self.say(f"timing {len(self.shapes)} shapes in turn, {plan.repeats} rounds")
        timings = time_models([Entry(shape, parse(shape)) for shape in self.shapes], at, repeats=plan.repeats)
        for timing in timings:
            ledger.append(self.ledger, to_records(timing))


def enter(study: Study, out: Path, command: str | None) -> None:
    """Write down what this folder's study is, or check that it is this one."""
    path = out / FILE
    if path.exists():
        old, new = read_json(path), study.to_json()
        changed = [key for key in new if key not in MAY_GROW and old.get(key) != new[key]]
        if changed:
            raise UserError(
                f"{out} holds a study with another {' and '.join(changed)}; choose another --out for this one "
                "(shapes and seeds may be added to a study, its protocol may not change)"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no study; choose another --out")
    write_json(path, {**study.to_json(), "command": command})


def corpus_of(study: Study, out: Path, say: Say) -> Corpus:
    """The study's token shards, built (or built on) when they are not given."""
    plan = study.corpus
    if plan.folder is not None:
        return open_corpus(Path(plan.folder))
    where = out / "corpus"
    if not (where / "manifest.json").exists():
        say(f"reading {', '.join(plan.sources)}")
    return build(list(plan.sources), tokenizer_of(study, out, say), where, held_out=plan.held_out)


def tokenizer_of(study: Study, out: Path, say: Say) -> Tokenizer:
    plan = study.corpus
    if plan.tokenizer is not None:
        return tokenizers.load(plan.tokenizer)
    folder = out / "vocabulary"
    if not folder.exists():
        assert plan.vocab is not None
        say(f"training a vocabulary of {plan.vocab:,}")
        texts = (document.text for source in plan.sources for document in documents(source))
        return train_tokenizer(texts, vocab=plan.vocab, out=folder)
    return tokenizers.load(folder)


def pairs_of(plan: TaskPlan, task: Task, split: str, limit: int | None) -> list[Pair]:
    return load_pairs(task, split, data=Path(plan.data) if plan.data else None, limit=limit)


def settings(values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keys of a training config as a study writes them; the shape and the seed are the study's to choose."""
    for key in ("shape", "seed"):
        if key in values:
            raise UserError(f"a study names its {key}s at the top, not inside its training settings")
    return {**values, **more}


def announce(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
