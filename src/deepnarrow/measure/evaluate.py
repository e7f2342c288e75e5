"""Evaluation: a model's answers to a task, scored, with intervals, beside an answer that needs no learning.

Two protocols. Plainly, a task with a closed set of labels is scored by which label the model finds most likely, any
other by what it generates greedily: the first cannot answer beside the set, so on an untrained model it scores chance
where generation scores nothing. As T5 (Raffel et al. 2020, arXiv:1910.10683, sections 2.4 and 3.1.2), labels are
generated too and anything beside the set is wrong, and tasks with a beam are searched with it, length penalty 0.6.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.files import write_text
from deepnarrow.measure.answerer import Answerer, answerer
from deepnarrow.measure.confidence import label_scores, likelihood_scores, shares
from deepnarrow.measure.ledger import Record, record
from deepnarrow.model.decode import Beam, Greedy, Sample, Search
from deepnarrow.model.folder import Opened
from deepnarrow.model.inference import distinct
from deepnarrow.model.likelihood import choose
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.significance import Interval, interval
from deepnarrow.text.tokenizer import Tokenizer

LIKELIHOOD = "likelihood of each label"
LENGTH_PENALTY = 0.6  # T5's, in Wu et al.'s form


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One item: what was asked, what is right, what the model said, and what each metric gave for it.

    A metric of the whole set or of groups, such as Matthews' correlation, has no entry in `scores`.
    """

    number: int  # the item's place in the data, from 0
    inputs: str
    accepted: list[str]
    prediction: str
    scores: dict[str, float]  # 0 to 1
    input_tokens: int  # read by the model, EOS included
    log_probability: float | None  # of the prediction with its EOS, in nats; a beam's is divided by its penalty
    probabilities: dict[str, float] | None = None  # of each label, where labels were scored: they add up to 1
    log_likelihood: float | None = None  # of the first accepted answer with its EOS, in nats, where it was asked for
    answer_tokens: int | None = None  # of that answer, EOS included
    group: str | None = None
    negated: bool = False

    @property
    def pair(self) -> Pair:
        return Pair(self.inputs, self.accepted, self.group, self.negated)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on a task. Scores are in percent, each with a 95 % interval over the items.

    `more` holds what is not a score of the answers: gold_probability and ece (both in percent) where labels were
    scored by likelihood, perplexity (a token) and bits_per_byte of the accepted answers where these were asked for.
    """

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
    more: dict[str, Interval] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)  # of the metrics that have one

    @property
    def main(self) -> Interval:
        """The main metric's score."""
        return next(iter(self.scores.values()))

    def write_predictions(self, path: Path) -> None:
        """One JSON object a line, everything of `Prediction` that is known of the item."""
        rows = [{name: value for name, value in asdict(one).items() if value is not None} for one in self.predictions]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

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
                    **({"signature": self.signatures[metric]} if metric in self.signatures else {}),
                    **({"conditions": dict(conditions)} if conditions else {}),
                    **(extra or {}),
                },
            )
            for metric, found in self.scores.items()
        ]


class Answers(NamedTuple):
    """What a model says to each input, and how sure it is."""

    texts: list[str]
    log_probabilities: list[float]
    label_shares: np.ndarray | None  # [N, C], the labels' probabilities among themselves


def evaluate(
    opened: Opened | Answerer,
    task: Task,
    pairs: Sequence[Pair],
    *,
    batch: int | None = None,
    search: Search | None = None,
    as_t5: bool = False,
    likelihood: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    progress: bool = True,
) -> Evaluation:
    """Score a model on pairs of a task.

    opened      a model opened by PyTorch, or whatever else answers for it
    batch       inputs at once; None: a budget of tokens, so that short inputs go many at a time
    search      how to generate, else what the protocol says (see `search_of`)
    as_t5       T5's protocol: labels are generated too, and a task's own beam is used
    likelihood  score each item's first accepted answer too, for perplexity and bits per byte
    max_tokens  the longest answer, EOS counted; the task's `target_tokens` by default
    seed        of the intervals' resamples, `samples` of them

    Scores do not depend on `batch`, but for ties in floating point. Equal inputs are answered once. Raises `UserError`
    for a model without a tokenizer and for no pairs.
    """
    model = answerer(opened)
    tokenizer = tokenizer_of(model)
    if not pairs:
        raise UserError(f"there are no pairs of task {task.name} to score")
    rows, truncated = encode([pair.inputs for pair in pairs], tokenizer, task.input_tokens)
    began = time.perf_counter()
    how = search_of(task, search, as_t5=as_t5)
    answers = answered(model, tokenizer, task, rows, how, batch=batch, max_tokens=max_tokens, progress=progress)
    gold = answer_likelihoods(model, tokenizer, pairs, rows, batch, progress) if likelihood else None
    seconds = time.perf_counter() - began
    predictions = predicted(task, pairs, rows, answers, gold)
    return Evaluation(
        task=task.name,
        task_version=task.version,
        scores=scores_of(task, predictions, samples=samples, seed=seed),
        baseline=baseline(task, pairs),
        baseline_name=task.baseline.name,
        n=len(pairs),
        truncated=truncated,
        search=LIKELIHOOD if how is None else repr(how),
        seconds=seconds,
        predictions=predictions,
        more=label_scores(predictions, samples, seed) | likelihood_scores(predictions, samples, seed),
        signatures={metric.name: said for metric in task.metrics if (said := metric.signature(pairs))},
    )


def tokenizer_of(model: Opened | Answerer) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError(f"{model.origin} has no tokenizer beside its weights; put spiece.model or tokenizer.json there")
    return model.tokenizer


