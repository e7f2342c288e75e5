"""Evaluation: a model's answers to a task, scored, with intervals, beside an answer that needs no learning.

A task with a closed set of labels is scored by which label the model finds most likely; any other by what it generates.
The first cannot answer beside the set, so on an untrained model it scores chance where generation scores nothing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.files import write_text
from deepnarrow.measure.ledger import Record, record
from deepnarrow.model.decode import Greedy, Search, generate
from deepnarrow.model.folder import Opened
from deepnarrow.model.likelihood import choose, rank
from deepnarrow.model.t5 import T5
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.significance import Interval, interval
from deepnarrow.text.tokenizer import Tokenizer

LIKELIHOOD = "likelihood of each label"


@dataclass(frozen=True)
class Prediction:
    """One item: what was asked, what is right, what the model said, and what each metric gave for it.

    A metric of the whole set, such as Matthews' correlation, has no entry in `scores`.
    """

    inputs: str
    accepted: list[str]
    prediction: str
    scores: dict[str, float]  # 0 to 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on a task. Scores are in percent, each with a 95 % interval over the items."""

    task: str
    task_version: int
    scores: dict[str, Interval]  # the task's main metric first
    baseline: dict[str, float]  # the same metrics for the task's baseline, on the same items
    baseline_name: str
    n: int
    truncated: int  # inputs cut to the task's length
    search: str
    seconds: float  # the model's part
    predictions: list[Prediction]

    @property
    def main(self) -> Interval:
        """The main metric's score."""
        return next(iter(self.scores.values()))

    def write_predictions(self, path: Path) -> None:
        """One JSON object a line: inputs, accepted, prediction, scores."""
        write_text(path, "".join(json.dumps(vars(one), ensure_ascii=False) + "\n" for one in self.predictions))

    def records(
        self,
        *,
        model: str,
        shape: str,
        split: str,
        seed: int | None = None,
        parameters: int | None = None,
        conditions: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """One ledger record for each metric. `conditions`, such as a limit, keep it apart from the plain score."""
        return [
            record(
                kind="score",
                shape=shape,
                model=model,
                metric=metric,
                value=found.value,
                unit="%",
                task=self.task,
                task_version=self.task_version,
                split=split,
                low=found.low,
                high=found.high,
                n=found.n,
                seed=seed,
                parameters=parameters,
                extra={
                    "baseline": self.baseline[metric],
                    "baseline_name": self.baseline_name,
                    "search": self.search,
                    "truncated": self.truncated,
                    **({"conditions": dict(conditions)} if conditions else {}),
                    **(extra or {}),
                },
            )
            for metric, found in self.scores.items()
        ]


def evaluate(
    opened: Opened,
    task: Task,
    pairs: Sequence[Pair],
    *,
    batch: int = 32,
    search: Search | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    progress: bool = True,
) -> Evaluation:
    """Score a model on pairs of a task.

    search      how to generate, greedily by default; a task with labels is scored by likelihood and does not search
    max_tokens  the longest answer, EOS counted; the task's `target_tokens` by default
    seed        of the intervals' resamples, `samples` of them

    Scores do not depend on `batch`, but for ties in floating point. Raises `UserError` for a model without a
    tokenizer and for no pairs.
    """
    model, tokenizer = opened.model, opened.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{opened.origin} has no tokenizer beside its weights; put spiece.model or tokenizer.json there"
        )
    if not pairs:
        raise UserError(f"there are no pairs of task {task.name} to score")
    ids, truncated = encode([pair.inputs for pair in pairs], tokenizer, task.input_tokens)
    began = time.perf_counter()
    if task.labels:
        predictions = label(model, tokenizer, ids, task.labels, batch=batch, progress=progress)
    else:
        most = task.target_tokens if max_tokens is None else max_tokens
        predictions = write(model, tokenizer, ids, search or Greedy(), max_tokens=most, batch=batch, progress=progress)
    seconds = time.perf_counter() - began
    items = {metric.name: metric.items(predictions, pairs) for metric in task.metrics}
    return Evaluation(
        task=task.name,
        task_version=task.version,
        scores={
            metric.name: interval(items[metric.name], metric.combine, samples=samples, seed=seed)
            for metric in task.metrics
        },
        baseline=baseline(task, pairs),
        baseline_name=task.baseline.name,
        n=len(pairs),
        truncated=truncated,
        search=LIKELIHOOD if task.labels else repr(search or Greedy()),
        seconds=seconds,
        predictions=predicted(pairs, predictions, items),
    )


def baseline(task: Task, pairs: Sequence[Pair]) -> dict[str, float]:
    """The score of the task's baseline on these pairs, by metric."""
    answers = task.baseline.answers([pair.inputs for pair in pairs], [pair.accepted for pair in pairs])
    return {metric.name: metric.score(answers, pairs) for metric in task.metrics}


def encode(texts: Sequence[str], tokenizer: Tokenizer, most: int) -> tuple[list[list[int]], int]:
    """Token ids with EOS, at most `most` with it, and how many texts had to be cut."""
    rows = tokenizer.encode_batch(texts)
    return [[*row[: most - 1], tokenizer.eos] for row in rows], sum(len(row) >= most for row in rows)


def label(
    model: T5,
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    batch: int,
    progress: bool,
) -> list[str]:
    """The likeliest label for each input. EOS is part of a label, so that one may be the beginning of another."""
    choices = [[*tokenizer.encode(one), tokenizer.eos] for one in labels]
    return [labels[place] for place in choose(rank(model, ids, choices, batch=batch, progress=progress))]


def write(
    model: T5,
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    search: Search,
    *,
    max_tokens: int,
    batch: int,
    progress: bool,
) -> list[str]:
    """The best generated answer for each input, as text."""
    outputs = generate(
        model,
        ids,
        search,
        max_tokens=max_tokens,
        batch=batch,
        eos=tokenizer.eos,
        vocab_limit=tokenizer.size,
        progress=progress,
    )
    return [tokenizer.decode(answers[0].ids) for answers in outputs]


def predicted(pairs: Sequence[Pair], predictions: Sequence[str], items: Mapping[str, np.ndarray]) -> list[Prediction]:
    single = {name: rows.tolist() for name, rows in items.items() if rows.ndim == 1}
    return [
        Prediction(pair.inputs, pair.accepted, text, {name: rows[place] for name, rows in single.items()})
        for place, (pair, text) in enumerate(zip(pairs, predictions, strict=True))
    ]
