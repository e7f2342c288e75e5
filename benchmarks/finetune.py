"""Fine-tuning, and evaluation by generation: useful tokens a second beside the `Seq2SeqTrainer` of `transformers`.

    python benchmarks/finetune.py --data ../shared/data --tokenizer ../shared/data/t5_tokenizer/spiece.model
    python benchmarks/finetune.py --data ../shared/data --model runs/span --task squad --updates 30 --out OUT.json

Ours is `train`, whole, with packed, bucketed and padded batches; theirs (trainer.py) pads dynamically, in random order
and grouped by length, with the better of its eager and sdpa attention and of 0 and 2 loading processes, which is found
out first. All start from the same weights and read the same examples once, in batches of equally many. Optimizer,
constant rate, float32 and the rate of dropout are the same; its draws are T5's here, shared along the length, and one
for each element there. Each is a process of its own, so that its peak memory is its own, and they do their updates in
turn, so that a machine that slows down slows all. Useful tokens are inputs and targets without padding; the first
update of each warms it up.

Then both answer the same held-out inputs greedily, with weights that were fine-tuned for some more updates, in turn
within one process: `evaluate` with its metrics and intervals, and `Seq2SeqTrainer.predict` with the best of some batch
sizes, tokenising and decoding included in both. Prints tables; the last line is JSON. Needs `transformers` and
`accelerate`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

OURS, THEIRS = ("packed", "bucketed", "padded"), ("dynamic", "grouped")
UPDATES = {"sst2": 32, "squad": 16}
BATCHES = {"sst2": 32, "squad": 16}
AIMS = {"dynamic": 2.0, "grouped": 1.4, "evaluation": 3.0}
TRIED_BATCHES = (8, 16, 32, 64)  # of the Trainer's predictions
SAYS = "SAYS "  # before what an engine tells
CHOICE_UPDATES = 4  # behind each choice of the Trainer's settings, the first not counted


def main() -> None:
    asked = arguments()
    results = {}
    for name in asked.task:
        missing = absent(name, asked)
        if missing:
            print(f"{name}: skipped, {missing} is not there")
            continue
        with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
            job = prepare(name, asked, Path(scratch))
            results[name] = {}
            if not asked.no_training:
                results[name]["training"] = training(job, Path(scratch))
            if not asked.no_evaluation:
                results[name]["evaluation"] = evaluation(job, Path(scratch), asked)
    from deepnarrow import machine

    found = {
        "results": results, "large_pages": not asked.small_pages, "machine": machine.describe(),
        "versions": machine.versions(), "commit": machine.commit(),
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def absent(name: str, asked: argparse.Namespace) -> Path | None:
    from examples import HELD_OUT, TRAIN

    files = (asked.data / TRAIN[name], asked.data / HELD_OUT[name], asked.model or Path(asked.tokenizer))
    return next((path for path in files if not path.exists()), None)


def prepare(name: str, asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Weights and examples for all engines, in files; what they need to know, as JSON would have it."""
    import numpy as np
    from examples import encoded
    from trainer import grouped_by_length, quiet

    from deepnarrow import tasks
    from deepnarrow.model.folder import open_model, save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse
    from deepnarrow.text.batches import shuffled
    from deepnarrow.text.tokenizer import load

    quiet()
    task = tasks.get(name)
    if asked.model:
        opened = open_model(asked.model)
        model, tokenizer, shape = opened.model, opened.tokenizer, opened.shape
    else:
        shape, tokenizer = parse(asked.shape), load(asked.tokenizer)
        model = T5(shape)
        initialise(model, 0)
    save_model(model, tokenizer, scratch / "start")
    batch, updates = asked.batch or BATCHES[name], asked.updates or UPDATES[name]
    everything = encoded(task, asked.data, tokenizer)
    grouped = grouped_by_length(everything, batch, updates, seed=0)
    order = shuffled(np.arange(len(grouped)), len(grouped), seed=0)  # as PairBatches deals them
    (scratch / "everything.json").write_text(json.dumps(everything))
    (scratch / "grouped.json").write_text(json.dumps(grouped))
    (scratch / "dynamic.json").write_text(json.dumps([grouped[place] for place in order]))
    return {
        "task": name, "shape": str(shape), "model": str(asked.model) if asked.model else None, "batch": batch,
        "updates": len(grouped) // batch, "optimizer": asked.optimizer, "learning_rate": asked.learning_rate,
        "dropout": asked.dropout, "input_length": task.input_tokens, "target_length": task.target_tokens,
        "data": str(asked.data), "evaluation_updates": asked.evaluation_updates,
    }  # fmt: skip


