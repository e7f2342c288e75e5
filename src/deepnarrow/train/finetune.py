"""Fine-tuning: a model, a task's pairs, a config in; a run out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError
from deepnarrow.model.folder import Opened, resolve_device
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair, Task
from deepnarrow.text.batches import Batch, PairBatches, encode_pairs, padded
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.loop import Began, Evaluate, Result, train
from deepnarrow.train.parallel import Execution
from deepnarrow.train.pretrain import HELD_OUT_BATCH, model_of, weights_fingerprint

EncodedPairs = list[tuple[list[int], list[int]]]


def finetune(
    config: Config,
    opened: Opened,
    task: Task,
    pairs: Sequence[Pair],
    out: Path,
    *,
    held_out_pairs: Sequence[Pair] = (),
    evaluate: Evaluate | None = None,
    device: str = "auto",
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
    execution: Execution | None = None,
) -> Result:
    """Train a copy of `opened.model` on pairs of text; of several accepted answers the first is the target.

    Lengths are the config's: inputs are cut to `input_length`, targets to `target_length` (None: the task's). The best
    checkpoint is the best by `evaluate`'s first score, else by the loss on `held_out_pairs`. Goes on where a run of
    the same config was left in `out`.
    """
    where = resolve_device(device)
    if config.objective != PAIRS:
        raise UserError(f'fine-tuning needs the objective "pairs", not {config.objective!r}')
    if parse(config.shape) != opened.shape:
        raise UserError(f"the config is for a {config.shape}, but {opened.origin} is a {opened.shape}")
    if opened.tokenizer is None:
        raise UserError(f"{opened.origin} has no tokenizer, so text cannot be turned into ids; add its spiece.model")
    if not pairs:
        raise UserError(f"task {task.name} has no pairs to train on here; check the data")
    train_ids = encoded(config, task, pairs, opened.tokenizer)
    held_out = ordered_batches(encoded(config, task, held_out_pairs[: config.eval_examples], opened.tokenizer))
    model = model_of(config)
    model.load_state_dict(opened.model.state_dict())
    return train(
        config,
        model,
        PairBatches(
            sources=[train_ids],
            seed=config.seed,
            batch=config.batch,
            batching=config.batching,
            input_length=config.input_length,
            target_length=config.target_length or task.target_tokens,
        ),
        out,
        tokenizer=opened.tokenizer,
        device=where,
        held_out=held_out,
        evaluate=evaluate,
        kind="finetune",
        origin=origin(opened, task, train_ids),
        peak_flops=peak_flops,
        tensorboard=tensorboard,
        quiet=quiet,
        began=began,
        execution=execution,
    )


def encoded(config: Config, task: Task, pairs: Sequence[Pair], tokenizer: Tokenizer) -> EncodedPairs:
    target_length = config.target_length or task.target_tokens
    return encode_pairs(
        [(pair.inputs, pair.accepted[0]) for pair in pairs], tokenizer, config.input_length, target_length
    )


def ordered_batches(pairs: EncodedPairs, batch: int = HELD_OUT_BATCH) -> list[Batch]:
    """Each pair once, long inputs together so that little is padded."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    pieces = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    return [Batch(padded([pair[0] for pair in piece]), padded([pair[1] for pair in piece])) for piece in pieces]


def origin(opened: Opened, task: Task, train_ids: EncodedPairs) -> dict[str, Any]:
    assert opened.tokenizer is not None
    return {
        "model": opened.origin,
        "task": task.name,
        "task_version": task.version,
        "pairs": len(train_ids),
        "fingerprints": {
            "task": f"{task.name} version {task.version}",
            "tokenizer": opened.tokenizer.fingerprint,
            "training data": hashlib.sha256(json.dumps(train_ids).encode()).hexdigest(),
            "model": weights_fingerprint(opened.model),
        },
    }