def search_of(task: Task, search: Search | None = None, *, as_t5: bool = False) -> Search | None:
    """How a task's answers are found; None is the likelihood of its labels."""
    if task.labels and not as_t5:
        return None
    if search is not None:
        return search
    if as_t5 and task.beam > 1:
        return Beam(task.beam, length_penalty=LENGTH_PENALTY, normaliser="wu", early_stopping="never")
    return Greedy()


def scores_of(task: Task, predictions: Sequence[Prediction], *, samples: int, seed: int) -> dict[str, Interval]:
    """Every metric of the task over these items, with its interval."""
    texts, pairs = [one.prediction for one in predictions], [one.pair for one in predictions]
    return {
        metric.name: interval(metric.items(texts, pairs), metric.combine, samples=samples, seed=seed)
        for metric in task.metrics
    }


def baseline(task: Task, pairs: Sequence[Pair]) -> dict[str, float]:
    """The score of the task's baseline on these pairs, by metric."""
    answers = task.baseline.answers([pair.inputs for pair in pairs], [pair.accepted for pair in pairs])
    return {metric.name: metric.score(answers, pairs) for metric in task.metrics}


def encode(texts: Sequence[str], tokenizer: Tokenizer, most: int) -> tuple[list[list[int]], int]:
    """Token ids with EOS, at most `most` with it, and how many texts had to be cut."""
    rows = tokenizer.encode_batch(texts)
    return [[*row[: most - 1], tokenizer.eos] for row in rows], sum(len(row) >= most for row in rows)


def answered(
    model: Answerer,
    tokenizer: Tokenizer,
    task: Task,
    rows: Sequence[Sequence[int]],
    search: Search | None,
    *,
    batch: int | None,
    max_tokens: int | None,
    progress: bool,
) -> Answers:
    """An answer to every input. Equal inputs are answered once, but where answers are drawn at random."""
    different, places = distinct([tuple(row) for row in rows])
    if isinstance(search, Sample):
        different, places = [tuple(row) for row in rows], list(range(len(rows)))
    if search is None:
        assert task.labels is not None
        found = label(model, tokenizer, different, task.labels, batch=batch, progress=progress)
    else:
        most = task.target_tokens if max_tokens is None else max_tokens
        found = write(model, tokenizer, different, search, max_tokens=most, batch=batch, progress=progress)
    return Answers(
        [found.texts[place] for place in places],
        [found.log_probabilities[place] for place in places],
        None if found.label_shares is None else found.label_shares[places],
    )


def label(
    model: Answerer,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    batch: int | None,
    progress: bool,
) -> Answers:
    """The likeliest label for each input. EOS is part of a label, so that one may be the beginning of another."""
    choices = [[*tokenizer.encode(one), tokenizer.eos] for one in labels]
    found = model.rank(rows, choices, batch=batch, progress=progress)
    return Answers([labels[place] for place in choose(found)], found.max(axis=1).tolist(), shares(found))


def write(
    model: Answerer,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    search: Search,
    *,
    max_tokens: int,
    batch: int | None,
    progress: bool,
) -> Answers:
    """The best generated answer for each input, as text."""
    outputs = model.generate(rows, search, max_tokens=max_tokens, batch=batch, progress=progress)
    return Answers([tokenizer.decode(one[0].ids) for one in outputs], [one[0].score for one in outputs], None)


def answer_likelihoods(
    model: Answerer,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    rows: Sequence[Sequence[int]],
    batch: int | None,
    progress: bool,
) -> list[tuple[float, int] | None]:
    """Log-likelihood and tokens of each first accepted answer, EOS included; None where a pair names what is wrong.

    Teacher-forced, and not cut to the task's length: a likelihood is that of the whole answer.
    """
    right = [place for place, pair in enumerate(pairs) if pair.accepted and not pair.negated]
    texts = tokenizer.encode_batch([pairs[place].accepted[0] for place in right])
    asked = [(tuple(rows[place]), (*text, tokenizer.eos)) for place, text in zip(right, texts, strict=True)]
    different, places = distinct(asked)
    nats = model.score([one[0] for one in different], [one[1] for one in different], batch=batch, progress=progress)
    found: list[tuple[float, int] | None] = [None] * len(pairs)
    for item, place in zip(right, places, strict=True):
        found[item] = nats[place], len(different[place][1])
    return found


def predicted(
    task: Task,
    pairs: Sequence[Pair],
    rows: Sequence[Sequence[int]],
    answers: Answers,
    gold: Sequence[tuple[float, int] | None] | None,
) -> list[Prediction]:
    items = {metric.name: metric.items(answers.texts, pairs) for metric in task.metrics if not metric.grouped}
    single = {name: found.tolist() for name, found in items.items() if found.ndim == 1}
    label_shares = None if answers.label_shares is None else answers.label_shares.tolist()
    made = []
    for place, pair in enumerate(pairs):
        nats, tokens = (gold[place] if gold else None) or (None, None)
        made.append(
            Prediction(
                number=place,
                inputs=pair.inputs,
                accepted=pair.accepted,
                prediction=answers.texts[place],
                scores={name: found[place] for name, found in single.items()},
                input_tokens=len(rows[place]),
                log_probability=answers.log_probabilities[place],
                probabilities=dict(zip(task.labels or (), label_shares[place], strict=True)) if label_shares else None,
                log_likelihood=nats,
                answer_tokens=tokens,
                group=pair.group,
                negated=pair.negated,
            )
        )
    return made
