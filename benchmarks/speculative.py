"""Speculative decoding beside plain decoding: acceptance, steps and speed, on the same inputs in one run.

    python benchmarks/speculative.py OUT/target --draft OUT/draft --texts OUT/data/test.jsonl
    python benchmarks/speculative.py runs/summaries --texts articles.txt --max-tokens 128 --temperature 1

OUT is what benchmarks/pair.py leaves behind. Texts are lines, or JSON lines with "input". All ways (plain, copying from
the input, the draft model, both) answer the same texts one input after the other and, with --batch, several at once;
they take turns for some rounds, and medians of a round's whole time are given, encoding included, the draft's encoder
too. Every way's answers must be those of plain decoding; those that are not, by a tie of two tokens, are counted.

`position` is what each further position adds to a step of the target, measured here: how drafts pace themselves rests
on it. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from deepnarrow import machine
from deepnarrow.runtime.engine import START, Engine
from deepnarrow.runtime.limits import Output
from deepnarrow.runtime.search import AnySearch, Greedy, Sample, generate
from deepnarrow.runtime.speculative import Both, Copy, Sibling, step_cost
from deepnarrow.text import tokenizer as tokenizers
from deepnarrow.text.tokenizer import Tokenizer

REPEATS = 20  # steps timed for the cost of a position


def main() -> None:
    asked = arguments()
    engine, tokenizer = opened(asked.target, asked)
    small = None
    if asked.draft:
        small, its = opened(asked.draft, asked)
        if its.fingerprint != tokenizer.fingerprint:
            raise SystemExit(f"{asked.draft} and {asked.target} have different vocabularies")
    inputs = [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(texts(asked.texts)[: asked.inputs])]
    search: AnySearch = Greedy() if asked.temperature is None else Sample(asked.temperature, seed=0)
    position = position_cost(engine, inputs[0])
    print(
        f"{engine.name}; a further position costs {position:.2f} steps, the draft {relative(small, engine):.2f} a token"
    )
    rows = []
    for batch in asked.batch:
        rows += compare(engine, ways(engine, small), inputs, search, batch, asked)
    report(rows)
    found = {"engine": engine.name, "threads": engine.threads, "position": position, "rows": rows}
    print(json.dumps(found | {"machine": machine.describe()}))


def ways(engine: Engine, small: Engine | None) -> dict[str, Callable[[], Any]]:
    """By name, what makes a fresh drafter."""
    found: dict[str, Callable[[], Any]] = {"plain": lambda: None, "copy": Copy}
    if small is not None:
        found["draft"] = lambda: Sibling(small, engine.shape)
        found["both"] = lambda: Both(Copy(), Sibling(small, engine.shape))
    return found


def compare(
    engine: Engine,
    ways: dict[str, Callable[[], Any]],
    inputs: Sequence[Sequence[int]],
    search: AnySearch,
    batch: int,
    asked: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Rounds in which every way takes its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[list[Output]]] = {}
    counts = {}
    for _ in range(asked.rounds + 1):  # the first warms up
        for name, make in ways.items():
            drafter = make()
            begin = time.perf_counter()
            answers[name] = generate(
                engine, inputs, search, max_tokens=asked.max_tokens, batch=batch, drafter=drafter, scores=False
            )
            seconds[name].append(time.perf_counter() - begin)
            counts[name] = drafter.counts if drafter else None
    plain = [outputs[0].ids for outputs in answers["plain"]]
    tokens = sum(min(asked.max_tokens, len(ids) + 1) for ids in plain)
    base = median(seconds["plain"][1:])
    rows = []
    for name in ways:
        took, count = median(seconds[name][1:]), counts[name]
        others = sum(outputs[0].ids != ids for outputs, ids in zip(answers[name], plain, strict=True))
        rows.append(
            {
                "batch": batch,
                "way": name,
                "ms_per_token": 1e3 * took / tokens,
                "speedup": base / took,
                "acceptance": count.acceptance if count else None,
                "tokens_per_step": count.tokens_per_step if count else 1.0,
                "drafted": count.drafted if count else 0,
                "steps": count.steps if count else tokens,
                "tokens": tokens,
                "inputs": len(inputs),
                "different": others,
            }
        )
    return rows


def position_cost(engine: Engine, source: Sequence[int]) -> float:
    """What 7 positions more add to a step, for each of them, in steps of one position."""
    [memory] = engine.encode([list(source)])

    def best(positions: int) -> float:
        found = []
        for _ in range(REPEATS):
            row = engine.start(memory)
            engine.step([row], [[START] * 8])
            begin = time.perf_counter()
            engine.step([row], [[START] * positions])
            found.append(time.perf_counter() - begin)
        return median(found)

    one = best(1)
    return (best(8) - one) / 7 / one


def relative(small: Engine | None, engine: Engine) -> float:
    return 0.0 if small is None else step_cost(small.shape) / step_cost(engine.shape)


def opened(name: str, asked: argparse.Namespace) -> tuple[Engine, Tokenizer]:
    if asked.runtime == "torch":
        from deepnarrow.model.engine import TorchEngine
        from deepnarrow.model.folder import open_model

        model = open_model(name)
        assert model.tokenizer is not None
        return TorchEngine(model.model, vocab_limit=model.tokenizer.size), model.tokenizer
    from deepnarrow.hub.native import native_folder
    from deepnarrow.runtime import format
    from deepnarrow.runtime.native import open_engine

    folder = native_folder(name, asked.dtype, say=print).folder
    return open_engine(folder / format.NAME, threads=asked.threads), tokenizers.load(folder)


def texts(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line)["input"] if path.suffix == ".jsonl" else line for line in lines if line.strip()]


def report(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"\n{'batch':>5} {'way':8} {'ms/token':>9} {'speed-up':>8} {'acceptance':>10} {'tokens/step':>11} {'other':>6}"
    )
    for row in rows:
        acceptance = "" if row["acceptance"] is None else f"{row['acceptance']:.2f}"
        print(
            f"{row['batch']:5} {row['way']:8} {row['ms_per_token']:9.3f} {row['speedup']:8.2f} {acceptance:>10} "
            f"{row['tokens_per_step']:11.2f} {row['different']:6}"
        )
    print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a run, a model folder or a converted one")
    parser.add_argument("--draft", help="a smaller model with the same vocabulary")
    parser.add_argument("--texts", type=Path, required=True, help="lines, or .jsonl with `input`")
    parser.add_argument("--inputs", type=int, default=100, help="how many of them")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, help="sample instead of decoding greedily")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", help="of the native runtime: float32, bfloat16 or int8")
    parser.add_argument("--runtime", choices=("native", "torch"), default="native")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
