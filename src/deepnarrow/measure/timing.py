"""What a model's speed is, as one frozen value, and how it enters the ledger."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any, NamedTuple

from deepnarrow.measure.ledger import Record, record

OUT_OF_MEMORY = "OOM"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a timing depends on beside the model. Lengths in tokens; every input is full, every answer is forced to
    `target_length` tokens and decoded greedily with a cache."""

    input_length: int = 512
    target_length: int = 114
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    optimizer: str = "adafactor"


class Spread(NamedTuple):
    """Median and quartiles over `n` repeats."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """
        >>> Spread.of([4.0, 1.0, 2.0, 3.0, 100.0])
        Spread(median=3.0, low=2.0, high=4.0, n=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One timed part. `milliseconds` is None when it did not run; `outcome` says why: "OOM", or "no decoder".

    `flops` counts matrix products by `shapes.counts`, for the whole batch. `bytes` is what one decoding step must read
    at least: weights once and caches.
    """

    milliseconds: Spread | None
    outcome: str = "ok"
    flops: int
    gemm_gflops: float  # the ceiling of the dtype
    bytes: int | None = None
    bandwidth_gbs: float | None = None  # the ceiling at that working set

    @property
    def gflops(self) -> float | None:
        return self.flops / self.milliseconds.median / 1e6 if self.milliseconds else None

    @property
    def gemm_share(self) -> float | None:
        return self.gflops / self.gemm_gflops if self.gflops is not None and self.gemm_gflops else None

    @property
    def gbs(self) -> float | None:
        return self.bytes / self.milliseconds.median / 1e6 if self.bytes and self.milliseconds else None

    @property
    def bandwidth_share(self) -> float | None:
        return self.gbs / self.bandwidth_gbs if self.gbs is not None and self.bandwidth_gbs else None


PHASES = {  # field of `Timing` -> what it is, for tables and cards
    "encode": "encode",
    "first_token": "first token",
    "per_token": "each further token",
    "end_to_end": "one answer",
    "train_step": "training step",
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Speed and memory of one model under stated conditions; MB are 10**6 bytes.

    encode        the encoder over the whole batch
    first_token   from input ids to the first output ids: encoder, caches, one decoding step
    per_token     one further decoding step of the whole batch
    end_to_end    one example alone, from input ids to `target_length` output ids
    train_step    forward, backward and update of the whole batch

    `peak_memory_mb` is the weights plus the highest growth of memory while answering; `train_peak_memory_mb` the same
    while training, gradients and optimizer included. None where it was not to be had.
    """

    name: str
    shape: str
    parameters: int
    conditions: Conditions
    weights_mb: float
    encode: Phase
    first_token: Phase
    per_token: Phase
    end_to_end: Phase
    train_step: Phase | None
    peak_memory_mb: float | None
    train_peak_memory_mb: float | None

    @property
    def train_tokens_per_second(self) -> float | None:
        """Input and target tokens of the batch over the training step's median."""
        if self.train_step is None or self.train_step.milliseconds is None:
            return None
        at = self.conditions
        return at.batch * (at.input_length + at.target_length) / self.train_step.milliseconds.median * 1e3

    def phases(self) -> Iterator[tuple[str, Phase]]:
        """Every phase that was asked for, by its field's name."""
        for name in PHASES:
            phase = getattr(self, name)
            if phase is not None:
                yield name, phase

    def to_json(self) -> dict[str, Any]:
        """Plain values for a program to read: milliseconds as median and quartiles, shares between 0 and about 1."""
        found: dict[str, Any] = {
            "name": self.name,
            "shape": self.shape,
            "parameters": self.parameters,
            "conditions": asdict(self.conditions),
            "weights_mb": self.weights_mb,
            "peak_memory_mb": self.peak_memory_mb,
            "train_peak_memory_mb": self.train_peak_memory_mb,
            "train_tokens_per_second": self.train_tokens_per_second,
        }
        for name, phase in self.phases():
            spread = phase.milliseconds
            found[name] = {
                "outcome": phase.outcome,
                "ms": spread._asdict() if spread else None,
                "flops": phase.flops,
                "gflops": phase.gflops,
                "share_of_gemm": phase.gemm_share,
                "bytes": phase.bytes,
                "gbs": phase.gbs,
                "share_of_bandwidth": phase.bandwidth_share,
            }
        return found


def to_records(timing: Timing, *, model: str | None = None, seed: int | None = None) -> list[Record]:
    """The timing as ledger lines, one for each phase and size.

    Metrics: encode, first_token, per_token, end_to_end, train_step (ms); train_tokens_per_second; weights, peak_memory,
    train_peak_memory (MB). `low` and `high` are quartiles.
    """
    here: dict[str, Any] = {
        "kind": "timing",
        "shape": timing.shape,
        "model": model or timing.name,
        "seed": seed,
        "parameters": timing.parameters,
    }
    conditions = asdict(timing.conditions)
    lines = []
    for name, phase in timing.phases():
        spread = phase.milliseconds
        extra = {
            "conditions": conditions,
            "outcome": phase.outcome,
            "flops": phase.flops,
            "gflops": phase.gflops,
            "gemm_ceiling_gflops": phase.gemm_gflops,
            "share_of_gemm": phase.gemm_share,
            "bytes": phase.bytes,
            "bandwidth_ceiling_gbs": phase.bandwidth_gbs,
            "share_of_bandwidth": phase.bandwidth_share,
        }
        lines.append(
            record(
                **here,
                metric=name,
                unit="ms",
                value=spread.median if spread else None,
                low=spread.low if spread else None,
                high=spread.high if spread else None,
                n=spread.n if spread else None,
                extra={key: value for key, value in extra.items() if value is not None},
            )
        )
    train_outcome = timing.train_step.outcome if timing.train_step else None
    sizes = [
        ("weights", timing.weights_mb, "MB", "ok"),
        ("peak_memory", timing.peak_memory_mb, "MB", timing.end_to_end.outcome),
    ]
    if timing.train_step:
        sizes += [
            ("train_peak_memory", timing.train_peak_memory_mb, "MB", str(train_outcome)),
            ("train_tokens_per_second", timing.train_tokens_per_second, "tokens/s", str(train_outcome)),
        ]
    for name, value, unit, outcome in sizes:
        outcome = "not measured" if value is None and outcome == "ok" else outcome
        extra = {"conditions": conditions, "outcome": outcome}
        lines.append(record(**here, metric=name, unit=unit, value=value, extra=extra))
    return lines
