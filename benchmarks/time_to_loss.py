"""Time to a held-out loss: our engine against the `transformers` model, both under nanoT5's recipe, for equally long.

    python benchmarks/time_to_loss.py --corpus CORPUS --shape tiny-v8192 --minutes 20 --out OUT

Both start from the same weights and read the same batches in the same order; optimizer (AdamWScale), clipping and
schedule (cosine, an eighth of it warm-up) are nanoT5's (arXiv:2309.02373), the schedule laid out over the time rather
than over a number of steps. The clock stands still during evaluations. The two run at the same time, each in a process
of its own on half of the cores, so that whatever the machine does happens to both; `--in-turn` runs one after the
other on all cores. Prints a table, writes OUT/curves.jsonl and OUT/time_to_loss.svg, and ends with a line of JSON.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ENGINES = ("deepnarrow", "transformers")


def main() -> None:
    asked = arguments()
    if asked.engine:
        run(asked, asked.engine)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    started = []
    for number, engine in enumerate(ENGINES):
        process = start(asked, engine, number)
        if asked.in_turn:
            require(process)
        started.append(process)
    for process in started:
        require(process)
    report(asked)


def start(asked: argparse.Namespace, engine: str, number: int) -> subprocess.Popen:
    cores = sorted(os.sched_getaffinity(0))
    half = cores if asked.in_turn else cores[number * len(cores) // 2 : (number + 1) * len(cores) // 2] or cores
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(half)), "THP_MEM_ALLOC_ENABLE": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--engine", engine]
    return subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, half))


def require(process: subprocess.Popen) -> None:
    if process.wait():
        sys.exit(f"an engine ended with code {process.returncode}")


def run(asked: argparse.Namespace, name: str) -> None:
    """One engine: train for `minutes`, with a line of the curve every `eval_seconds` of training."""
    import torch

    from deepnarrow.files import append_json
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse
    from deepnarrow.text.batches import CorpusBatches, fixed_batches
    from deepnarrow.text.corpus import open_corpus
    from deepnarrow.train import optim, recipes
    from deepnarrow.train.schedule import rate

    corpus = open_corpus(asked.corpus)
    held_out = corpus.held_out()
    if held_out is None:
        sys.exit(f"{asked.corpus} has no held-out part; build it with --held-out")
    config = recipes.nanot5(
        asked.shape, steps=NOMINAL, batch=asked.batch, input_length=asked.input_length, dtype=asked.dtype, seed=0
    )
    batches = CorpusBatches(corpus=corpus, seed=0, batch=config.batch, input_length=config.input_length)
    judged = fixed_batches(held_out, batch=16, input_length=config.input_length, limit=asked.eval_examples)
    model = T5(parse(config.shape))
    initialise(model, 0)
    engine = engine_of(name, model, asked, config)
    curve = asked.out / f"{name}.jsonl"
    curve.unlink(missing_ok=True)
    limit, spent, step, due, tokens = asked.minutes * 60, 0.0, 0, 0.0, 0
    while True:
        if spent >= due or spent >= limit:
            row = {
                "engine": name, "seconds": round(spent, 2), "step": step, "tokens": tokens,
                "held_out_loss": round(engine.judge(judged), 5),
            }  # fmt: skip
            append_json(curve, row)
            print(json.dumps(row), flush=True)
            due = spent + asked.eval_seconds
        if spent >= limit:
            break
        batch = batches(step)
        began = time.perf_counter()
        engine.backward(batch)
        norm = float(optim.gradient_norm(engine.model))
        if config.clip is not None and norm > config.clip:
            optim.scale_gradients(engine.model, config.clip / norm)
        optim.set_rate(engine.optimizer, rate(config, min(NOMINAL, int(spent / limit * NOMINAL))))
        engine.optimizer.step()
        spent += time.perf_counter() - began
        step, tokens = step + 1, tokens + batch.tokens
    print(f"{name}: {step} steps, {tokens / spent:,.0f} tokens/s, {torch.get_num_threads()} thread(s)", flush=True)


NOMINAL = 100_000  # steps that the schedule is divided into; the share of the time says which one it is


def engine_of(name: str, model, asked, config):
    import tempfile

    import torch

    from deepnarrow.model.folder import save_model
    from deepnarrow.train import loss, optim

    cpu = torch.device("cpu")
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]

    class Ours:
        def __init__(self) -> None:
            self.model = model.train()
            self.optimizer = optim.build(config, model)

        def backward(self, batch) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            loss.accumulate(self.model, batch, divisor=loss.count(batch.targets, "tokens"), device=cpu, dtype=dtype)

        def judge(self, judged) -> float:
            self.model.eval()
            found = loss.mean(loss.sums(self.model, batch, device=cpu, dtype=dtype) for batch in judged)
            self.model.train()
            return found

    class Theirs:
        def __init__(self) -> None:
            from transformers import T5ForConditionalGeneration

            with tempfile.TemporaryDirectory() as folder:
                save_model(model, None, Path(folder) / "start")
                self.model = T5ForConditionalGeneration.from_pretrained(
                    Path(folder) / "start", attn_implementation=asked.attention
                ).train()
            for module in self.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            self.optimizer = optim.build(config, self.model)

        def loss(self, batch) -> torch.Tensor:
            inputs, labels = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                return self.model(input_ids=inputs, labels=labels, use_cache=False).loss

        def backward(self, batch) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(batch).backward()

        def judge(self, judged) -> float:
            with torch.no_grad():
                found = [(float(self.loss(batch)), batch.targets.size) for batch in judged]
            return sum(value * size for value, size in found) / sum(size for _, size in found)

    return Ours() if name == "deepnarrow" else Theirs()


def report(asked: argparse.Namespace) -> None:
    from deepnarrow import machine
    from deepnarrow.files import read_json_lines

    curves = {name: list(read_json_lines(asked.out / f"{name}.jsonl")) for name in ENGINES}
    (asked.out / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for rows in curves.values() for row in rows))
    ends = {name: rows[-1] for name, rows in curves.items()}
    goal = ends["transformers"]["held_out_loss"]
    reached = time_to(curves["deepnarrow"], goal)
    print(f"\n{'':<14}{'steps':>8}{'tokens/s':>10}{'held-out loss':>15}")
    for name, row in ends.items():
        print(f"{name:<14}{row['step']:>8}{row['tokens'] / row['seconds']:>10,.0f}{row['held_out_loss']:>15.4f}")
    seconds = ends["transformers"]["seconds"]
    if reached is None:
        print(f"deepnarrow did not reach {goal:.4f}, where transformers ended")
    else:
        print(f"deepnarrow reached {goal:.4f} after {reached:.0f} s, transformers after {seconds:.0f} s")
    draw(asked, curves)
    about = {
        "shape": asked.shape, "minutes": asked.minutes, "dtype": asked.dtype, "batch": asked.batch,
        "attention": asked.attention, "in_turn": asked.in_turn, "ends": ends,
        "seconds_to_their_loss": reached, "machine": machine.describe(), "commit": machine.commit(),
    }  # fmt: skip
    print(json.dumps(about))


def time_to(rows: list[dict], goal: float) -> float | None:
    """When a curve first goes below a loss, on a straight line between two evaluations."""
    for before, after in itertools.pairwise(rows):
        if after["held_out_loss"] <= goal:
            fall = before["held_out_loss"] - after["held_out_loss"]
            part = 1.0 if fall <= 0 else (before["held_out_loss"] - goal) / fall
            return before["seconds"] + max(0.0, part) * (after["seconds"] - before["seconds"])
    return None


def draw(asked: argparse.Namespace, curves: dict[str, list[dict]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, rows), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(
            [row["seconds"] / 60 for row in rows],
            [row["held_out_loss"] for row in rows],
            style,
            label=f"{name}: {rows[-1]['tokens'] / rows[-1]['seconds']:,.0f} tokens/s",
        )
    losses = [row["held_out_loss"] for rows in curves.values() for row in rows[2:]]
    axes.set_ylim(min(losses) - 0.1, max(losses) + 0.1)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("held-out loss, nats per target token")
    axes.set_title(f"{asked.shape}, {asked.dtype}, nanoT5's recipe, same data and first weights")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    for kind in ("svg", "png"):
        figure.savefig(asked.out / f"time_to_loss.{kind}", dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="from `deepnarrow corpus build ... --held-out 0.02`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="tiny-v8192")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--input-length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", default="eager", help="of transformers: eager or sdpa")
    parser.add_argument("--eval-seconds", type=float, default=60.0, help="of training between evaluations")
    parser.add_argument("--eval-examples", type=int, default=64)
    parser.add_argument("--in-turn", action="store_true", help="one after the other, each on all cores")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
