"""Useful tokens a second of fine-tuning when examples of unequal length are padded, bucketed by length, or packed.

    python benchmarks/packing.py --data ../shared/data --tokenizer ../shared/data/t5_tokenizer/spiece.model
    python benchmarks/packing.py --data ../shared/data --tokenizer T --task sst2 --shape small --batches 16

The three layouts train the same weights on batches of equally many examples, in turn within one process, so that a
machine that slows down slows all. Useful tokens are those that are not padding. Prints a table and a last line of JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from examples import TRAIN, encoded

from deepnarrow import machine, tasks
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import BATCHINGS, WINDOW, PairBatches
from deepnarrow.text.tokenizer import Tokenizer, load
from deepnarrow.train import loss, optim
from deepnarrow.train.config import PAIRS, Config

CPU = torch.device("cpu")


def main() -> None:
    asked = arguments()
    tokenizer = load(asked.tokenizer)
    results = {name: measure(name, asked, tokenizer) for name in asked.task}
    print(
        f"\n{asked.shape}, {asked.batch} examples a batch, {asked.batches} batches of each, {asked.dtype}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'task':<8}{'layout':<10}{'useful tokens/s':>16}{'padding':>9}{'to padded':>11}{'to bucketed':>13}")
    for name, found in results.items():
        for batching in BATCHINGS:
            one = found[batching]
            ratios = (one["useful_tokens_per_second"] / found[other]["useful_tokens_per_second"] for other in BATCHINGS)
            to_padded, to_bucketed, _ = ratios
            print(
                f"{name:<8}{batching:<10}{one['useful_tokens_per_second']:>16,.0f}{one['padding']:>9.1%}"
                f"{to_padded:>10.2f}x{to_bucketed:>12.2f}x"
            )
    about = {"shape": asked.shape, "batch": asked.batch, "batches": asked.batches, "dtype": asked.dtype}
    print(json.dumps(about | {"results": results, "machine": machine.describe(), "commit": machine.commit()}))


def measure(name: str, asked: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    task = tasks.get(name)
    pairs = encoded(task, asked.data, tokenizer)
    config = Config(
        shape=asked.shape, steps=1, batch=asked.batch, input_length=task.input_tokens, objective=PAIRS,
        target_length=task.target_tokens, optimizer="adamw_scale", learning_rate=1e-3, schedule="constant", warmup=0,
        dtype=asked.dtype,
    )  # fmt: skip
    model = T5(parse(asked.shape)).train()
    initialise(model, 0)
    optimizer = optim.build(config, model)
    layouts = {
        batching: PairBatches(
            sources=[pairs], seed=0, batch=asked.batch, batching=batching, input_length=task.input_tokens,
            target_length=task.target_tokens,
        )
        for batching in BATCHINGS
    }  # fmt: skip
    tokens, places, seconds = (dict.fromkeys(BATCHINGS, 0.0) for _ in range(3))
    # Bucketed batches are alike within themselves, unlike each other: take them evenly from one window.
    numbers = range(0, WINDOW, max(1, WINDOW // asked.batches))[: asked.batches]
    for turn, n in enumerate([numbers[0], *numbers]):
        for batching in BATCHINGS[turn % 3 :] + BATCHINGS[: turn % 3]:
            batch = layouts[batching](n)
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            divisor = loss.count(batch.targets, "tokens")
            loss.accumulate(model, batch, divisor=divisor, device=CPU, dtype=DTYPES[asked.dtype])
            optimizer.step()
            if turn:  # the first of each warms up
                seconds[batching] += time.perf_counter() - began
                tokens[batching] += batch.tokens
                places[batching] += batch.places
        print(f"{name}: {turn} of {len(numbers)}", flush=True)
    return {
        batching: {
            "useful_tokens_per_second": tokens[batching] / seconds[batching],
            "padding": 1 - tokens[batching] / places[batching],
            "seconds": seconds[batching],
        }
        for batching in BATCHINGS
    }


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/ and squad/")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--task", nargs="+", choices=TRAIN, default=list(TRAIN))
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--batch", type=int, default=32, help="examples in one batch")
    parser.add_argument("--batches", type=int, default=16, help="batches of each layout, at most 64")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as our command line does
    return parser.parse_args()


if __name__ == "__main__":
    main()