# Fine-tuning


def training(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    (scratch / "job.json").write_text(json.dumps(job))
    chosen = choose(scratch)
    job |= chosen["best"]
    (scratch / "job.json").write_text(json.dumps(job))
    engines = {name: Engine(name, scratch) for name in (*OURS, *THEIRS)}
    names = list(engines)
    for number in range(job["updates"]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            engines[name].update()
    found = {name: engine.finish() for name, engine in engines.items()}
    losses = {name: held_out_loss(job, scratch / name) for name in names}
    result = {"settings": job, "trainer": chosen, "engines": summarise(engines, found, losses), "ratios": {}}
    for other in THEIRS:
        for mine in OURS:
            result["ratios"][f"{mine}/{other}"] = pace(engines[mine], engines[other])
    show(result)
    return result


class Engine:
    """One way to fine-tune, in a process of its own that does one update for each line it reads."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.rows: list[dict[str, float]] = []
        self.errors = scratch / f"{name}.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve", name, str(scratch)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(SAYS):
                return json.loads(line.removeprefix(SAYS))
        last = self.errors.read_text().strip().splitlines()[-12:]
        raise SystemExit(f"the engine {self.name} ended early:\n" + "\n".join(last))

    def update(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rows.append(self.hear())

    def finish(self) -> dict[str, Any]:
        found = self.hear()
        self.process.wait(timeout=120)
        return found

    @property
    def timed(self) -> list[dict[str, float]]:
        return self.rows[1:] or self.rows  # the first update warms up


def serve(name: str, scratch: Path) -> None:
    """An engine's side: fine-tune, but wait for a line before every update, and say how long it took."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from deepnarrow.measure.memory import resident

    job = json.loads((scratch / "job.json").read_text())
    torch.manual_seed(0)
    if name == "choose":
        return say(**try_settings(job, scratch))
    turns = Turns(job["updates"])
    run = prepare_ours(name, job, scratch, turns) if name in OURS else prepare_theirs(name, job, scratch, turns)
    before = resident("VmRSS")
    say(ready=True)
    turns.wait()
    register_optimizer_step_post_hook(turns.done)
    loss = run()
    say(loss=loss, peak_bytes=resident("VmHWM"), idle_bytes=before)
    return None


class Turns:
    """A hook behind the optimizer's step, of whichever engine: an update ends there, and the next begins when told."""

    def __init__(self, updates: int) -> None:
        self.updates, self.number, self.began, self.worked = updates, 0, 0.0, 0.0
        self.sizes: list[tuple[int, int]] = []  # of each update's batch: useful tokens, places

    def wait(self) -> None:
        sys.stdin.readline()
        self.began, self.worked = time.perf_counter(), time.process_time()

    def done(self, *_: Any) -> None:
        seconds, worked = time.perf_counter() - self.began, time.process_time() - self.worked
        tokens, places = self.sizes[self.number]
        say(seconds=seconds, cpu_seconds=worked, tokens=tokens, places=places)
        self.number += 1
        if self.number < self.updates:
            self.wait()


def say(**words: Any) -> None:
    print(SAYS + json.dumps(words), flush=True)  # the Trainer prints lines of its own


def prepare_ours(name: str, job: dict[str, Any], scratch: Path, turns: Turns) -> Callable[[], float]:
    from deepnarrow.files import read_json_lines
    from deepnarrow.model.folder import open_model

    opened = open_model(scratch / "start", dropout=job["dropout"])
    pairs = json.loads((scratch / "grouped.json").read_text())
    config, batches = ours(job, pairs, name, job["updates"])
    turns.sizes = [(batch.tokens, batch.places) for batch in map(batches, range(job["updates"]))]

    def run() -> float:
        train_ours(config, opened.model, batches, scratch / name)
        return [row["loss"] for row in read_json_lines(scratch / name / "log.jsonl") if "loss" in row][-1]

    return run


def ours(job: dict[str, Any], pairs: list, batching: str, updates: int) -> tuple[Any, Any]:
    """A config of ours, and its batches."""
    import torch

    from deepnarrow.text.batches import PairBatches
    from deepnarrow.text.packing import pad
    from deepnarrow.train.config import PAIRS, Config

    lengths = {"input_length": job["input_length"], "target_length": job["target_length"]}
    config = Config(
        shape=job["shape"], steps=updates, batch=job["batch"], objective=PAIRS, batching=batching, z_loss=0.0,
        optimizer=job["optimizer"], learning_rate=job["learning_rate"], schedule="constant", warmup=0,
        epsilon=1e-8, factored_from=1, dropout=job["dropout"], save_every=updates, log_every=max(1, updates // 4),
        **lengths,
    )  # fmt: skip
    if batching != "bucketed":
        return config, PairBatches(sources=[pairs], seed=0, batch=job["batch"], batching=batching, **lengths)
    # As PairBatches would have it with a window of these updates: each example once, so that all engines read the same.
    by_length = sorted(pairs, key=lambda pair: len(pair[0]))
    turns = torch.randperm(updates, generator=torch.Generator().manual_seed(0)).tolist()
    return config, lambda n: pad(by_length[turns[n] * job["batch"] :][: job["batch"]])


def train_ours(config: Any, model: Any, batches: Any, out: Path) -> None:
    import torch

    from deepnarrow.train.loop import train

    train(
        config, model, batches, out, tokenizer=None, device=torch.device("cpu"), kind="finetune",
        origin={"fingerprints": {}}, tensorboard=False, quiet=True,
    )  # fmt: skip


def prepare_theirs(name: str, job: dict[str, Any], scratch: Path, turns: Turns) -> Callable[[], float]:
    import trainer

    trainer.quiet()
    pairs = json.loads((scratch / f"{name}.json").read_text())
    model = trainer.open_reference(scratch / "start", job["attention"], job["dropout"])
    made = theirs(job, model, pairs, scratch, workers=job["workers"])
    losses: list[tuple[float, int]] = []

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        tokens = int(given["attention_mask"].sum()) + int((given["labels"] != -100).sum())
        turns.sizes.append((tokens, given["input_ids"].numel() + given["labels"].numel()))

    def keep(_: Any, __: Any, given: dict[str, Any], found: Any) -> None:
        losses.append((float(found.loss.detach()), int((given["labels"] != -100).sum())))

    model.register_forward_pre_hook(count, with_kwargs=True)
    model.register_forward_hook(keep, with_kwargs=True)

    def run() -> float:
        made.train()
        made.save_model(str(scratch / name))
        last = losses[-max(1, job["updates"] // 4) :]
        return sum(loss * tokens for loss, tokens in last) / sum(tokens for _, tokens in last)

    return run


def theirs(job: dict[str, Any], model: Any, pairs: list, scratch: Path, *, workers: int, **settings: Any) -> Any:
    import trainer

    model.config.use_cache = False
    return trainer.make(
        model, scratch / "start", scratch / "trainer", trainer.rows(pairs), learning_rate=job["learning_rate"],
        optim={"adamw": "adamw_torch_fused"}.get(job["optimizer"], job["optimizer"]),
        per_device_train_batch_size=job["batch"], dataloader_num_workers=workers, **settings,
    )  # fmt: skip


def choose(scratch: Path) -> dict[str, Any]:
    engine = subprocess.run(
        [sys.executable, __file__, "--serve", "choose", str(scratch)], capture_output=True, text=True
    )
    lines = [line for line in engine.stdout.splitlines() if line.startswith(SAYS)]
    if engine.returncode or not lines:
        raise SystemExit(f"the Trainer's settings could not be tried:\n{engine.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(SAYS))


def try_settings(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Seconds of some updates under each of the Trainer's settings; the best."""
    import trainer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    trainer.quiet()
    pairs = json.loads((scratch / "dynamic.json").read_text())
    tried: dict[tuple[str, int], float] = {}

    def attempt(attention: str, workers: int) -> None:
        moments: list[float] = []
        hook = register_optimizer_step_post_hook(lambda *_: moments.append(time.perf_counter()))
        model = trainer.open_reference(scratch / "start", attention, job["dropout"])
        theirs(job, model, pairs, scratch, workers=workers, max_steps=min(CHOICE_UPDATES, job["updates"])).train()
        hook.remove()
        tried[attention, workers] = (moments[-1] - moments[0]) / max(1, len(moments) - 1)

    attempt("sdpa", 0)
    attempt("eager", 0)
    attempt(min(tried, key=lambda one: tried[one])[0], 2)
    attention, workers = min(tried, key=lambda one: tried[one])
    return {
        "best": {"attention": attention, "workers": workers},
        "tried": [{"attention": a, "workers": w, "seconds": round(s, 4)} for (a, w), s in tried.items()],
    }


def held_out_loss(job: dict[str, Any], folder: Path) -> float:
    """Nats per target token of held-out examples, by our code, whoever trained the weights."""
    import torch
    from examples import encoded

    from deepnarrow import tasks
    from deepnarrow.model.folder import open_model
    from deepnarrow.text.batches import PairBatches
    from deepnarrow.train import loss

    tokenizer = open_model(folder.parent / "start").tokenizer
    pairs = encoded(tasks.get(job["task"]), Path(job["data"]), tokenizer, HELD_OUT, held_out=True)
    batches = PairBatches(sources=[pairs], seed=0, batch=32, batching="bucketed")
    model = open_model(folder).model
    cpu = torch.device("cpu")
    return loss.mean(loss.sums(model, batches(number), device=cpu) for number in range(len(pairs) // 32))


HELD_OUT = 320  # examples behind a held-out loss, at most


def summarise(engines: dict[str, Engine], found: dict[str, dict], losses: dict[str, float]) -> dict[str, Any]:
    result = {}
    for name, engine in engines.items():
        sums = {key: sum(row[key] for row in engine.timed) for key in engine.timed[0]}
        result[name] = {
            "tokens_per_second": round(sums["tokens"] / sums["seconds"], 1),
            "tokens_per_cpu_second": round(sums["tokens"] / sums["cpu_seconds"], 1),
            "seconds_per_update": round(median(row["seconds"] for row in engine.timed), 4),
            "padding": round(1 - sums["tokens"] / sums["places"], 4),
            "peak_mib": round(found[name]["peak_bytes"] / 2**20),
            "idle_mib": round(found[name]["idle_bytes"] / 2**20),
            "last_loss": round(found[name]["loss"], 4),
            "held_out_loss": round(losses[name], 4),
            "rounds": [{key: round(value, 4) for key, value in row.items()} for row in engine.rows],
        }
    return result


def pace(mine: Engine, other: Engine) -> dict[str, float]:
    """How many times as many useful tokens a second: over all updates, the median of the rounds, and by processor time.

    The last one is hardly touched by other work on the machine, but counts threads that wait for each other as busy.
    """

    def speed(rows: list[dict[str, float]], clock: str = "seconds") -> float:
        return sum(row["tokens"] for row in rows) / sum(row[clock] for row in rows)

    each = [speed([a]) / speed([b]) for a, b in zip(mine.timed, other.timed, strict=True)]
    return {
        "all": round(speed(mine.timed) / speed(other.timed), 3),
        "median": round(median(each), 3),
        "cpu": round(speed(mine.timed, "cpu_seconds") / speed(other.timed, "cpu_seconds"), 3),
    }


def show(result: dict[str, Any]) -> None:
    job, engines = result["settings"], result["engines"]
    print(
        f"\n{job['task']}: {job['shape']} from {job['model'] or 'random weights'}, {job['updates']} updates of "
        f"{job['batch']} examples, {job['optimizer']} at {job['learning_rate']:g}, dropout {job['dropout']:g}; "
        f"Trainer: {job['attention']}, {job['workers']} loading processes"
    )
    print(f"{'':<22}{'tokens/s':>10}{'s/update':>10}{'padding':>9}{'peak MiB':>10}{'last loss':>11}{'held-out':>10}")
    for name, one in engines.items():
        print(
            f"{('deepnarrow ' if name in OURS else 'Trainer ') + name:<22}{one['tokens_per_second']:>10,.0f}"
            f"{one['seconds_per_update']:>10.3f}{one['padding']:>9.1%}{one['peak_mib']:>10,}"
            f"{one['last_loss']:>11.4f}{one['held_out_loss']:>10.4f}"
        )
    for other in THEIRS:
        words = ", ".join(
            f"{mine} {result['ratios'][f'{mine}/{other}']['all']:.2f}x "
            f"(median {result['ratios'][f'{mine}/{other}']['median']:.2f}x, "
            f"by processor time {result['ratios'][f'{mine}/{other}']['cpu']:.2f}x)"
            for mine in OURS
        )
        print(f"over {other}: {words}; the aim is {AIMS[other]}x", flush=True)


# Evaluation


def evaluation(job: dict[str, Any], scratch: Path, asked: argparse.Namespace) -> dict[str, Any]:
    import trainer
    from examples import texts

    from deepnarrow import tasks
    from deepnarrow.measure.evaluate import evaluate
    from deepnarrow.model.folder import open_model, save_model

    trainer.quiet()
    task = replace(tasks.get(job["task"]), labels=None)  # both generate, also where a label would be ranked here
    everything = json.loads((scratch / "everything.json").read_text())
    began = time.perf_counter()
    opened = open_model(scratch / "start", dropout=job["dropout"])
    config, batches = ours(job, everything, "packed", job["evaluation_updates"])
    train_ours(config, opened.model, batches, scratch / "answering")
    folder = scratch / "answers"
    save_model(opened.model, opened.tokenizer, folder)
    spent = time.perf_counter() - began
    opened = open_model(folder)
    pairs = texts(tasks.get(job["task"]), asked.data, asked.evaluation_inputs, held_out=True)
    reference = trainer.open_reference(folder, "sdpa")
    tokenizer = trainer.open_tokenizer(folder)
    tried = {}
    for batch in TRIED_BATCHES:
        began = time.perf_counter()
        predict(reference, tokenizer, task, pairs[: max(TRIED_BATCHES)], scratch, batch)
        tried[batch] = round(time.perf_counter() - began, 3)
    best = min(tried, key=lambda batch: tried[batch])
    rounds: list[dict[str, float]] = []
    for number in range(asked.rounds + 1):
        began = time.perf_counter()
        mine = evaluate(opened, task, pairs, progress=False)
        between = time.perf_counter()
        rows = predict(reference, tokenizer, task, pairs, scratch, best)
        ended = time.perf_counter()
        if number or not asked.rounds:  # the first warms up
            rounds.append({"ours": between - began, "ours_model": mine.seconds, "theirs": ended - between})
    answers = [one.prediction for one in mine.predictions]
    other = [opened.tokenizer.decode([id for id in row if id > opened.tokenizer.eos]) for row in rows]
    same = sum(a == b for a, b in zip(answers, other, strict=True)) / len(answers)
    result = {
        "inputs": len(pairs), "updates": job["evaluation_updates"], "seconds_of_training": round(spent, 1),
        "most_tokens": task.target_tokens, "trainer_batch": best, "trainer_tried": tried,
        "seconds": {
            key: round(median(row[key] for row in rounds), 3) for key in ("ours", "ours_model", "theirs")
        },
        "ratio": round(median(row["theirs"] / row["ours"] for row in rounds), 3), "identical_answers": round(same, 4),
        "mean_answer_tokens": round(sum(sum(id > 0 for id in row) for row in rows) / len(rows), 2),
        "distinct_answers": len(set(answers)), "rounds": rounds,
    }  # fmt: skip
    print(
        f"\n{job['task']}: {len(pairs)} inputs answered greedily, at most {task.target_tokens} tokens, after "
        f"{job['evaluation_updates']} updates ({spent:.0f} s)\n"
        f"evaluate {result['seconds']['ours']:.2f} s ({result['seconds']['ours_model']:.2f} s of it the model's), "
        f"Trainer.predict {result['seconds']['theirs']:.2f} s in batches of {best} (tried {tried})\n"
        f"{result['ratio']:.2f}x, the aim is {AIMS['evaluation']}x; {same:.1%} identical answers, "
        f"{result['distinct_answers']} distinct, {result['mean_answer_tokens']} tokens on average",
        flush=True,
    )
    return result


def predict(model: Any, tokenizer: Any, task: Any, pairs: list, scratch: Path, batch: int) -> list[list[int]]:
    """Ids of the Trainer's answers: tokenise, generate, decode.

    T5 needs labels there, though nobody asks for a loss: `prediction_step` runs a forward pass behind each generation.
    """
    import trainer

    inputs, targets = (
        tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        for texts, most in (
            ([pair.inputs for pair in pairs], task.input_tokens),
            ([pair.accepted[0] for pair in pairs], task.target_tokens),
        )
    )
    made = trainer.make(
        model, scratch / "answers", scratch / "trainer", [], predict_with_generate=True, generation_num_beams=1,
        generation_max_length=task.target_tokens + 1, per_device_eval_batch_size=batch,
    )  # fmt: skip
    found = made.predict(trainer.rows(list(zip(inputs, targets, strict=True)))).predictions
    ids = [[int(id) for id in row if id > 0] for row in found]
    tokenizer.batch_decode(ids, skip_special_tokens=True)
    return ids


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with sst2/ and squad/")
    parser.add_argument("--model", type=Path, help="what to fine-tune; without it --shape, from random weights")
    parser.add_argument("--tokenizer", help="spiece.model or tokenizer.json, where there is no --model")
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--task", nargs="+", choices=list(UPDATES), default=list(UPDATES))
    parser.add_argument("--updates", type=int, help=f"timed, of each engine; by default {UPDATES}")
    parser.add_argument("--batch", type=int, help=f"examples in one update; by default {BATCHES}")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor"), default="adamw")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--evaluation-updates", type=int, default=120, help="before answers are compared")
    parser.add_argument("--evaluation-inputs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of both evaluations, behind one that warms up")
    parser.add_argument("--no-training", action="store_true", help="evaluation alone")
    parser.add_argument("--no-evaluation", action="store_true", help="training alone")
    parser.add_argument("--small-pages", action="store_true", help="without THP_MEM_ALLOC_ENABLE, for all engines")
    parser.add_argument("--scratch", type=Path, help="a folder for weights meanwhile; by default the system's")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.serve and (asked.data is None or not (asked.model or asked.tokenizer)):
        parser.error("give --data, and --model or --tokenizer")
    return asked


if __name__ == "__main__":
    given = arguments()
    if given.serve:
        serve(given.serve[0], Path(given.serve[1]))
    else:
        # torch reads this at its first allocation; the command line of deepnarrow sets it, and here all engines have it
        os.environ["THP_MEM_ALLOC_ENABLE"] = "0" if given.small_pages else "1"
        main()
