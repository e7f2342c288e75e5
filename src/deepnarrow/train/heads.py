"""Training an encoder with a head (model/heads.py): all weights of both, by the same loop as any other run.

    classify   cross-entropy over the labels
    tag        cross-entropy over the tags, at the first piece of every word
    embed      pairs of texts that belong together: each first text should find its own second text among all those of
               the batch, by cross-entropy over cosines times 20 (Henderson et al. 2017, arXiv:1705.00652, section 4.4,
               there with dot products; the scale is the one that `sentence-transformers` made usual)

A batch's targets are numbers from 1, 0 being padding: a label [B, 1], a tag for each token [B, L], or for vectors a 1
for each pair, whose two texts stand in one row of inputs as segments 1 and 2. They are encoded apart: T5's dropout is
one draw for a whole row, and two texts that lack the same channels would find each other by that alone.

Shape key   B batch   L length   N what is predicted   C labels   D d_model
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepnarrow.errors import UserError
from deepnarrow.model.encoding import encoded
from deepnarrow.model.folder import Opened, resolve_device
from deepnarrow.model.heads import Head, Headed, encoder_shape, mean_of, read_head, save_head, with_head
from deepnarrow.model.t5 import PAD
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.chunks import OUTSIDE
from deepnarrow.text.batches import Batch, PairBatches, padded
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.text.words import rows_of_words
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.finetune import EncodedPairs, Lesson, origin
from deepnarrow.train.loop import Batches, Began, Evaluate, Result, train
from deepnarrow.train.loss import Sums, autocast, token_loss
from deepnarrow.train.parallel import Execution
from deepnarrow.train.pretrain import HELD_OUT_BATCH

SCALE = 20.0  # of cosines, before the softmax
MOST_LABELS = 1000  # beyond so many different answers a task has texts to write, not labels to choose


class HeadLearner:
    """Every weight of an encoder and its head, by the loss of its kind."""

    def accumulate(
        self, model: Any, batch: Batch, *, divisor: int, device: torch.device, dtype: torch.dtype, z_loss: float
    ) -> Sums:
        objective_N, nll_N = losses(model, batch, device=device, dtype=dtype, z_loss=z_loss)
        (objective_N.sum() / divisor).backward()
        return Sums(nll_N.sum().detach(), nll_N.numel())

    @torch.no_grad()
    def sums(self, model: Any, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Sums:
        _, nll_N = losses(model, batch, device=device, dtype=dtype, z_loss=0.0)
        return Sums(nll_N.sum(), nll_N.numel())

    def save(self, model: Any, tokenizer: Tokenizer | None, folder: Path) -> None:
        save_head(model, tokenizer, folder)

    def restore(self, folder: Path) -> dict[str, Tensor]:
        return read_head(folder).state_dict()


def losses(
    model: Headed, batch: Batch, *, device: torch.device, dtype: torch.dtype, z_loss: float
) -> tuple[Tensor, Tensor]:
    """For each thing predicted, what is minimised and the negative log-likelihood alone, in nats: float32 [N] both."""
    targets = torch.from_numpy(batch.targets)
    if model.head.kind == "embed":
        kept_N = (targets[:, 0] > 0).nonzero()[:, 0].to(device)
        first_BL, second_BL = (torch.from_numpy(side).to(device) for side in sides(batch))
        with autocast(device, dtype):
            first_ND, second_ND = (
                mean_of(model.body.encode(ids_BL), ids_BL != PAD)[kept_N] for ids_BL in (first_BL, second_BL)
            )
        logits_NN = SCALE * F.normalize(first_ND, dim=-1) @ F.normalize(second_ND, dim=-1).T
        logits_NN = logits_NN.masked_fill(repeated(second_BL[kept_N]), -torch.inf)
        return token_loss(logits_NN, torch.arange(len(kept_N), device=device))  # cosines need no z-loss
    with autocast(device, dtype):
        logits = model(torch.from_numpy(batch.inputs).to(device))
    if model.head.kind == "classify":
        targets = targets[:, :1]
        logits = logits[:, None]
    place_N = targets.flatten().nonzero()[:, 0].to(device)
    wanted_N = targets.flatten().to(device)[place_N] - 1
    return token_loss(logits.flatten(0, 1)[place_N], wanted_N, z_loss=z_loss)


def sides(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second texts of a batch of pairs, as `paired` put them together."""
    assert batch.input_segments is not None
    seconds = np.flatnonzero((batch.input_segments == 2).any(axis=0))
    cut = int(seconds[0]) if seconds.size else batch.inputs.shape[1] - 1
    return batch.inputs[:, :cut], batch.inputs[:, cut:]


