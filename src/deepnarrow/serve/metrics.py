"""What Prometheus reads at /metrics: where the time of requests goes, what is held, what was refused."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from deepnarrow.serve.jobs import Ended, Event, Load
from deepnarrow.serve.workers import Pending, Worker, total

Table = dict[str, tuple[str, Callable[[Worker], float]]]  # name -> what it is, and its value
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.workers: list[Worker] = []

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"deepnarrow_{name}", what, ["model"], registry=self.registry, buckets=buckets)

        self.requests = Counter(
            "deepnarrow_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "deepnarrow_request_seconds", "From a request's headers to the end of its answer.", ["route"],
            registry=self.registry, buckets=LONG,
        )  # fmt: skip
        self.queue = histogram("queue_seconds", "From arrival to the encoder.", LONG)
        self.encode = histogram(
            "encode_seconds", "In the encoder, the steps of others between its layers included.", LONG
        )
        self.first = histogram("first_token_seconds", "From the encoder's end to the first token.", SHORT)
        self.token = histogram("token_seconds", "From token to token, the mean of an answer.", SHORT)
        self.job_seconds = histogram("input_seconds", "From an input's arrival to its answer.", LONG)
        self.input_tokens = histogram("input_tokens", "Tokens of inputs.", SIZES)
        self.generated = histogram("generated_tokens", "Tokens of answers.", SIZES)
        self.registry.register(Held(self))

    def heard(self, pending: Pending, event: Event) -> None:
        """A job has ended, in whatever way."""
        if not isinstance(event, Ended):
            return
        model = pending.model
        begun = pending.begun if pending.begun is not None else pending.arrived
        self.queue.labels(model).observe(max(0.0, begun - pending.arrived))
        self.encode.labels(model).observe(max(0.0, event.encoded - begun))
        self.job_seconds.labels(model).observe(max(0.0, time.monotonic() - pending.arrived))
        self.input_tokens.labels(model).observe(len(pending.job.ids))
        if event.answers:
            self.first.labels(model).observe(max(0.0, event.first - event.encoded))
            longest = max(answer.tokens for answer in event.answers)
            self.generated.labels(model).observe(sum(answer.tokens for answer in event.answers))
            if longest > 1:
                self.token.labels(model).observe((event.at - event.first) / (longest - 1))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Held(Collector):
    """What the workers hold and count, asked for when somebody looks."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Any]:
        gauges: Table = {
            "up": ("Whether the worker is ready.", lambda worker: float(worker.state == "ready")),
            "waiting": ("Inputs in the queue.", lambda worker: worker.waiting),
            "active": ("Inputs being encoded or answered.", lambda worker: worker.active),
            "rows_active": ("Sequences that grow, and those being encoded.", lambda worker: worker.load.rows),
            "tokens_held": ("Tokens that what is active may come to hold.", lambda worker: worker.load.tokens),
            "cache_bytes": ("Bytes of encoded inputs kept.", lambda worker: worker.load.cache_bytes),
            "expected_wait_seconds": ("Until an input that comes now begins.", lambda worker: worker.expected_wait()),
        }
        counters: Table = {
            "cache_hits": ("Inputs found encoded.", lambda worker: done(worker).cache_hits),
            "cache_misses": ("Inputs not found encoded.", lambda worker: done(worker).cache_misses),
            "encoded_tokens": ("Tokens that went through the encoder.", lambda worker: done(worker).encoded),
            "steps": ("Steps of the decoder.", lambda worker: done(worker).steps),
            "step_seconds": ("Seconds of all steps of the decoder.", lambda worker: done(worker).stepped),
            "refused": ("Requests refused for want of room.", lambda worker: worker.counts.refused),
            "cancelled": ("Inputs given up by their clients.", lambda worker: worker.counts.cancelled),
            "deadlines": ("Inputs whose deadline passed.", lambda worker: worker.counts.late),
            "failed": ("Inputs lost with a worker.", lambda worker: worker.counts.failed),
            "worker_restarts": ("Times a worker was started again.", lambda worker: worker.counts.restarts),
        }
        for family, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (what, value) in table.items():
                found = family(f"deepnarrow_{name}", what, labels=["worker"])
                for worker in self.metrics.workers:
                    found.add_metric([worker.name], value(worker))
                yield found


def done(worker: Worker) -> Load:
    return total(worker.done, worker.load)
