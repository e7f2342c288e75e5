"""What a run would cost, before it starts: tokens, FLOPs, memory, disk and hours. No torch, and no corpus needed.

Counted exactly, by shapes/counts.py: weights, gradients, the optimizer's state, FLOPs of the batches below.

The batches: with corpora, the first ones as they would be trained on. Without, made by the objective from pretended
text, whose documents are as long as the objective can use at once. Objectives of rows (span corruption) give the same
either way; for pieces of documents the pretended ones are the fullest. Sentences of a salient corpus are taken for
32 tokens with a target of 5, since there is no most.

Estimated, and called so: activations (see `activation_bytes`), and hours, which are FLOPs over the FLOP/s that a device
is said or measured to reach; evaluations and saving come on top.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.shapes import Shape, parse
from deepnarrow.shapes.counts import forward_flops, parameters, tensors, training_bytes, training_step_flops
from deepnarrow.text import objectives
from deepnarrow.text.batches import Layout, generator, longest_target, parts_of
from deepnarrow.text.mixture import Mixture
from deepnarrow.text.objectives import Part, Sentinels
from deepnarrow.text.packing import Batch, Pair
from deepnarrow.train.config import PAIRS, Config

LOOKS = 64  # examples that stand for a batch
SENTENCE = (32, 5)  # tokens of a pretended salient example, EOS included
LOGITS_AT_ONCE = 2**25  # numbers; loss.py makes no more of them at a time
MANY = Sentinels(first=2**24 - 1, count=2**20, eos=1)  # more than any objective uses; ordinary ids lie below


@dataclass(frozen=True, kw_only=True)
class Step:
    """The batch of one update, all ranks and parts together. Rows are fewer than examples where they are packed."""

    examples: int
    rows: float
    input_length: float  # columns, padding included
    target_length: float
    inputs: float  # real tokens
    targets: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # an estimate

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True)
class Plan:
    shape: str
    parameters: int
    steps: int
    step: Step
    inputs: int  # real tokens read by the encoder in all
    targets: int  # real tokens predicted in all
    epochs: float | None  # of the corpus; None without one
    step_flops: int  # forward and backward, and what is computed again
    flops: int
    devices: int
    memory: Memory  # a device holds everything (one device, or ddp)
    memory_sharded: Memory  # a device holds its share of weights, gradients and optimizer (fsdp)
    checkpoint: int  # bytes of weights and optimizer; the tokenizer and some JSON come on top
    checkpoints_kept: int  # how many at most, the best one among them
    disk: int
    device_flops: float | None  # FLOP/s one device reaches
    device_flops_source: str
    hours: float | None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        for name in ("memory", "memory_sharded"):
            found[name]["total"] = getattr(self, name).total
        return found


def plan(
    config: Config,
    *,
    batches: Callable[[int], Batch] | None = None,
    corpus_tokens: int | None = None,
    devices: int = 1,
    device_flops: float | None = None,
    device_flops_source: str = "",
) -> Plan:
    """The cost of a whole run of `config`. `batches` are the real ones, where there is a corpus.

    >>> found = plan(Config(shape="small", steps=1000, batch=128, input_length=512), device_flops=100e12)
    >>> found.step.input_length, found.step.target_length, found.inputs == 1000 * 128 * 512
    (512.0, 114.0, True)
    >>> round(found.hours, 2)
    0.04
    """
    if devices < 1:
        raise UserError(f"devices must be at least 1, not {devices}")
    if device_flops is not None and device_flops <= 0:
        raise UserError(f"the FLOP/s of a device must be greater than 0, not {device_flops:g}")
    if config.objective == PAIRS:
        raise UserError("a plan is of pretraining; fine-tuning takes its lengths from the task")
    shape = parse(config.shape)
    step = seen_step(config, batches) if batches is not None else pretended_step(config)
    step_flops = flops_of(shape, step, recompute=config.recompute)
    training = training_bytes(shape, config.optimizer, factored_from=config.factored_from)
    activations = activation_bytes(
        shape,
        rows=max(1, -(-round(step.rows) // (config.accumulate * devices))),
        input_length=round(step.input_length),
        target_length=round(step.target_length),
        dtype=config.dtype,
        recompute=config.recompute,
    )
    checkpoint = training.weights + training.moments
    kept = config.keep + 1
    flops = step_flops * config.steps
    return Plan(
        shape=config.shape,
        parameters=parameters(shape).total,
        steps=config.steps,
        step=step,
        inputs=round(step.inputs * config.steps),
        targets=round(step.targets * config.steps),
        epochs=None if not corpus_tokens else text_tokens(config, step) * config.steps / corpus_tokens,
        step_flops=step_flops,
        flops=flops,
        devices=devices,
        memory=Memory(
            weights=training.weights, gradients=training.gradients, optimizer=training.moments, activations=activations
        ),
        memory_sharded=Memory(
            weights=-(-training.weights // devices),
            gradients=-(-training.gradients // devices),
            optimizer=-(-training.moments // devices),
            activations=activations,
        ),
        checkpoint=checkpoint,
        checkpoints_kept=kept,
        disk=checkpoint * (kept + 1),  # one more while it is written
        device_flops=device_flops,
        device_flops_source=device_flops_source,
        hours=None if device_flops is None else flops / (device_flops * devices) / 3600,
    )


def seen_step(config: Config, batches: Callable[[int], Batch]) -> Step:
    """The mean of the first batches; of large ones, the first alone."""
    looks = max(1, min(4, 4096 // config.batch, config.steps))
    return _mean([_step(batches(n), config.batch) for n in range(looks)])


def pretended_step(config: Config) -> Step:
    """What the objective and the layout make of text that never ends, scaled from some examples to a whole batch."""
    parts = parts_of(config.objective, config.options())
    examples = min(config.batch, LOOKS)
    source, _ = Mixture(tuple(part.weight for part in parts), config.seed).deal(np.arange(examples, dtype=np.int64))
    pairs = [_pretended(parts[index], config, example) for example, index in enumerate(source.tolist())]
    longest = config.target_length or max(longest_target(part, config.input_length) for part in parts)
    layout = Layout(
        seed=config.seed, batch=examples, batching=config.batching, input_length=config.input_length,
        target_length=longest, exact=True,
    )  # fmt: skip
    pairs = [(inputs[: config.input_length], targets[:longest]) for inputs, targets in pairs]
    found, scale = _step(layout.lay_out(pairs), examples), config.batch / examples
    return Step(
        examples=config.batch,
        rows=found.rows * scale,
        input_length=found.input_length,
        target_length=found.target_length,
        inputs=found.inputs * scale,
        targets=found.targets * scale,
    )


def _pretended(part: Part, config: Config, example: int) -> Pair:
    if part.objective == "salient":
        return np.full(SENTENCE[0], 3), np.full(SENTENCE[1], 3)
    objective, noise = objectives.get(part.objective), generator(config.seed, 0, example)
    if objective.example is not None and objective.piece_length is not None:
        length = objective.piece_length(config.input_length, **part.options) or config.input_length - 1
        return objective.example(np.full(length, 3, np.int32), noise, MANY, **part.options)
    assert objective.lengths is not None, f"{part.objective} is of no kind"
    assert objective.corrupt is not None, f"{part.objective} is of no kind"
    raw, _ = objective.lengths(config.input_length, **part.options)
    sides = objective.corrupt(np.full((1, raw), 3, np.int32), [noise], MANY, **part.options)
    inputs, targets = (side[0][side[0] != 0] for side in sides)
    return inputs, targets


def _step(batch: Batch, examples: int) -> Step:
    return Step(
        examples=examples,
        rows=float(batch.inputs.shape[0]),
        input_length=float(batch.inputs.shape[1]),
        target_length=float(batch.targets.shape[1]),
        inputs=float(np.count_nonzero(batch.inputs)),
        targets=float(np.count_nonzero(batch.targets)),
    )


def _mean(steps: Sequence[Step]) -> Step:
    means = {
        name: float(np.mean([getattr(step, name) for step in steps]))
        for name in ("rows", "input_length", "target_length", "inputs", "targets")
    }
    return Step(examples=steps[0].examples, **means)


def text_tokens(config: Config, step: Step) -> float:
    """Tokens of the corpus that one step uses: of rows, their raw length; else what is read and said, less two EOS."""
    parts = parts_of(config.objective, config.options())
    lengths = objectives.get(parts[0].objective).lengths
    if len(parts) == 1 and lengths is not None:
        return float(step.examples * lengths(config.input_length, **parts[0].options)[0])
    return step.inputs + step.targets - 2 * step.examples


def flops_of(shape: Shape, step: Step, *, recompute: bool) -> int:
    """Of one update; padding is computed like any token, and the segments of a packed row as one long row."""
    lengths = {"input_length": round(step.input_length), "target_length": round(step.target_length)}
    each = training_step_flops(shape, **lengths)
    if recompute:  # the stacks run forward once more, the output matrix does not
        output = 2 * lengths["target_length"] * shape.d_model * shape.vocab if shape.decoder_layers else 0
        each += forward_flops(shape, **lengths) - output
    return round(each * step.rows)


def activation_bytes(
    shape: Shape, *, rows: int, input_length: int, target_length: int, dtype: str, recompute: bool
) -> int:
    """An estimate of what is kept for the backward pass of `rows` rows, without dropout.

    In numbers kept for each token (D, F as in layers.py; I is heads x d_kv):

        a norm            3 D     its input, normed before and after the weight
        self-attention    5 I     queries, keys, values, what is mixed, and one copy
        cross-attention   2 I of each target token, 3 I of each input token, for every decoder layer
        probabilities     one for each head, query and key
        feed-forward      F, or 4 F where gated
        logits            three times 2**25 numbers at most, in float32 (loss.py)

    Under bfloat16 a number takes 2 bytes, but 4 where the residual stream keeps float32 (two of a norm's three), and a
    probability 6; the weights have a copy of 2 bytes. Recomputing keeps a block's input and the insides of one block.
    Dropout would add a mask for each of its places.
    """
    half = dtype == "bfloat16"
    number, of_norm, probability = (2, 10, 6) if half else (4, 12, 4)
    width, inner, gate = shape.d_model, shape.inner, 4 if shape.gated else 1
    feed_forward = gate * shape.d_ff * number
    norm = of_norm * width
    inputs, targets = rows * input_length, rows * target_length
    encoder = inputs * (2 * norm + 5 * inner * number + feed_forward + shape.num_heads * input_length * probability)
    decoder = (
        targets
        * (
            3 * norm
            + 7 * inner * number
            + feed_forward
            + shape.num_heads * (target_length + input_length) * probability
        )
        + inputs * 3 * inner * number
    )
    if recompute:
        kept = 4 * width * (inputs * shape.encoder_layers + targets * shape.decoder_layers) + max(encoder, decoder)
    else:
        kept = encoder * shape.encoder_layers + decoder * shape.decoder_layers
    ends = (inputs + targets) * norm
    logits = 3 * 4 * min(targets * shape.vocab, max(LOGITS_AT_ONCE, shape.vocab)) if shape.decoder_layers else 0
    copies = 2 * sum(tensor.size for tensor in tensors(shape) if len(tensor.dims) == 2) if half else 0
    return kept + ends + logits + copies


def product_flops(seconds: float = 0.15) -> float:
    """FLOP/s of numpy's float32 matrix product on this machine's processor: the best of what fits the time."""
    side = 1024
    left, right = (np.full((side, side), 0.5, np.float32) for _ in range(2))
    left @ right
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        began = time.perf_counter()
        left @ right
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best
