"""The training loop. Step n is a function of the config, the data and the weights after step n - 1, and of nothing
else, so that a run that was stopped or killed and went on ends with the same bits as one that never was.

That holds on a processor with the same number of threads and of ranks; on a GPU it holds as far as its kernels are
deterministic. Another number of ranks (parallel.py) sums the same numbers in another order: same batches, same noise,
same losses but for rounding.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer

from deepnarrow.errors import UserError, nearest
from deepnarrow.model.t5 import T5
from deepnarrow.progress import Bar, progress
from deepnarrow.shapes import Shape
from deepnarrow.shapes.counts import training_step_flops
from deepnarrow.text.batches import Batch
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import checkpoint, loss, optim, run_folder
from deepnarrow.train.config import Config
from deepnarrow.train.interrupt import Interrupted, Signals, StopNow
from deepnarrow.train.learner import TEXT_TO_TEXT, Learner
from deepnarrow.train.parallel import Execution, Ranks, check_divides, local, ranks
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
    best: str | None = None,
    kind: str,
    origin: Mapping[str, Any],
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
    execution: Execution | None = None,
    learner: Learner = TEXT_TO_TEXT,
) -> Result:
    """Train `model` in place and keep the run in `out`; go on where a run of the same config was left there.

    `batches(n)` is the data of step n, from 0. Every `eval_every` steps and at the end, `held_out` gives a loss and
    `evaluate` scores. The best checkpoint is the best by `best`, one of these scores or "held_out_loss"; else by the
    first score; without scores, by the held-out loss. `peak_flops`, in FLOP/s, turns speed into a share of the peak.
    `origin["fingerprints"]` must be the same when a run goes on. `began` is told the step to go on from, once nothing
    is left that could refuse. Every rank of a job calls this with the same arguments; rank 0 alone writes records and
    is told that the run began. `execution` may change when a run goes on. `learner` says what is trained and how it is
    kept (learner.py). With the config's `patience`, the run ends early once so many evaluations in a row have brought
    no better one.

    Raises `UserError` where `out` belongs to another run, a checkpoint is damaged, or a number is no longer finite;
    `Interrupted` after SIGINT or SIGTERM, with everything saved.
    """
    out = Path(out)
    execution = execution or Execution()
    check_divides(model.shape, execution.tensor_parallel)
    with (
        ranks(execution, device) as job,
        job.first_holds(run_folder.lock(out)),
        Signals(several=job.size > 1) as signals,
        own_random_numbers(job.device),
    ):

        def enter() -> int | None:
            last = checkpoint.last_state(out)
            run_folder.enter(out, config, kind=kind, origin=origin, step=last.step if last else None)
            return last.step if last else None

        check_same_folder(out, job, job.first_says(enter))
        job.lay_out(model.train(), fsdp=execution.parallel == "fsdp")
        optimizer = optim.build(config, model)
        state = checkpoint.restore(out, model, optimizer, job, learner)
        job.first_says(lambda: cut_log(out, step=state.step, evaluated=state.evaluated))
        saver = checkpoint.Saver(out, job, beside=execution.async_save, learner=learner)
        run = _Run(
            config=config, model=model, optimizer=optimizer, state=state, out=out, tokenizer=tokenizer, job=job,
            saver=saver, held_out=held_out, evaluate=evaluate, peak_flops=peak_flops, learner=learner, best=best,
        )  # fmt: skip
        if began is not None and job.first:
            began(state.step)
        log = Log(out, step=state.step, tensorboard=tensorboard and state.step < config.steps) if job.first else None
        try:
            with (
                shown(config, state, quiet or not job.first) as bar,
                Lookahead(batches, config.steps, execution.loaders) as ahead,
            ):
                run.until_done(ahead, log, bar, signals)
        finally:
            saver.close()
            if log is not None:
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
    job: Ranks
    saver: checkpoint.Saver
    learner: Learner
    held_out: Sequence[Batch]
    evaluate: Evaluate | None
    peak_flops: float | None  # of one rank
    best: str | None  # the metric that chooses
    saved: int = field(init=False)  # step of the last checkpoint
    asked: bool = field(init=False, default=False)  # to stop, on any rank

    whole: bool = field(init=False)  # every weight is trained: only then is a step's arithmetic what is counted

    def __post_init__(self) -> None:
        self.saved = self.state.step
        self.whole = all(parameter.requires_grad for parameter in self.model.parameters())

    def until_done(self, batches: Batches, log: Log | None, bar: Bar, signals: Signals) -> None:
        """Evaluate what is due, save what is due, do one step; in this order, so that a run can stop between any two.

        An evaluation that is broken off is made up for when the run goes on: the checkpoint says it is missing.
        """
        words = ""
        self.asked = self.job.any(signals.asked)
        while True:
            save = stop = self.to_stop(signals)
            if self.can_judge and self.due(self.config.eval_every) and self.state.evaluated < self.state.step:
                try:
                    with signals.interruptible() if self.job.size == 1 else nullcontext():
                        judged = self.judge()
                    if log is not None:
                        log.add({"step": self.state.step, **judged})
                    save |= self.improved(judged)
                except StopNow:
                    save = True
            if self.state.step > 0 and (save or (self.due(self.config.save_every) and self.saved < self.state.step)):
                self.save(chosen=save or self.state.step == self.config.steps)
            if stop or self.to_stop(signals):
                self.saver.finish()
                raise Interrupted(self.out, self.state.step)
            if self.state.step >= self.config.steps or self.out_of_patience:
                if self.saved < self.state.step:
                    self.save(chosen=True)
                self.saver.finish()
                return
            self.update(batches(self.state.step), signals)
            if self.due(self.config.log_every) or self.state.step == 1:
                row = self.log_row()
                if log is not None:
                    log.add(row)
                words = note(row)
            bar.advance(1, words)

    def to_stop(self, signals: Signals) -> bool:
        """Alone, as soon as it is asked; beside others, where all of them know, which is after the next step."""
        return signals.asked if self.job.size == 1 else self.asked

    @property
    def out_of_patience(self) -> bool:
        """Whether the evaluations since the best one are as many as were granted."""
        best, every, patience = self.state.best, self.config.eval_every, self.config.patience
        if best is None or every is None or patience is None:
            return False
        return self.state.evaluated // every - best.step // every >= patience

    @property
    def can_judge(self) -> bool:
        return self.evaluate is not None or bool(self.held_out)

    def due(self, every: int | None) -> bool:
        step = self.state.step
        return step == self.config.steps or (every is not None and step > 0 and step % every == 0)

    def update(self, batch: Batch, signals: Signals) -> None:
        """One step of the optimizer. Nothing is changed unless the loss and the gradient are finite."""
        config, state, job, began = self.config, self.state, self.job, time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        divisor = loss.count(batch.targets, config.normaliser)
        nll = torch.zeros((), device=job.device)
        parts = list(split(batch, config.accumulate))
        for part, piece in enumerate(parts):
            mine, rows = job.share(piece)
            # Draws shared along the length are those of a job of one; element-wise ones are too many to draw for all.
            own = 0 if config.dropout_shared else job.data_rank
            torch.manual_seed(noise_seed(config.seed, state.step, part, own))
            with job.noise(rows), job.last_part() if part == len(parts) - 1 else nullcontext():
                nll += self.learner.accumulate(
                    self.model, mine, divisor=divisor, device=job.device, dtype=DTYPES[config.dtype],
                    z_loss=config.z_loss,
                ).nll  # fmt: skip
        # The one place where a step waits for a GPU.
        loss_sum, self.norm, self.asked = job.totals(nll, self.model, signals.asked)
        if not math.isfinite(loss_sum) or not math.isfinite(self.norm):
            raise self.diverged("loss" if not math.isfinite(loss_sum) else "gradient", state.step + 1)
        if config.clip is not None and self.norm > config.clip:
            job.scale_gradients(self.model, config.clip / self.norm)
        self.rate = rate(config, state.step)
        optim.set_rate(self.optimizer, self.rate)
        self.optimizer.step()
        job.settle(self.optimizer)
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
        if self.peak_flops and self.whole:
            peak = self.peak_flops * self.job.size
            row["share_of_peak"] = round(state.window_flops / state.window_seconds / peak, 4)
        state.window_nll, state.window_seconds = 0.0, 0.0
        state.window_targets = state.window_tokens = state.window_flops = 0
        return row

    def judge(self) -> dict[str, float]:
        """Scores first, the held-out loss last. Dropout is off, and no gradient is kept.

        Every rank asks the same questions, of a whole model; the held-out loss alone is spread over them.
        """
        scores: dict[str, float] = {}
        self.model.eval()
        try:
            with torch.no_grad():
                if self.evaluate is not None:
                    asked = self.job.whole(self.model, self.job.device) if self.job.sharded else self.model
                    assert asked is not None
                    scores |= {name: float(value) for name, value in self.evaluate(asked).items()}
                if self.held_out:
                    scores[HELD_OUT_LOSS] = self.held_out_loss()
        finally:
            self.model.train()
        return self.job.first_says(lambda: scores)

    def held_out_loss(self) -> float:
        dtype, device = DTYPES[self.config.dtype], self.job.device
        mine = [self.job.share(batch)[0] for batch in self.held_out]
        found = [self.learner.sums(self.model, batch, device=device, dtype=dtype) for batch in mine]
        sums = [sum(float(one.nll) for one in found), sum(one.tokens for one in found)]
        nll, tokens = self.job.sum(torch.tensor(sums, dtype=torch.float64, device=device)).tolist()
        self.job.put_away(self.model)
        return nll / max(1, tokens)

    def improved(self, judged: Mapping[str, float]) -> bool:
        """Take the evaluation into the state; whether this step is now the best one."""
        state = self.state
        state.evaluated = state.step
        state.held_out_loss = judged.get(HELD_OUT_LOSS)
        state.scores = {name: value for name, value in judged.items() if name != HELD_OUT_LOSS}
        metric = self.best or next(iter(judged))
        if metric not in judged:
            raise UserError(f"no evaluation gives {metric!r}; {nearest(metric, judged)}")
        found = Best(state.step, metric, judged[metric])
        if not found.beats(state.best):
            return False
        state.best = found
        return True

    def save(self, *, chosen: bool) -> None:
        finite = all(bool(torch.isfinite(local(parameter)).all()) for parameter in self.model.parameters())
        if self.job.any(not finite):
            raise self.diverged("weights", self.state.step)
        self.saver.save(
            self.model, self.tokenizer, self.optimizer, self.state, keep=self.config.keep, chosen=chosen
        )  # fmt: skip
        self.saved = self.state.step

    def diverged(self, what: str, step: int) -> BaseException:
        self.saver.finish()
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
        return self.job.together(
            UserError(
                f"training stopped at step {step}: the {what} {verb} no longer finite; {where}; "
                f"try {', or '.join(cure)}, in a new --out"
            )
        )


class Lookahead:
    """Makes the next batches in threads, one in each, while the model works on this one. Their order is as asked."""

    def __init__(self, batches: Batches, steps: int, loaders: int = 1) -> None:
        self.batches, self.steps, self.loaders = batches, steps, loaders
        self.pool = ThreadPoolExecutor(max_workers=loaders, thread_name_prefix="batches")
        self.ahead: deque[tuple[int, Future[Batch]]] = deque()

    def __call__(self, n: int) -> Batch:
        if not self.ahead or self.ahead[0][0] != n:
            self.ahead = deque([(n, self.pool.submit(self.batches, n))])
        batch = self.ahead.popleft()[1].result()
        for m in range(n + 1 + len(self.ahead), min(n + 1 + self.loaders, self.steps)):
            self.ahead.append((m, self.pool.submit(self.batches, m)))
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
    fields = [[None] * parts if array is None else np.array_split(array, parts) for array in batch]
    for piece in zip(*fields, strict=True):
        if len(piece[0]):
            yield Batch(*piece)


def check_same_folder(out: Path, job: Ranks, step: int | None) -> None:
    """Ranks on several machines must see one folder. `step` is the last checkpoint that rank 0 sees there."""
    seen = checkpoint.steps(out)[-1:]
    if job.any(seen != ([] if step is None else [step])):
        raise job.together(
            UserError(f"not every rank sees the same checkpoints in {out}; give an --out that all machines share")
        )


def noise_seed(seed: int, step: int, part: int, rank: int = 0) -> int:
    """Seed of dropout for one part of one step: hashed, so that neighbouring steps have nothing in common."""
    words = f"{seed}:{step}:{part}" + (f":{rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "little")


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
