"""How many examples a second one core makes, for every objective, without reading the corpus.

    python benchmarks/objectives.py
    python benchmarks/objectives.py --input-length 128 --batch 64

Prints a table and a last line of JSON. Rows are made a batch at a time and documents one at a time, as training does;
the noise of every example comes from a generator of its own, whose making is counted. The fastest of some repeats.
Text is random ordinary ids of T5's vocabulary, with sentinels enough for every objective at every length.
"""

import argparse
import json
from collections.abc import Callable
from timeit import repeat

import numpy as np

from deepnarrow import machine
from deepnarrow.errors import UserError
from deepnarrow.text import objectives
from deepnarrow.text.batches import TRAINING, generator
from deepnarrow.text.objectives import Part, Sentinels

PIECES = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    sentinels = Sentinels(first=PIECES + given.input_length - 1, count=given.input_length, eos=1)

    results = []
    print(f"{'objective':<40} {'text tokens':>11} {'inputs':>7} {'targets':>7} {'examples/s':>11} {'M tokens/s':>11}")
    for part in every_part():
        text, make = work(part, given.input_length, given.batch, sentinels)
        made = make()
        inputs, targets = (np.mean([np.count_nonzero(side) for side in sides]) for sides in zip(*made, strict=True))
        rate = given.batch / min(repeat(make, number=1, repeat=given.repeats))
        name = " ".join([part.objective, *(f"{key}={value}" for key, value in part.options.items())])
        print(f"{name:<40} {text:>11} {inputs:>7.1f} {targets:>7.1f} {rate:>11,.0f} {rate * text / 1e6:>11.1f}")
        results.append({"objective": name, "text_tokens": text, "inputs": float(inputs),
                        "targets": float(targets), "per_s": round(rate)})  # fmt: skip
    print(json.dumps({"input_length": given.input_length, "batch": given.batch, "cores": 1,
                      "machine": machine.describe(), "objectives": results}))  # fmt: skip


def every_part() -> list[Part]:
    """Each objective as it is, and as mixtures use it; options that are the usual ones are left out."""
    found = {}
    for name in objectives.names():
        objective = objectives.get(name)
        for part in objective.parts() if objective.parts else (Part(name),):
            usual = objectives.options_of(objectives.get(part.objective))
            unusual = {option: value for option, value in part.options.items() if value != usual[option]}
            found[part.objective, tuple(unusual.items())] = Part(part.objective, unusual)
    return list(found.values())


def work(
    part: Part, input_length: int, batch: int, sentinels: Sentinels
) -> tuple[int, Callable[[], list[tuple[np.ndarray, np.ndarray]]]]:
    """The tokens of text behind one example, and a function that makes a batch of examples."""
    objective, options = objectives.get(part.objective), part.options

    def noise() -> list[np.random.Generator]:
        return [generator(0, TRAINING, example) for example in range(batch)]

    if objective.corrupt is not None and objective.lengths is not None:
        corrupt, text = objective.corrupt, objective.lengths(input_length, **options)[0]
        rows = np.random.default_rng(0).integers(3, PIECES, (batch, text), np.int32)
        return text, lambda: list(zip(*corrupt(rows, noise(), sentinels, **options), strict=True))
    if objective.example is None or objective.piece_length is None:
        raise UserError(f"{part.objective} makes no examples")
    example, text = objective.example, objective.piece_length(input_length, **options) or input_length // 2
    pieces = list(np.random.default_rng(0).integers(3, PIECES, (batch, text), np.int32))
    if objective.stored is not None:
        pieces = [objective.stored(piece, sentinels) for piece in pieces]
    return text, lambda: [example(ids, drawn, sentinels, **options) for ids, drawn in zip(pieces, noise(), strict=True)]


if __name__ == "__main__":
    main()
