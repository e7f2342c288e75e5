"""The same fine-tuning run by our loop and by `transformers`: are the losses the same at every step?

    python benchmarks/finetune_parity.py --model runs/span --data ../shared/data --task sst2
    python benchmarks/finetune_parity.py --data ../shared/data --tokenizer spiece.model --shape tiny --task squad

Ours is `train`, whole; theirs is T5ForConditionalGeneration from the very same folder of weights, in a plain loop over
the same batches. float32, torch's AdamW at a constant rate, no dropout, no z-loss, the loss divided by real target
tokens. Twice: padded batches for both, and packed rows here beside padded rows there, with the same examples in every
update. Prints both losses every 20 steps and the largest difference of all steps; the last line is JSON. Needs
`transformers`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from examples import HELD_OUT, TRAIN, encoded

from deepnarrow import machine, tasks
from deepnarrow.files import read_json_lines
from deepnarrow.model.folder import Opened, open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch, PairBatches
from deepnarrow.text.tokenizer import load
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.loop import train

Batches = Callable[[int], Batch]
CPU = torch.device("cpu")
AIM = 1e-4  # nats per target token, at every step
SHOW_EVERY = 20


def main() -> None:
    asked = arguments()
    results = {}
    for name in asked.task:
        if not (asked.data / TRAIN[name]).is_file():
            print(f"{name}: skipped, {asked.data / TRAIN[name]} is not there")
            continue
        results[name] = compare(name, asked)
    about = {
        "aim": AIM, "results": results, "threads": torch.get_num_threads(), "attention": asked.attention,
        "kernels": os.environ.get("DEEPNARROW_NATIVE", "1") != "0", "machine": machine.describe(),
        "versions": machine.versions(), "commit": machine.commit(),
    }  # fmt: skip
    print(json.dumps(about))


def compare(name: str, asked: argparse.Namespace) -> dict:
    task = tasks.get(name)
    opened = start(asked)
    pairs = encoded(task, asked.data, opened.tokenizer)
    config = Config(
        shape=str(opened.shape), steps=asked.steps, batch=asked.batch, objective=PAIRS, input_length=task.input_tokens,
        target_length=task.target_tokens, z_loss=0.0, optimizer="adamw", learning_rate=asked.learning_rate,
        epsilon=asked.epsilon, schedule="constant", warmup=0, save_every=asked.steps, log_every=1, seed=asked.seed,
    )  # fmt: skip
    layouts = {
        batching: PairBatches(
            sources=[pairs], seed=config.seed, batch=config.batch, batching=batching, input_length=task.input_tokens,
            target_length=task.target_tokens,
        )
        for batching in ("padded", "packed")
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "start"
        save_model(opened.model, None, folder)
        reference = list(theirs(folder, layouts["padded"], config, asked.attention))
        found = {batching: ours(folder, layouts[batching], config, Path(scratch) / batching) for batching in layouts}
    print(
        f"\n{name}: {opened.shape}, {asked.steps} steps of {asked.batch} examples, AdamW at {asked.learning_rate:g} "
        f"(epsilon {asked.epsilon:g}), from {asked.model or 'random weights'}"
    )
    print(f"{'step':>6}{'transformers':>14}{'padded here':>13}{'difference':>12}{'packed here':>13}{'difference':>12}")
    gaps = {
        batching: [abs(mine - other) for mine, other in zip(losses, reference, strict=True)]
        for batching, losses in found.items()
    }
    for step in [1, *range(SHOW_EVERY, asked.steps + 1, SHOW_EVERY)]:
        place = step - 1
        print(
            f"{step:>6}{reference[place]:>14.6f}{found['padded'][place]:>13.6f}{gaps['padded'][place]:>12.1e}"
            f"{found['packed'][place]:>13.6f}{gaps['packed'][place]:>12.1e}"
        )
    for batching, rows in gaps.items():
        largest = max(rows)
        verdict = "within" if largest <= AIM else "beyond"
        beyond = next((step for step, gap in enumerate(rows, 1) if gap > AIM), None)
        first = "" if beyond is None else f", first beyond it at step {beyond}"
        print(f"{batching}: largest difference of {len(rows)} steps {largest:.2e}, {verdict} {AIM:g}{first}")
    return {
        "steps": asked.steps, "batch": asked.batch, "learning_rate": asked.learning_rate, "epsilon": asked.epsilon,
        "shape": str(opened.shape), "model": str(asked.model) if asked.model else None,
        "first_and_last_loss": [reference[0], reference[-1]],
        "largest_difference": {batching: max(rows) for batching, rows in gaps.items()},
        "beyond_aim": {batching: sum(gap > AIM for gap in rows) for batching, rows in gaps.items()},
    }  # fmt: skip


def start(asked: argparse.Namespace) -> Opened:
    """The first weights: a model's, or random ones."""
    if asked.model:
        return open_model(asked.model)
    shape = parse(asked.shape)
    model = T5(shape)
    initialise(model, asked.seed)
    return Opened(model, load(asked.tokenizer), shape, "random weights")


def ours(folder: Path, batches: Batches, config: Config, out: Path) -> list[float]:
    """The loss of each step, from the log of a run of `train`."""
    model = open_model(folder).model
    train(
        config, model, batches, out, tokenizer=None, device=CPU, kind="finetune", origin={"fingerprints": {}},
        tensorboard=False, quiet=True,
    )  # fmt: skip
    return [row["loss"] for row in read_json_lines(out / "log.jsonl") if "loss" in row]


def theirs(folder: Path, batches: Batches, config: Config, attention: str) -> Iterator[float]:
    """The loss of each step, as a user of `transformers` would write the loop."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation=attention).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (config.beta1, config.beta2), config.epsilon,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    for number in range(config.steps):
        batch = batches(number)
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        labels = targets.masked_fill(targets == 0, -100)
        loss = model(input_ids=inputs, attention_mask=inputs != 0, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/ and squad/")
    parser.add_argument("--model", type=Path, help="what to fine-tune; without it --shape, from random weights")
    parser.add_argument("--tokenizer", help="spiece.model or tokenizer.json, where there is no --model")
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--task", nargs="+", choices=list(HELD_OUT), default=list(HELD_OUT))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="examples in one update")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--epsilon", type=float, default=1e-6, help="AdamW's, inside the quotient")
    parser.add_argument("--attention", default="eager", help="of transformers: eager or sdpa")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not asked.model and not asked.tokenizer:
        parser.error("give --model, or --tokenizer and --shape")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return asked


if __name__ == "__main__":
    sys.exit(main())