def paired(batch: Batch) -> Batch:
    """Two texts as one row of inputs, and one target for each pair.

    >>> made = paired(Batch(np.array([[5, 1], [6, 1]]), np.array([[7, 1], [8, 1]])))
    >>> made.inputs.tolist(), made.input_segments.tolist(), made.targets.tolist()
    ([[5, 1, 7, 1], [6, 1, 8, 1]], [[1, 1, 2, 2], [1, 1, 2, 2]], [[1], [1]])
    """
    both = (batch.inputs, batch.targets)
    segments = [np.where(side != 0, number, 0) for number, side in enumerate(both, 1)]
    ones = np.ones((len(batch.inputs), 1), np.int64)
    return Batch(np.concatenate(both, axis=1), ones, np.concatenate(segments, axis=1))


def repeated(ids_NL: Tensor) -> Tensor:
    """Where two rows hold the same text, so that neither is wrong for the other: bool [N, N], False on the diagonal.

    >>> repeated(torch.tensor([[5, 1], [6, 1], [5, 1]])).int().tolist()
    [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    """
    same_NN = (ids_NL[:, None] == ids_NL[None]).all(-1)
    return same_NN & ~torch.eye(len(ids_NL), dtype=torch.bool, device=ids_NL.device)


@dataclass(frozen=True)
class PairedBatches:
    """Pairs of texts by the number of the batch, laid out as `paired` does."""

    of: PairBatches = field(repr=False)

    def __call__(self, n: int) -> Batch:
        return paired(self.of(n))


