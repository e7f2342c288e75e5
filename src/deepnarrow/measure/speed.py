"""Time and weigh models on this machine.

What is timed: full inputs of `input_length` random tokens (no padding), answers forced to `target_length` tokens,
greedy with a cache, one process, weights and inputs already on the device. Every part runs at least once to warm up and
then `repeats` times; the figure is the median, with the quartiles beside it. Several models are timed in turn within
each repeat, so that a machine that slows down slows them all. Speed does not depend on what the weights are, so a shape
with random weights is timed as well as a trained model.
"""

import copy
import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.measure.ceilings import DTYPES, ceilings, elapsed, read_bandwidth
from deepnarrow.measure.memory import fenced, free_memory, is_full, peak_growth
from deepnarrow.measure.timing import OUT_OF_MEMORY, Conditions, Phase, Spread, Timing
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import Shape, counts, parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import loss, optim
from deepnarrow.train.config import Config

FIRST_REAL_ID = 3  # 0, 1 and 2 are padding, end and unknown
LEARNING_RATE = 1e-3
NO_DECODER = "no decoder"
Say = Callable[[str], object]


class Entry(NamedTuple):
    """Something to time: a model, or a shape that is then built with random weights."""

    name: str
    shape: Shape
    model: T5 | None = None


def time_model(
    what: T5 | Shape | str,
    *,
    name: str | None = None,
    input_length: int = 512,
    target_length: int = 114,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 5,
    train: bool = True,
) -> Timing:
    """Time one model, or one shape (also as a string) with random weights."""
    if isinstance(what, T5):
        entry = Entry(name or str(what.shape), what.shape, what)
    else:
        shape = parse(what) if isinstance(what, str) else what
        entry = Entry(name or str(shape), shape)
    conditions = conditions_here(
        input_length=input_length, target_length=target_length, batch=batch, dtype=dtype, device=device
    )
    return time_models([entry], conditions, repeats=repeats, train=train)[0]


def conditions_here(
    *, input_length: int, target_length: int, batch: int, dtype: str, device: str, optimizer: str = "adafactor"
) -> Conditions:
    """Check what is asked and add the number of threads."""
    if dtype not in DTYPES:
        raise UserError(f"dtype must be {' or '.join(DTYPES)}, not {dtype!r}")
    for what, value, least in (
        ("input length", input_length, 2),
        ("target length", target_length, 2),
        ("batch", batch, 1),
    ):
        if value < least:
            raise UserError(f"the {what} must be at least {least}, not {value}")
    return Conditions(
        input_length=input_length,
        target_length=target_length,
        batch=batch,
        dtype=dtype,
        device=device,
        threads=torch.get_num_threads(),
        optimizer=optimizer,
    )


def time_models(
    entries: Sequence[Entry],
    conditions: Conditions,
    *,
    repeats: int = 5,
    train: bool = True,
    say: Say = lambda line: None,
) -> list[Timing]:
    """Time several models in turn; one that does not fit the memory is reported as OOM and the others go on.

    `say` is told what is happening, between timed parts only.
    """
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, not {repeats}")
    subjects = []
    for entry in entries:
        say(f"warming up {entry.name}")
        subjects.append(Subject(entry, conditions))
        subjects[-1].warm_up()
    for number in range(repeats):
        for subject in subjects:
            say(f"answering, round {number + 1} of {repeats}: {subject.name}")
            subject.answer_once()
    if train:
        for subject in subjects:
            say(f"warming up the training of {subject.name}")
            subject.warm_up_training()
        for number in range(repeats):
            for subject in subjects:
                say(f"training, round {number + 1} of {repeats}: {subject.name}")
                subject.train_once()
    say("measuring this machine's ceilings")
    timings = [subject.timing(train) for subject in subjects]
    for subject in subjects:
        subject.close()
    return timings


