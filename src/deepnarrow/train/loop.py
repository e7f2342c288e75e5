"""The training loop. Step n is a function of the config, the data and the weights after step n - 1, and of nothing
else, so that a run that was stopped or killed and went on ends with the same bits as one that never was.

That holds on a processor with the same number of threads; on a GPU it holds as far as its kernels are deterministic.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5
from deepnarrow.progress import Bar, progress
from deepnarrow.shapes import Shape
from deepnarrow.shapes.counts import training_step_flops
from deepnarrow.text.batches import Batch
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import checkpoint, loss, optim, run_folder
from deepnarrow.train.config import Config
from deepnarrow.train.interrupt import Interrupted, Signals, StopNow
from deepnarrow.train.schedule import rate
from deepnarrow.train.state import HELD_OUT_LOSS, Best, State
from deepnarrow.train.tracking import Log, cut_log, note

Batches = Callable[[int], Batch]
Evaluate = Callable[[T5], Mapping[str, float]]
Began = Callable[[int], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Result(NamedTuple):
    """How a run ended. `best` is None where nothing was evaluated."""

    step: int
    loss: float | None  # training, mean since the log line before, nats per target token
    held_out_loss: float | None
    scores: dict[str, float]  # of the last evaluation
    tokens_per_second: float | None
    best: Best | None
    folder: Path


def train(
    config: Config,
    model: T5,
    batches: Batches,
    out: Path,
    *,
    tokenizer: Tokenizer | None,
    device: torch.device,
    held_out: Sequence[Batch] = (),
    evaluate: Evaluate | None = None,
    kind: str,
    origin: Mapping[str, Any],
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
) -> Result:
    """Train `model` in place and keep the run in `out`; go on where a run of the same config was left there.

    `batches(n)` is the data of step n, from 0. Every `eval_every` steps and at the end, `held_out` gives a loss and
    `evaluate` scores, its first one the metric that "best" means; without it the held-out loss is. `peak_flops`, in
    FLOP/s, turns speed into a share of the peak. `origin["fingerprints"]` must be the same when a run goes on. `began`
    is told the step to go on from, once nothing is left that could refuse.

    Raises `UserError` where `out` belongs to another run, a checkpoint is damaged, or a number is no longer finite;
    `Interrupted` after SIGINT or SIGTERM, with everything saved.
    """
    out = Path(out)
    with run_folder.lock(out), Signals() as signals, own_random_numbers(device):
        last = checkpoint.last_state(out)
        run_folder.enter(out, config, kind=kind, origin=origin, step=last.step if last else None)
        model.to(device).train()
        optimizer = optim.build(config, model)
        state = checkpoint.restore(out, model, optimizer)
        cut_log(out, step=state.step, evaluated=state.evaluated)
        run = _Run(
            config=config, model=model, optimizer=optimizer, state=state, out=out, tokenizer=tokenizer, device=device,
            held_out=held_out, evaluate=evaluate, peak_flops=peak_flops,
        )  # fmt: skip
        if began is not None:
            began(state.step)
        log = Log(out, step=state.step, tensorboard=tensorboard and state.step < config.steps)
        try:
            with shown(config, state, quiet) as bar, Lookahead(batches, config.steps) as ahead:
                run.until_done(ahead, log, bar, signals)
        finally:
            log.close()
    return Result(
        state.step, state.loss, state.held_out_loss, dict(state.scores), state.tokens_per_second, state.best, out
    )


@dataclass
class _Run:
    """One call of `train`: what stays the same through it, and the state that does not."""

    config: Config
    model: T5
    optimizer: Optimizer
    state: State
    out: Path
    tokenizer: Tokenizer | None
    device: torch.device
    held_out: Sequence[Batch]
    evaluate: Evaluate | None
    peak_flops: float | None
    saved: int = field(init=False)  # step of the last checkpoint

    def __post_init__(self) -> None:
        self.saved = self.state.step

    def until_done(self, batches: Batches, log: Log, bar: Bar, signals: Signals) -> None:
        """Evaluate what is due, save what is due, do one step; in this order, so that a run can stop between any two.

        An evaluation that is broken off is made up for when the run goes on: the checkpoint says it is missing.
        """
        words = ""
        while True:
            save = signals.asked
            if self.can_judge and self.due(self.config.eval_every) and self.state.evaluated < self.state.step:
                try:
                    with signals.interruptible():
                        judged = self.judge()
                    log.add({"step": self.state.step, **judged})
                    save |= self.improved(judged)
                except StopNow:
                    save = True
            if self.state.step > 0 and (save or (self.due(self.config.save_every) and self.saved < self.state.step)):
                self.save()
            if signals.asked:
                raise Interrupted(self.out, self.state.step)
            if self.state.step >= self.config.steps:
                return
            self.update(batches(self.state.step))
            if self.due(self.config.log_every) or self.state.step == 1:
                row = self.log_row()
                log.add(row)
                words = note(row)
            bar.advance(1, words)

    @property
    def can_judge(self) -> bool:
        return self.evaluate is not None or bool(self.held_out)

    def due(self, every: int | None) -> bool:
        step = self.state.step
        return step == self.config.steps or (every is not None and step > 0 and step % every == 0)

    def update(self, batch: Batch) -> None:
        """One step of the optimizer. Nothing is changed unless the loss and the gradient are finite."""
        config, state, began = self.config, self.state, time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        divisor = loss.count(batch.targets, config.normaliser)
        nll = torch.zeros((), device=self.device)
        for part, piece in enumerate(split(batch, config.accumulate)):
            torch.manual_seed(noise_seed(config.seed, state.step, part))
            dtype = DTYPES[config.dtype]
            nll += loss.accumulate(
                self.model, piece, divisor=divisor, device=self.device, dtype=dtype, z_loss=config.z_loss
            ).nll
        # The one place where a step waits for a GPU.
        loss_sum, self.norm = torch.stack([nll, optim.gradient_norm(self.model)]).tolist()
        if not math.isfinite(loss_sum) or not math.isfinite(self.norm):
            raise self.diverged("loss" if not math.isfinite(loss_sum) else "gradient", state.step + 1)
        if config.clip is not None and self.norm > config.clip:
            optim.scale_gradients(self.model, config.clip / self.norm)
        self.rate = rate(config, state.step)
        optim.set_rate(self.optimizer, self.rate)
        self.optimizer.step()
        self.count(batch, loss_sum, time.perf_counter() - began)

    def count(self, batch: Batch, loss_sum: float, seconds: float) -> None:
        state = self.state
        tokens, targets = int(np.count_nonzero(batch.inputs)), int(np.count_nonzero(batch.targets))
        state.step += 1
        state.tokens += tokens + targets
        state.seconds += seconds
        state.window_nll += loss_sum
        state.window_targets += targets
        state.window_tokens += tokens + targets
        state.window_flops += step_flops(self.model.shape, batch.inputs.shape, batch.targets.shape[1])
        state.window_seconds += seconds

    def log_row(self) -> dict[str, Any]:
        """One line for the steps since the last one, which then count as told."""
        state = self.state
        state.loss = state.window_nll / max(1, state.window_targets)
        state.tokens_per_second = state.window_tokens / state.window_seconds
        row = {
            "step": state.step,
            "loss": state.loss,
            "learning_rate": self.rate,
            "grad_norm": self.norm,
            "tokens": state.tokens,
            "tokens_per_second": round(state.tokens_per_second, 1),
            "seconds": round(state.seconds, 3),
        }
        if self.peak_flops:
            row["share_of_peak"] = round(state.window_flops / state.window_seconds / self.peak_flops, 4)
        state.window_nll, state.window_seconds = 0.0, 0.0
        state.window_targets = state.window_tokens = state.window_flops = 0
        return row

    def judge(self) -> dict[str, float]:
        """Scores first, the held-out loss last. Dropout is off, and no gradient is kept."""
        scores: dict[str, float] = {}
        self.model.eval()
        try:
            with torch.no_grad():
                if self.evaluate is not None:
                    scores |= {name: float(value) for name, value in self.evaluate(self.model).items()}
                if self.held_out:
                    scores[HELD_OUT_LOSS] = loss.held_out_loss(
                        self.model, self.held_out, device=self.device, dtype=DTYPES[self.config.dtype]
                    )
        finally:
            self.model.train()
        return scores

    def improved(self, judged: Mapping[str, float]) -> bool:
        """Take the evaluation into the state; whether this step is now the best one."""
        state = self.state
        state.evaluated = state.step
        state.held_out_loss = judged.get(HELD_OUT_LOSS)
        state.scores = {name: value for name, value in judged.items() if name != HELD_OUT_LOSS}
        metric, value = next(iter(judged.items()))
        found = Best(state.step, metric, value)
        if not found.beats(state.best):
            return False
        state.best = found
        return True

    def save(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise self.diverged("weights", self.state.step)
        checkpoint.save(self.out, self.model, self.tokenizer, self.optimizer, self.state, keep=self.config.keep)
        self.saved = self.state.step

    def diverged(self, what: str, step: int) -> UserError:
        kept = checkpoint.steps(self.out)
        where = f"the last good checkpoint is {self.out / 'checkpoints' / checkpoint.name(kept[-1])}" if kept else (
            "no checkpoint was saved before"
        )  # fmt: skip
        cure = [f"a lower learning rate than {self.config.learning_rate:g}"]
        if self.config.clip is None:
            cure.append("clip 1.0")
        if self.config.schedule != "inverse_sqrt" and not self.config.warmup:
            cure.append("a warmup")
        if self.config.dtype != "float32":
            cure.append("dtype float32")
        if self.config.optimizer == "adamw":
            cure.append("optimizer adafactor or adamw_scale (plain AdamW often diverges on T5)")
        verb = "are" if what == "weights" else "is"
        return UserError(
            f"training stopped at step {step}: the {what} {verb} no longer finite; {where}; "
            f"try {', or '.join(cure)}, in a new --out"
        )


class Lookahead:
    """Makes the next batch in a thread while the model works on this one."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self.next: tuple[int, Future[Batch]] | None = None

    def __call__(self, n: int) -> Batch:
        if self.next is None or self.next[0] != n:
            self.next = n, self.pool.submit(self.batches, n)
        batch = self.next[1].result()
        self.next = (n + 1, self.pool.submit(self.batches, n + 1)) if n + 1 < self.steps else None
        return batch

    def __enter__(self) -> "Lookahead":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Consecutive rows in equal shares.

    >>> halves = split(Batch(np.array([[1], [2]]), np.array([[3], [4]])), 2)
    >>> [half.targets.tolist() for half in halves]
    [[[3]], [[4]]]
    """
    for inputs, targets in zip(np.array_split(batch.inputs, parts), np.array_split(batch.targets, parts), strict=True):
        if len(inputs):
            yield Batch(inputs, targets)


def noise_seed(seed: int, step: int, part: int) -> int:
    """Seed of dropout for one part of one step: hashed, so that neighbouring steps have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{part}".encode()).digest()[:7], "little")


@cache
def step_flops(shape: Shape, inputs: tuple[int, int], target_length: int) -> int:
    return training_step_flops(shape, batch=inputs[0], input_length=inputs[1], target_length=target_length)


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seeding each step must not disturb the caller's random numbers."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class _Silent(Bar):
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


@contextmanager
def shown(config: Config, state: State, quiet: bool) -> Iterator[Bar]:
    if quiet or state.step >= config.steps:
        yield _Silent()
        return
    with progress(config.shape, config.steps, done=state.step) as bar:
        yield bar
