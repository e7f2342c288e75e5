"""Fine-tuning: a model, the pairs of one task or of several, a config in; a run out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.model.folder import Opened, resolve_device
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair, Task, targets
from deepnarrow.text.batches import Batch, PairBatches, encode_pairs, padded
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import adapt
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.learner import TEXT_TO_TEXT, Learner
from deepnarrow.train.loop import Began, Evaluate, Result, train
from deepnarrow.train.parallel import Execution
from deepnarrow.train.pretrain import HELD_OUT_BATCH, model_of, weights_fingerprint

EncodedPairs = list[tuple[list[int], list[int]]]


class Lesson(NamedTuple):
    """One task of a run: what it trains on, and what it is held against."""

    task: Task
    pairs: Sequence[Pair]
    held_out: Sequence[Pair] = ()
    origin: str | None = None  # where the pairs come from, for the record


def finetune(
    config: Config,
    opened: Opened,
    lessons: Sequence[Lesson],
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    best: str | None = None,
    device: str = "auto",
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
    execution: Execution | None = None,
) -> Result:
    """Train a copy of `opened.model` on pairs of text, of one task or of several in the config's `mixture`.

    Inputs are cut to the config's `input_length`, targets to its `target_length` (None: the task's); in a mixture each
    task is also cut to its own lengths. The best checkpoint is the best by the metric `best`, or else by `evaluate`'s
    first score, or else by the loss on the held-out pairs. Goes on where a run of the same config was left in `out`.
    """
    where = resolve_device(device)
    adapt.check(config, execution)
    tokenizer = checked(config, opened, lessons)
    learned = [encoded(config, lesson, targets(lesson.task, lesson.pairs), tokenizer, lessons) for lesson in lessons]
    for lesson, pairs in zip(lessons, learned, strict=True):
        if not pairs:
            raise UserError(f"task {lesson.task.name} has no pairs to train on here; check the data")
    model, learner = subject(config, opened, lessons)
    return train(
        config,
        model,
        PairBatches(
            sources=learned,
            seed=config.seed,
            batch=config.batch,
            mixture=config.mixture,
            batching=config.batching,
            input_length=config.input_length,
            target_length=longest_target(config, lessons),
        ),
        out,
        tokenizer=tokenizer,
        device=where,
        held_out=held_out_batches(config, lessons, tokenizer),
        evaluate=evaluate,
        best=best,
        kind="finetune",
        origin=origin(opened, lessons, learned),
        peak_flops=peak_flops,
        tensorboard=tensorboard,
        quiet=quiet,
        began=began,
        execution=execution,
        learner=learner,
    )


def subject(config: Config, opened: Opened, lessons: Sequence[Lesson]) -> tuple[T5, Learner]:
    """The model that is trained, a copy of the opened one, and how."""
    if config.adapt != "full":
        labels = [label for lesson in lessons for label in lesson.task.labels or ()]
        return adapt.subject(config, opened, list(dict.fromkeys(labels)))
    if opened.model.prompt is not None:
        raise UserError(f"{opened.origin} is a soft prompt over a frozen model; fine-tune its base instead")
    model = model_of(config)
    model.load_state_dict(opened.model.state_dict())
    return model, TEXT_TO_TEXT


def checked(config: Config, opened: Opened, lessons: Sequence[Lesson]) -> Tokenizer:
    """The model's tokenizer, once everything fits together."""
    if config.objective != PAIRS:
        raise UserError(f'fine-tuning needs the objective "pairs", not {config.objective!r}')
    if parse(config.shape) != opened.shape:
        raise UserError(f"the config is for a {config.shape}, but {opened.origin} is a {opened.shape}")
    if opened.tokenizer is None:
        raise UserError(f"{opened.origin} has no tokenizer, so text cannot be turned into ids; add its spiece.model")
    names = [lesson.task.name for lesson in lessons]
    if not names:
        raise UserError("name at least one task to train on")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"task {twice[0]} stands twice in the mixture; give it a larger rate instead")
    return opened.tokenizer


def encoded(
    config: Config, lesson: Lesson, texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, lessons: Sequence[Lesson]
) -> EncodedPairs:
    input_length, target_length = config.input_length, config.target_length or lesson.task.target_tokens
    if len(lessons) > 1:  # in a mixture the config holds what the longest task needs
        input_length = min(input_length, lesson.task.input_tokens)
        target_length = min(target_length, lesson.task.target_tokens)
    return encode_pairs(texts, tokenizer, input_length, target_length)


def longest_target(config: Config, lessons: Sequence[Lesson]) -> int:
    return config.target_length or max(lesson.task.target_tokens for lesson in lessons)


def held_out_batches(config: Config, lessons: Sequence[Lesson], tokenizer: Tokenizer) -> list[Batch]:
    """The first `eval_examples` held-out pairs of every task; of several accepted answers the first."""
    found: EncodedPairs = []
    for lesson in lessons:
        pairs = [pair for pair in lesson.held_out[: config.eval_examples] if not pair.negated]
        texts = [(pair.inputs, pair.accepted[0]) for pair in pairs]
        found += encoded(config, lesson, texts, tokenizer, lessons)
    return ordered_batches(found)


def ordered_batches(pairs: EncodedPairs, batch: int = HELD_OUT_BATCH) -> list[Batch]:
    """Each pair once, long inputs together so that little is padded."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    pieces = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    return [Batch(padded([pair[0] for pair in piece]), padded([pair[1] for pair in piece])) for piece in pieces]


def origin(opened: Opened, lessons: Sequence[Lesson], learned: Sequence[EncodedPairs]) -> dict[str, Any]:
    """What a run says of where it comes from. With one task its entries are plain, with several they are lists."""
    assert opened.tokenizer is not None
    tasks = [lesson.task for lesson in lessons]
    described: dict[str, Sequence[Any]] = {
        "task": [task.name for task in tasks],
        "task_version": [task.version for task in tasks],
        "task_spec": [task.made_from for task in tasks],
        "data": [lesson.origin for lesson in lessons],
        "pairs": [len(pairs) for pairs in learned],
    }
    plain: Mapping[str, Any] = described if len(tasks) > 1 else {name: values[0] for name, values in described.items()}
    data = learned if len(tasks) > 1 else learned[0]
    return {
        "model": opened.origin,
        **plain,
        "fingerprints": {
            "task": ", ".join(f"{task.name} version {task.version}" for task in tasks),
            "tokenizer": opened.tokenizer.fingerprint,
            "training data": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
            "model": weights_fingerprint(opened.model),
        },
    }
