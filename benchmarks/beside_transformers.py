"""The same pretraining run by our engine and by the `transformers` model: same weights at the start, same batches, same
optimizer, steps taken in turn within one process, so that a machine that slows down slows both.

    python benchmarks/beside_transformers.py --corpus CORPUS --shape tiny-nl2 --steps 50 --dtype float32
    python benchmarks/beside_transformers.py --corpus CORPUS --shape tiny-nl2 --minutes 20 --dtype bfloat16 --out OUT

Prints both losses, tokens/s and shares of the matrix-product peak (measured again and again during the run), and a last
line of JSON. With `--out` it also writes every step as JSONL, and the two loss curves as SVG and PNG.
z-loss is off, since the reference has none. Needs `transformers`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from deepnarrow import machine
from deepnarrow.files import append_json
from deepnarrow.measure.ceilings import gemm_gflops
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.shapes.counts import parameters, training_step_flops
from deepnarrow.text.batches import Batch, CorpusBatches, fixed_batches
from deepnarrow.text.corpus import Corpus, open_corpus
from deepnarrow.train import loss, optim
from deepnarrow.train.config import Config
from deepnarrow.train.schedule import rate

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEAK_EVERY = 50  # steps between two measurements of the peak


class Ours:
    name = "deepnarrow"

    def __init__(self, model: T5, config: Config) -> None:
        self.model, self.config = model.train(), config
        self.optimizer = optim.build(config, model)

    def step(self, number: int, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        divisor = loss.count(batch.targets, "tokens")
        found = loss.accumulate(self.model, batch, divisor=divisor, device=CPU, dtype=DTYPES[self.config.dtype])
        optim.set_rate(self.optimizer, rate(self.config, number))
        self.optimizer.step()
        return float(found.nll) / divisor


class Theirs:
    name = "transformers"

    def __init__(self, folder: Path, config: Config, attention: str) -> None:
        from transformers import T5ForConditionalGeneration

        self.model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation=attention).train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.config, self.optimizer = config, optim.build(config, self.model)

    def step(self, number: int, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        inputs, labels = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            found = self.model(input_ids=inputs, labels=labels, use_cache=False).loss
        found.backward()
        optim.set_rate(self.optimizer, rate(self.config, number))
        self.optimizer.step()
        return float(found.detach())


def main() -> None:
    asked = arguments()
    corpus = open_corpus(asked.corpus)
    config = Config(
        shape=asked.shape, steps=10**6, batch=asked.batch, input_length=asked.input_length, dtype=asked.dtype,
        optimizer=asked.optimizer, learning_rate=asked.learning_rate, schedule=asked.schedule, warmup=asked.warmup,
        z_loss=0.0, seed=asked.seed,
    )  # fmt: skip
    shape = parse(config.shape)
    batches = CorpusBatches(corpus=corpus, seed=config.seed, batch=config.batch, input_length=config.input_length)
    model = T5(shape)
    initialise(model, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, None, Path(folder) / "start")
        engines = [Ours(model, config), Theirs(Path(folder) / "start", config, asked.attention)]
    tokens = config.batch * (config.input_length + batches.target_length)
    flops = training_step_flops(
        shape, batch=config.batch, input_length=config.input_length, target_length=batches.target_length
    )
    print(
        f"{shape}: {parameters(shape).total:,} parameters, batch {config.batch} x {config.input_length}/"
        f"{batches.target_length}, {config.dtype}, {config.optimizer}, {torch.get_num_threads()} threads"
    )
    rows, peaks, spent, number = [], [], 0.0, 0
    while number < asked.steps if asked.steps else spent < asked.minutes * 60:
        if number % PEAK_EVERY == 0:
            peaks.append(gemm_gflops(config.dtype, seconds=0.4))
        batch = batches(number)
        row: dict[str, float] = {"step": number + 1}
        for engine in engines if number % 2 == 0 else engines[::-1]:
            began = time.perf_counter()
            row[f"{engine.name}_loss"] = engine.step(number, batch)
            row[f"{engine.name}_seconds"] = time.perf_counter() - began
        spent += row["deepnarrow_seconds"]
        number += 1
        rows.append(row)
        if asked.out:
            append_json(asked.out / "steps.jsonl", row)
        if number <= asked.show or number % PEAK_EVERY == 0:
            losses = row["deepnarrow_loss"], row["transformers_loss"]
            print(
                f"step {number:>5}  {losses[0]:.6f}  {losses[1]:.6f}  difference {losses[0] - losses[1]:+.2e}",
                flush=True,
            )
    summary = summarise(rows, tokens, flops, median(peaks), [engine.name for engine in engines])
    summary |= {
        "shape": str(shape), "dtype": config.dtype, "optimizer": config.optimizer, "steps": number,
        "batch": [config.batch, config.input_length, batches.target_length], "attention": asked.attention,
        "large_pages": asked.large_pages,
        "gemm_gflops": round(median(peaks), 1), "threads": torch.get_num_threads(),
        "machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit(),
    }  # fmt: skip
    if asked.out:
        summary["held_out_loss"] = held_out(engines, corpus, config, asked.out)
    show(summary)
    if asked.out:
        draw(rows, asked.out, summary)
    print(json.dumps(summary))


def held_out(engines: list, corpus: Corpus, config: Config, out: Path) -> dict[str, float]:
    """Nats per target token of both models on the corpus' held-out part; theirs goes through our loader on the way."""
    part = corpus.held_out()
    if part is None:
        return {}
    batches = fixed_batches(part, batch=config.batch, input_length=config.input_length)
    save_model(engines[0].model, corpus.tokenizer(), out / "model")
    engines[1].model.save_pretrained(out / "reference")
    models = {"deepnarrow": engines[0].model, "transformers": open_model(out / "reference").model}
    return {
        name: round(loss.mean(loss.sums(model.eval(), batch, device=CPU) for batch in batches), 4)
        for name, model in models.items()
    }