def finetune_head(
    config: Config,
    opened: Opened,
    lesson: Lesson,
    out: Path,
    *,
    kind: str,
    normalise: bool = True,
    evaluate: Evaluate | None = None,
    best: str | None = None,
    device: str = "auto",
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
    execution: Execution | None = None,
) -> Result:
    """Train the encoder of `opened.model`, a copy, under a new head on a task's pairs.

    The config's shape is that of the encoder alone (`encoder_shape`). A classifier's labels are the task's, or, where
    it has none, the answers that occur; a tagger's are the tags that occur. For vectors the two texts of a pair are its
    input and its first answer. `normalise` is for vectors alone. The best checkpoint is the best by the metric `best`,
    or else by `evaluate`'s first score, or else by the loss on the held-out pairs.
    """
    tokenizer = checked(config, opened, execution or Execution())
    head = head_for(kind, lesson, config, normalise=normalise)
    learned = examples(head, lesson.pairs, tokenizer)
    if not learned:
        raise UserError(f"task {lesson.task.name} has no pairs to train on here; check the data")
    batches: Batches = PairBatches(
        sources=[learned], seed=config.seed, batch=config.batch, batching=config.batching,
        input_length=config.input_length, target_length=config.input_length,
    )  # fmt: skip
    if kind == "embed":
        if min(config.batch // config.accumulate, len(learned)) < 2:
            raise UserError(
                "vectors are learned from the other pairs of a batch: at least 2 are needed in each of its parts"
            )
        assert isinstance(batches, PairBatches)
        batches = PairedBatches(batches)
    source = origin(opened, [lesson], [learned])
    source["fingerprints"]["head"] = json.dumps(asdict(head))
    model = with_head(
        opened.model, head, seed=config.seed, dropout=config.dropout, dropout_shared=config.dropout_shared,
        recompute=config.recompute,
    )  # fmt: skip
    return train(
        config,
        model,  # type: ignore[arg-type]
        batches,
        out,
        tokenizer=tokenizer,
        device=resolve_device(device),
        held_out=held_out_batches(head, lesson.held_out[: config.eval_examples], tokenizer),
        evaluate=evaluate,
        best=best,
        kind="finetune",
        origin={**source, "head": kind},
        peak_flops=peak_flops,
        tensorboard=tensorboard,
        quiet=quiet,
        began=began,
        execution=execution,
        learner=HeadLearner(),
    )


def usual(recipe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a head needs otherwise than a recipe of text has it, where somebody did not say it himself.

    One text a row, so bucketed where the recipes pack. In the short recipe Adafactor at 0.01, ten times T5's rate: a
    new head moves by its own size times that, and at 0.001 it stays where it was drawn (docs/heads.md has the numbers).
    """
    values: dict[str, Any] = {"batching": "bucketed"}
    if recipe == "finetune_miniature" and not {"learning_rate", "optimizer", "schedule"} & given.keys():
        values["learning_rate"] = 0.01
    return {**values, **given}


def checked(config: Config, opened: Opened, execution: Execution) -> Tokenizer:
    """The model's tokenizer, once everything fits together."""
    if config.adapt != "full":
        raise UserError(f"a head is trained with the whole encoder below it; leave out --adapt {config.adapt}")
    if config.objective != PAIRS:
        raise UserError(f'fine-tuning needs the objective "pairs", not {config.objective!r}')
    if parse(config.shape) != encoder_shape(opened.shape):
        raise UserError(
            f"the config is for a {config.shape}, but the encoder of {opened.origin} is a {encoder_shape(opened.shape)}"
        )
    if config.batching == "packed":
        raise UserError('a head reads one text a row; use the batching "bucketed", which pads little')
    if config.normaliser != "tokens":
        raise UserError('a head\'s loss is a mean over what it predicts; leave the normaliser at "tokens"')
    if execution.parallel != "ddp" or execution.tensor_parallel > 1:
        raise UserError("an encoder with a head is trained whole on every device; use --parallel ddp")
    if opened.tokenizer is None:
        raise UserError(f"{opened.origin} has no tokenizer, so text cannot be turned into ids; add its spiece.model")
    return opened.tokenizer


def head_for(kind: str, lesson: Lesson, config: Config, *, normalise: bool) -> Head:
    labels: tuple[str, ...] = ()
    if kind == "classify":
        labels = labels_of(lesson.task, lesson.pairs)
    elif kind == "tag":
        seen = {tag for pair in lesson.pairs for tag in pair.accepted[0].split()}
        labels = tuple(sorted(seen, key=lambda tag: (tag != OUTSIDE, tag)))
        check_tags(lesson.task, lesson.pairs)
    return Head(
        kind=kind, labels=labels, normalise=kind == "embed" and normalise, input_tokens=config.input_length,
        task=lesson.task.name,
    )  # fmt: skip


def labels_of(task: Task, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """A task's labels, or the answers that occur where they are few enough to be labels."""
    if task.labels:
        return tuple(task.labels)
    found = tuple(sorted({pair.accepted[0].strip() for pair in pairs if not pair.negated}))
    if not 2 <= len(found) <= min(MOST_LABELS, max(2, len(pairs) // 2)):
        raise UserError(
            f"task {task.name} has {len(found):,} different answers in {len(pairs):,} pairs, so they are no labels to "
            "choose from; train it to write them, without --head"
        )
    return found


def check_tags(task: Task, pairs: Sequence[Pair]) -> None:
    for number, pair in enumerate(pairs, 1):
        words, tags = pair.inputs.split(" "), pair.accepted[0].split()
        if len(words) != len(tags):
            raise UserError(
                f"task {task.name}, pair {number}, has {len(words)} words and {len(tags)} tags; a head that tags needs "
                "rows with `tokens` and `tags` of equal length: use --task tagging with your --data"
            )


def examples(head: Head, pairs: Sequence[Pair], tokenizer: Tokenizer) -> EncodedPairs:
    """Pairs as ids and targets, see the module. What no label fits, and pairs of wrong answers, are left out."""
    pairs = [pair for pair in pairs if pair.accepted and not pair.negated]
    number = {label: place for place, label in enumerate(head.labels, 1)}
    if head.kind == "tag":
        answers = [[number.get(tag, 0) for tag in pair.accepted[0].split()] for pair in pairs]
        found = []
        for row in rows_of_words([pair.inputs.split(" ") for pair in pairs], tokenizer, head.input_tokens):
            tags = [0] * len(row.ids)
            for place, first in enumerate(row.firsts):
                tags[first] = answers[row.sentence][row.word + place]
            if any(tags):
                found.append((row.ids, tags))
        return found
    inputs = encoded([pair.inputs for pair in pairs], tokenizer, head.input_tokens)
    if head.kind == "embed":
        seconds = encoded([pair.accepted[0] for pair in pairs], tokenizer, head.input_tokens)
        return list(zip(inputs, seconds, strict=True))
    labels = [number.get(pair.accepted[0].strip()) for pair in pairs]
    return [(ids, [label]) for ids, label in zip(inputs, labels, strict=True) if label is not None]


def held_out_batches(head: Head, pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Batch]:
    """Each pair once, long ones together; pairs of texts in their own order, since they are each other's wrong ones."""
    made = examples(head, pairs, tokenizer)
    if head.kind != "embed":
        made = sorted(made, key=lambda pair: len(pair[0]))
    pieces = [made[start : start + HELD_OUT_BATCH] for start in range(0, len(made), HELD_OUT_BATCH)]
    batches = [Batch(padded([pair[0] for pair in piece]), padded([pair[1] for pair in piece])) for piece in pieces]
    return [paired(batch) for batch in batches] if head.kind == "embed" else batches