class Subject:
    """One model under test: what it ran, how long each run took, what did not fit."""

    def __init__(self, entry: Entry, conditions: Conditions) -> None:
        self.name, self.shape, self.at = entry.name, entry.shape, conditions
        self.device, self.dtype = torch.device(conditions.device), DTYPES[conditions.dtype]
        self.taken: dict[str, list[float]] = {}
        self.outcomes: dict[str, str] = {}
        self.weights = counts.weight_bytes(self.shape, conditions.dtype)
        self.memory: int | None = None
        self.train_memory: int | None = None
        self.trainer: Trainer | None = None
        self.model: T5 | None = None
        self.attempt("encode", lambda: self.load(entry.model))
        if not self.shape.decoder_layers:
            self.outcomes |= dict.fromkeys(("first_token", "per_token", "end_to_end", "train_step"), NO_DECODER)

    def load(self, model: T5 | None) -> None:
        """A copy in the dtype and on the device asked for; the caller's model is left as it is."""
        if model is None:
            require(counts.weight_bytes(self.shape, "float32"), torch.device("cpu"))
            model = T5(self.shape)
            initialise(model, 0)
        else:
            require(self.weights, self.device)
            model = copy.deepcopy(model)
        self.model = model.to(device=self.device, dtype=self.dtype).eval()
        self.inputs_BL = self.tokens(self.at.batch, self.at.input_length)

    def tokens(self, rows: int, length: int) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(min(FIRST_REAL_ID, self.shape.vocab - 1), self.shape.vocab, (rows, length), generator=draw)
        return ids.to(self.device)

    def attempt(self, phase: str, work: Callable[[], object]) -> None:
        """Run `work` unless this phase has failed; being out of memory is an outcome, any other error is an error."""
        if phase in self.outcomes:
            return
        try:
            with fenced(self.device):
                work()
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            self.outcomes[phase] = OUT_OF_MEMORY
        if phase in self.outcomes:
            clean(self.device)

    @torch.inference_mode()
    def encode(self) -> None:
        assert self.model is not None
        self.model.encode(self.inputs_BL)

    @torch.inference_mode()
    def answer(self, inputs_BL: Tensor) -> tuple[float, float]:
        """Seconds to the first token's id, and from there to the last one's."""
        model, rows = self.model, inputs_BL.shape[0]
        assert model is not None
        state: dict[str, Tensor] = {}

        def begin() -> None:
            cache = model.start_cache(model.encode(inputs_BL), model.memory_mask(inputs_BL != 0), self.at.target_length)
            start_B1 = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
            state["next"] = model.decode(start_B1, None, None, cache)[:, -1:].argmax(-1)
            self.cache = cache

        def go_on() -> None:
            token_B1 = state["next"]
            for _ in range(self.at.target_length - 1):
                token_B1 = model.decode(token_B1, None, None, self.cache)[:, -1:].argmax(-1)

        return elapsed(begin, self.device), elapsed(go_on, self.device)

    def warm_up(self) -> None:
        """Once through everything that answers, with an eye on the memory."""
        if "encode" in self.outcomes:
            self.outcomes |= {"first_token": OUT_OF_MEMORY, "end_to_end": OUT_OF_MEMORY} | self.outcomes
            return
        with peak_growth(self.device) as peak:
            self.answer_once()
        self.taken.clear()
        if peak.bytes is not None and OUT_OF_MEMORY not in self.outcomes.values():
            self.memory = self.weights + peak.bytes

    def answer_once(self) -> None:
        """One round: encode; answer the whole batch; answer one example.

        It begins with an encoding that is not timed, so that the caches hold this model and not the one before it.
        """

        def encode() -> None:
            self.encode()
            self.note("encode", elapsed(self.encode, self.device))

        def answer_batch() -> None:
            first, rest = self.answer(self.inputs_BL)
            self.note("first_token", first)
            self.note("per_token", rest / (self.at.target_length - 1))
            if self.at.batch == 1:
                self.note("end_to_end", first + rest)

        self.attempt("encode", encode)
        self.attempt("first_token", answer_batch)
        if self.at.batch == 1:
            if "first_token" in self.outcomes:
                self.outcomes.setdefault("end_to_end", self.outcomes["first_token"])
        else:
            self.attempt("end_to_end", lambda: self.note("end_to_end", sum(self.answer(self.inputs_BL[:1]))))

    def warm_up_training(self) -> None:
        """Two steps, the second with the optimizer's state in place, which is when memory is highest."""
        if self.model is None:
            self.outcomes.setdefault("train_step", OUT_OF_MEMORY)
            return

        def begin() -> None:
            require(counts.training_bytes(self.shape, self.at.optimizer).total, self.device)
            self.trainer = Trainer(self)
            self.trainer.step()
            self.trainer.step()

        with peak_growth(self.device) as peak:
            self.attempt("train_step", begin)
        if "train_step" in self.outcomes:
            self.trainer = None
            clean(self.device)
        else:
            self.train_memory = peak.bytes

    def train_once(self) -> None:
        def step() -> None:
            assert self.trainer is not None
            self.note("train_step", elapsed(self.trainer.step, self.device))

        self.attempt("train_step", step)

    def note(self, phase: str, seconds: float) -> None:
        self.taken.setdefault(phase, []).append(seconds * 1e3)

    def close(self) -> None:
        self.model = self.trainer = None
        self.__dict__.pop("cache", None)
        clean(self.device)

    def timing(self, train: bool) -> Timing:
        at, shape = self.at, self.shape
        lengths = {"input_length": at.input_length, "target_length": at.target_length}
        reading = counts.encode_flops(shape, input_length=at.input_length, batch=at.batch)
        whole = counts.generate_flops(shape, **lengths, batch=at.batch)
        first = (
            reading
            + counts.cross_keys_values_flops(shape, input_length=at.input_length, batch=at.batch)
            + counts.decode_step_flops(shape, position=0, input_length=at.input_length, batch=at.batch)
        )
        return Timing(
            name=self.name,
            shape=str(shape),
            parameters=counts.parameters(shape).total,
            conditions=at,
            weights_mb=self.weights / 1e6,
            encode=self.phase("encode", reading),
            first_token=self.phase("first_token", first),
            per_token=self.phase("per_token", (whole - first) // (at.target_length - 1), decoding=True),
            end_to_end=self.phase("end_to_end", counts.generate_flops(shape, **lengths)),
            train_step=self.phase("train_step", counts.training_step_flops(shape, **lengths, batch=at.batch))
            if train
            else None,
            peak_memory_mb=None if self.memory is None else self.memory / 1e6,
            train_peak_memory_mb=None if self.train_memory is None else self.train_memory / 1e6,
        )

    def phase(self, name: str, flops: int, *, decoding: bool = False) -> Phase:
        outcome = self.outcomes.get("first_token" if name == "per_token" else name, "ok")
        taken = self.taken.get(name) if outcome == "ok" else None
        ceiling = ceilings(self.at.device).gemm(self.at.dtype)
        size = decode_step_bytes(self.shape, self.at) if decoding and self.shape.decoder_layers else None
        return Phase(
            milliseconds=Spread.of(taken) if taken else None,
            outcome=outcome,
            flops=flops,
            gemm_gflops=ceiling,
            bytes=size,
            bandwidth_gbs=read_bandwidth(size, self.at.device) if size and taken else None,
        )


class Trainer:
    """A copy of a model in float32, its optimizer, and one batch that it learns over and over."""

    def __init__(self, subject: Subject) -> None:
        at = subject.at
        self.device, self.dtype = subject.device, subject.dtype
        assert subject.model is not None
        self.model = copy.deepcopy(subject.model).float().train()
        config = Config(
            shape=str(subject.shape),
            steps=1,
            batch=at.batch,
            input_length=at.input_length,
            target_length=at.target_length,
            optimizer=at.optimizer,
            dtype=at.dtype,
        )
        self.optimizer = optim.build(config, self.model)
        optim.set_rate(self.optimizer, LEARNING_RATE)
        self.batch = Batch(
            subject.inputs_BL.cpu().numpy().astype(np.int64),
            subject.tokens(at.batch, at.target_length).cpu().numpy().astype(np.int64),
        )

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        divisor = loss.count(self.batch.targets, "tokens")
        loss.accumulate(self.model, self.batch, divisor=divisor, device=self.device, dtype=self.dtype, z_loss=1e-4)
        self.optimizer.step()


def decode_step_bytes(shape: Shape, at: Conditions) -> int:
    """What one decoding step must read at the middle of an answer, at least: every decoder weight once, however large
    the batch, but not the projections of the encoder's output, which were used before; and both caches of every row.

    >>> from deepnarrow.shapes import parse
    >>> decode_step_bytes(parse("tiny"), Conditions(input_length=2, target_length=2)) / 1e6 < 4 * 15.6
    True
    """
    parts = counts.parameters(shape)
    decoder = parts.decoder + (parts.encoder if shape.share_encoder_decoder else 0)
    projections = counts.cross_keys_values_flops(shape, input_length=1) // 2  # two FLOPs for each weight and token
    output = shape.d_model * shape.vocab
    width = DTYPES[at.dtype].itemsize
    cache = counts.self_cache_bytes(shape, target_length=-(-at.target_length // 2), batch=at.batch, dtype=at.dtype)
    cross = counts.cross_cache_bytes(shape, input_length=at.input_length, batch=at.batch, dtype=at.dtype)
    return (decoder - projections + output) * width + cache + cross


def require(size: int, device: torch.device) -> None:
    """Stop before an allocation that cannot succeed: filling the memory first would make the whole machine wait."""
    free = free_memory(device)
    if free is not None and size > free:
        raise MemoryError(f"needs {size} bytes, {free} are free")


def clean(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