def summarise(rows: list[dict], tokens: int, flops: int, peak: float, names: list[str]) -> dict:
    found: dict = {}
    for name in names:
        seconds = median(row[f"{name}_seconds"] for row in rows[2:] or rows)  # the first steps warm up
        found[name] = {
            "tokens_per_second": round(tokens / seconds),
            "gflops": round(flops / seconds / 1e9, 1),
            "share_of_gemm": round(flops / seconds / 1e9 / peak, 3),
            "seconds_per_step": round(seconds, 4),
            "minutes": round(sum(row[f"{name}_seconds"] for row in rows) / 60, 1),
            "last_loss": round(sum(row[f"{name}_loss"] for row in rows[-20:]) / len(rows[-20:]), 4),
        }
    ratios = [row["transformers_seconds"] / row["deepnarrow_seconds"] for row in rows[2:] or rows]
    found["speed_ratio"] = round(median(ratios), 3)
    gaps = [abs(row["deepnarrow_loss"] - row["transformers_loss"]) for row in rows]
    found["largest_loss_difference"] = {"first_50": max(gaps[:50]), "all": max(gaps)}
    return found


def show(summary: dict) -> None:
    print(f"\n{'':<14}{'tokens/s':>10}{'GFLOP/s':>10}{'of peak':>10}{'s/step':>9}{'minutes':>9}{'last loss':>11}")
    for name in ("deepnarrow", "transformers"):
        one = summary[name]
        print(
            f"{name:<14}{one['tokens_per_second']:>10,}{one['gflops']:>10.1f}{one['share_of_gemm']:>10.1%}"
            f"{one['seconds_per_step']:>9.3f}{one['minutes']:>9.1f}{one['last_loss']:>11.4f}"
        )
    print(f"peak of a {summary['dtype']} matrix product: {summary['gemm_gflops']} GFLOP/s")
    print(f"median of time(transformers) / time(deepnarrow), step by step: {summary['speed_ratio']}")


def draw(rows: list[dict], out: Path, summary: dict) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, style in (("deepnarrow", "-"), ("transformers", "--")):
        losses = [row[f"{name}_loss"] for row in rows]
        width = max(1, len(losses) // 60)
        smooth = [
            sum(losses[max(0, i - width) : i + 1]) / len(losses[max(0, i - width) : i + 1]) for i in range(len(losses))
        ]
        axes.plot(
            [row["step"] for row in rows],
            smooth,
            style,
            label=f"{name}: {summary[name]['tokens_per_second']:,} tokens/s",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats per target token")
    axes.set_title(f"{summary['shape']}, {summary['dtype']}, same data, optimizer and first weights")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    for kind in ("svg", "png"):
        figure.savefig(out / f"loss.{kind}", dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="token shards, from `deepnarrow corpus build`")
    parser.add_argument("--shape", default="tiny-nl2")
    parser.add_argument("--steps", type=int, help="steps of each; or")
    parser.add_argument("--minutes", type=float, default=1.0, help="minutes of our engine")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--input-length", type=int, default=512)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--optimizer", default="adafactor")
    parser.add_argument("--learning-rate", type=float, default=1.0)
    parser.add_argument("--schedule", default="inverse_sqrt")
    parser.add_argument("--warmup", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", default="eager", help="of transformers: eager or sdpa")
    parser.add_argument("--show", type=int, default=50, help="print the losses of the first steps")
    parser.add_argument("--large-pages", action="store_true", help="for both, as our verbs do (docs/log.md)")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "steps.jsonl").unlink(missing_ok=True)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1" if asked.large_pages else "0"  # torch reads it at its first allocation
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return asked


if __name__ == "__main__":
    main()
