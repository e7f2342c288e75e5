"""Evaluation of an encoder with a head, in the words of any other: the same items, metrics, intervals and records.

    classify   the task's metrics of the likeliest label, with the probability of each label
    tag        the task's metrics of the tags, written one for each word
    embed      retrieval: each input among all first answers, by cosine. `retrieval_accuracy` is how often the nearest
               is an accepted one, `mrr` the mean of 1 / rank of the best accepted one, ranks over distinct texts

A head answers in one pass of the encoder; there is no search.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.measure.confidence import label_scores
from deepnarrow.measure.evaluate import Answers, Evaluation, Prediction, baseline, encode, predicted, scores_of
from deepnarrow.model.encoding import embed, probabilities, tags
from deepnarrow.model.heads import OpenedHead
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.significance import interval

SEARCH = {"classify": "a head's likeliest label", "tag": "a head's likeliest tags", "embed": "the nearest vector"}
MOST_AT_ONCE = 2**24  # cosines in memory at a time


def evaluate_head(
    opened: OpenedHead,
    task: Task,
    pairs: Sequence[Pair],
    *,
    tokens: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    progress: bool = True,
) -> Evaluation:
    """Score an encoder with a head on pairs of a task. `tokens` is what one batch holds; None: what is quick.

    Raises `UserError` where the head cannot answer the task: no pairs, or other labels than it was trained on.
    """
    if not pairs:
        raise UserError(f"there are no pairs of task {task.name} to score")
    head = opened.head
    texts = [pair.inputs for pair in pairs]
    rows, truncated = encode(texts, opened.tokenizer, head.input_tokens)
    if head.kind == "embed":
        return retrieval(
            opened, task, pairs, rows, truncated, tokens=tokens, seed=seed, samples=samples, progress=progress
        )
    began = time.perf_counter()
    if head.kind == "classify":
        check_labels(opened, task, pairs)
        shares = probabilities(opened, texts, tokens=tokens, progress=progress)
        best = shares.argmax(axis=1)
        sure = np.log(shares.max(axis=1)).tolist()
        answers = Answers([head.labels[place] for place in best], sure, shares)
    else:
        tagged = tags(opened, [text.split(" ") for text in texts], tokens=tokens, progress=progress)
        answers = Answers([" ".join(one.tags) for one in tagged], [one.log_probability for one in tagged], None)
        truncated = 0  # long sentences are read in parts
    seconds = time.perf_counter() - began
    made = predicted(replace(task, labels=head.labels), pairs, rows, answers, None)
    return Evaluation(
        task=task.name,
        task_version=task.version,
        scores=scores_of(task, made, samples=samples, seed=seed),
        baseline=baseline(task, pairs),
        baseline_name=task.baseline.name,
        n=len(pairs),
        truncated=truncated,
        search=SEARCH[head.kind],
        seconds=seconds,
        predictions=made,
        more=label_scores(made, samples, seed),
        signatures={metric.name: said for metric in task.metrics if (said := metric.signature(pairs))},
    )


def check_labels(opened: OpenedHead, task: Task, pairs: Sequence[Pair]) -> None:
    """A head that has never seen any of the answers was trained on something else."""
    known = set(opened.head.labels)
    if not any(answer.strip() in known for pair in pairs for answer in pair.accepted):
        raise UserError(
            f"{opened.origin} knows the labels {', '.join(sorted(known)[:6])}, none of which answers task {task.name}; "
            f"it was trained on {opened.head.task or 'another task'}"
        )


def retrieval(
    opened: OpenedHead,
    task: Task,
    pairs: Sequence[Pair],
    rows: Sequence[Sequence[int]],
    truncated: int,
    *,
    tokens: int | None,
    seed: int,
    samples: int,
    progress: bool,
) -> Evaluation:
    """How often each input finds its own answer among those of all pairs."""
    pool = list(dict.fromkeys(answer for pair in pairs for answer in pair.accepted[:1]))
    if len(pool) < 2:
        raise UserError(f"retrieval needs two different answers to choose from; task {task.name} has {len(pool)} here")
    began = time.perf_counter()
    asked = embed(opened, [pair.inputs for pair in pairs], normalise=True, tokens=tokens, progress=progress)
    kept = embed(opened, pool, normalise=True, tokens=tokens, progress=progress)
    places = {text: place for place, text in enumerate(pool)}
    own = [sorted({places[text] for text in pair.accepted if text in places}) for pair in pairs]
    nearest, ranks = ranked(asked, kept, own)
    seconds = time.perf_counter() - began
    found = {"retrieval_accuracy": (ranks == 1).astype(float), "mrr": 1.0 / ranks}
    size = len(pool)
    by_chance = {"retrieval_accuracy": 100 / size, "mrr": 100 * float((1 / np.arange(1, size + 1)).mean())}
    made = [
        Prediction(
            number=place,
            inputs=pair.inputs,
            accepted=pair.accepted,
            prediction=pool[nearest[place]],
            scores={name: float(items[place]) for name, items in found.items()},
            input_tokens=len(rows[place]),
            log_probability=None,
            group=pair.group,
            negated=pair.negated,
        )
        for place, pair in enumerate(pairs)
    ]
    return Evaluation(
        task=task.name,
        task_version=task.version,
        scores={name: interval(items, samples=samples, seed=seed) for name, items in found.items()},
        baseline=by_chance,
        baseline_name="chance",
        n=len(pairs),
        truncated=truncated,
        search=f"{SEARCH['embed']} of {size:,}",
        seconds=seconds,
        predictions=made,
    )


def ranked(asked_ND: np.ndarray, kept_MD: np.ndarray, own: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each row, the place of the nearest of `kept`, and the rank, from 1, of the nearest of its own.

    Equally near ones count as before its own, so that vectors all alike score nothing.

    >>> kept = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> [found.tolist() for found in ranked(np.array([[0.0, 1.0], [1.0, 0.0]]), kept, [[2], [0]])]
    [[1, 0], [2, 1]]
    """
    nearest, ranks = np.zeros(len(asked_ND), int), np.zeros(len(asked_ND), int)
    step = max(1, MOST_AT_ONCE // len(kept_MD))
    for start in range(0, len(asked_ND), step):
        cosines = asked_ND[start : start + step] @ kept_MD.T
        nearest[start : start + step] = cosines.argmax(axis=1)
        for place, row in enumerate(cosines, start):
            best = row[list(own[place])].max()
            others = np.delete(row, list(own[place]))
            ranks[place] = 1 + int((others >= best).sum())
    return nearest, ranks
