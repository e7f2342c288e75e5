"""The quality gate of the native runtime: whether what is quick is as good, on models that were trained.

    python benchmarks/quality.py --out OUT --judge runs/sst2/seed-0 sst2 DATA/sst2 --judge OUT/target OUT/data test
    python benchmarks/quality.py --out OUT --judge runs/samsum samsum DATA/samsum --items 200

--judge MODEL TASK DATA, any number of times: a run or folder, a task's name, and a folder with validation.jsonl; or
MODEL FOLDER SPLIT for data of one's own. For each model:

- float32 native against PyTorch: greedy answers to 500 held-out inputs, token by token
- bfloat16 and int8 against float32: the task's score (labels by likelihood, as `evaluate`), the difference with its
  interval and the paired test of tasks/significance.py
- teacher-forced, on the references and on float32's own answers: how often the likeliest token is the same, how far the
  logits are apart (root mean square, in standard deviations of float32's logits), and what is lost by the other choice
- CTranslate2's int8 on the same weights, for comparison: the same agreement, a step behind each beginning of an answer

Prints the tables, whether each bound holds, and a last line of JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepnarrow import machine, tasks
from deepnarrow.hub.native import to_native
from deepnarrow.measure.evaluate import encode
from deepnarrow.model.decode import Greedy as TorchGreedy
from deepnarrow.model.decode import generate as torch_generate
from deepnarrow.model.folder import Opened, find, open_model
from deepnarrow.model.weights import fingerprint
from deepnarrow.runtime import format
from deepnarrow.runtime.engine import START, Engine
from deepnarrow.runtime.likelihood import rank
from deepnarrow.runtime.native import open_engine
from deepnarrow.runtime.options import Greedy
from deepnarrow.runtime.search import generate
from deepnarrow.tasks import Pair, Task, own
from deepnarrow.tasks.metrics import Metric, best, same_label
from deepnarrow.tasks.significance import Comparison, compare

PRECISIONS = ("float32", "bfloat16", "int8")
IDENTICAL = 500  # inputs on which float32 must equal PyTorch
LOSS = {"accuracy": 0.5, "exact_match": 0.3, "exact": 0.3, "rougeL": 0.3}  # points that a precision may lose
AGREEMENT = {"bfloat16": 0.995, "int8": 0.985}
ROWS = 32  # of one teacher-forced step
EXACT = Metric("exact", best(same_label))  # capitals and points count, unlike in SQuAD's exact match

Ids = Sequence[Sequence[int]]


class Judged(NamedTuple):
    """A model with the held-out part of a task, in ids."""

    name: str
    opened: Opened
    task: Task
    metric: Metric
    pairs: list[Pair]
    inputs: list[list[int]]  # EOS included
    references: list[list[int]]  # the first accepted answer, EOS included, cut to the task's length


class Agreement(NamedTuple):
    """Another's logits beside float32's, over `positions` of teacher-forced targets."""

    positions: int
    same: float  # share of positions whose likeliest token is float32's
    error: float | None  # root mean square of the difference, in standard deviations of float32's logits
    regret: float | None  # mean of what the other's choice lies below float32's, in the same unit


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = []
    for model, task, data in asked.judge:
        one = judged(model, task, data, asked.items)
        began = time.perf_counter()
        found.append(examined(one, asked))
        print(f"{one.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(scores_table(found), agreement_table(found), sep="\n\n", end="\n\n")
    for one in found:
        print(*one["verdicts"], sep="\n")
    summary = {
        "judged": found, "met": all(one["met"] for one in found), "machine": machine.describe(),
        "versions": machine.versions(), "commit": machine.commit(), "date": machine.today(),
    }  # fmt: skip
    (asked.out / "quality.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary))


def judged(model: str, name: str, data: str, items: int) -> Judged:
    opened = open_model(model)
    assert opened.tokenizer is not None
    if Path(name).exists():
        task, split, folder = own.own_task(Path(name)), data, Path(name)
    else:
        task, split, folder = tasks.get(name), "validation", Path(data)
    pairs = tasks.load_pairs(task, split, data=folder, limit=items)
    inputs, _ = encode([pair.inputs for pair in pairs], opened.tokenizer, task.input_tokens)
    references, _ = encode([pair.accepted[0] for pair in pairs], opened.tokenizer, task.target_tokens)
    metric = EXACT if task.made_from else next(one for one in task.metrics if one.name in LOSS)
    path = Path(model).resolve()
    called = path.parent.name if path.name.startswith("seed-") else path.name
    return Judged(
        f"{called}, {task.name}" if called != task.name else called, opened, task, metric, pairs, inputs, references
    )


def examined(one: Judged, asked: argparse.Namespace) -> dict[str, Any]:
    made = (
        asked.out / fingerprint(one.opened.model.state_dict())[:16]
    )  # what was converted before may be another model's
    engines = {precision: engine(one, made.with_suffix(f".{precision}"), precision) for precision in PRECISIONS}
    exact = engines["float32"]
    answers = {name: greedy(engine, one, one.inputs) for name, engine in engines.items()}
    few = one.inputs[:IDENTICAL]
    identical = sum(a == b for a, b in zip(in_torch(one, few), answers["float32"], strict=False))
    own_answers = [[*ids, eos(one)][: one.task.target_tokens] for ids in answers["float32"]]
    forced = {"references": one.references[: asked.forced], "own answers": own_answers[: asked.forced]}
    agreements = {
        name: {what: agreement(exact, engines[name], one.inputs, ids) for what, ids in forced.items()}
        for name in PRECISIONS[1:]
    }
    said = {name: texts(engine, one, answers[name]) for name, engine in engines.items()}
    peer = None
    if asked.ctranslate2:
        peer, theirs = beside(one, made.with_suffix(".ct2"), exact, forced)
        if not one.task.labels:  # it has no likelihoods of labels to compare with
            said["ctranslate2 int8"] = theirs
    scores = {name: one.metric.items(predictions, one.pairs) for name, predictions in said.items()}
    compared = {
        name: compare({name: [scores[name]], "float32": [scores["float32"]]}, one.metric.combine)[name, "float32"]
        for name in scores
        if name != "float32"
    }
    bounds = verdicts(one, identical, len(few), compared, agreements)
    return {
        "model": one.name, "shape": str(one.opened.shape), "metric": one.metric.name, "n": len(one.pairs),
        "engines": {name: engine.name for name, engine in engines.items()},
        "identical": identical, "of": len(few),
        "scores": {name: float(one.metric.combine(items)) for name, items in scores.items()},
        "differences": {name: difference_json(found) for name, found in compared.items()},
        "agreement": {name: {what: x._asdict() for what, x in of.items()} for name, of in agreements.items()}
        | ({"ctranslate2 int8": {what: x._asdict() for what, x in peer.items()}} if peer else {}),
        "met": all(held for held, _ in bounds),
        "verdicts": [f"{'holds' if held else 'BROKEN'}: {sentence}" for held, sentence in bounds],
    }  # fmt: skip


def engine(one: Judged, folder: Path, precision: str) -> Engine:
    if not folder.exists():
        to_native(one.opened, folder, precision=precision)
    return open_engine(folder / format.NAME)


def eos(one: Judged) -> int:
    assert one.opened.tokenizer is not None
    return one.opened.tokenizer.eos


def greedy(engine: Engine, one: Judged, inputs: Ids) -> list[list[int]]:
    found = generate(engine, inputs, Greedy(), max_tokens=one.task.target_tokens, eos=eos(one))
    return [outputs[0].ids for outputs in found]


def in_torch(one: Judged, inputs: Ids) -> list[list[int]]:
    assert one.opened.tokenizer is not None
    found = torch_generate(
        one.opened.model, inputs, TorchGreedy(), max_tokens=one.task.target_tokens, eos=eos(one),
        vocab_limit=one.opened.tokenizer.size,
    )  # fmt: skip
    return [outputs[0].ids for outputs in found]


def texts(engine: Engine, one: Judged, answers: Ids) -> list[str]:
    """What is scored: the likeliest label, or the greedy answer."""
    tokenizer = one.opened.tokenizer
    assert tokenizer is not None
    if not one.task.labels:
        return [tokenizer.decode(list(ids)) for ids in answers]
    choices = [[*tokenizer.encode(label), tokenizer.eos] for label in one.task.labels]
    return [one.task.labels[place] for place in rank(engine, one.inputs, choices).argmax(axis=1)]


def agreement(exact: Engine, other: Engine, inputs: Ids, targets: Ids) -> Agreement:
    """Both read the same targets, position by position."""
    same = error = regret = 0.0
    positions = 0
    for start in range(0, len(targets), ROWS):
        some = slice(start, start + ROWS)
        right_NV, found_NV = (
            forced(engine, inputs[some][: len(targets[some])], targets[some]) for engine in (exact, other)
        )
        spread_N = right_NV.std(axis=1)
        best_N, chosen_N = right_NV.argmax(axis=1), found_NV.argmax(axis=1)
        each = np.arange(len(right_NV))
        same += float((best_N == chosen_N).sum())
        error += float((((found_NV - right_NV) / spread_N[:, None]) ** 2).mean(axis=1).sum())
        regret += float(((right_NV[each, best_N] - right_NV[each, chosen_N]) / spread_N).sum())
        positions += len(right_NV)
    return Agreement(positions, same / positions, (error / positions) ** 0.5, regret / positions)


def forced(engine: Engine, inputs: Ids, targets: Ids) -> np.ndarray:
    """Logits [N, V] before each token of each target, those that can be chosen."""
    rows = [engine.start(memory) for memory in engine.encode(inputs)]
    return engine.logits(rows, [[START, *ids[:-1]] for ids in targets])[:, : engine.vocab_limit]


def beside(
    one: Judged, folder: Path, exact: Engine, targets: dict[str, list[list[int]]]
) -> tuple[dict[str, Agreement], list[str]]:
    """CTranslate2's int8: agreement with float32's likeliest tokens, and its greedy answers as text."""
    sys.path.insert(0, str(Path(__file__).parent))
    import peers

    tokenizer = one.opened.tokenizer
    assert tokenizer is not None
    path = peers.convert(find(one.opened.origin).folder, folder, "int8")
    names = json.loads((path / "shared_vocabulary.json").read_text())
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    model = peers.CTranslate2(path, names, compute="int8", threads=threads)
    found = {what: agreement_of_next(exact, model.next_ids, one.inputs, ids) for what, ids in targets.items()}
    answers = [
        ids
        for start in range(0, len(one.inputs), ROWS)
        for ids in model.generate(one.inputs[start : start + ROWS], most=one.task.target_tokens)
    ]
    return found, [tokenizer.decode(ids) for ids in answers]


def agreement_of_next(exact: Engine, next_ids: Callable[[Ids, Ids], list[int]], inputs: Ids, targets: Ids) -> Agreement:
    same = positions = 0
    for start in range(0, len(targets), ROWS):
        some = slice(start, start + ROWS)
        best_N = forced(exact, inputs[some][: len(targets[some])], targets[some]).argmax(axis=1)
        asked = [
            (ids, target[:at])
            for ids, target in zip(inputs[some], targets[some], strict=False)
            for at in range(len(target))
        ]
        found = next_ids([ids for ids, _ in asked], [prefix for _, prefix in asked])
        same += int((best_N == np.array(found)).sum())
        positions += len(best_N)
    return Agreement(positions, same / positions, None, None)


Bound = tuple[bool, str]


def verdicts(
    one: Judged, identical: int, of: int, compared: dict[str, Comparison], agreements: dict[str, dict[str, Agreement]]
) -> list[Bound]:
    """Every bound of the gate, and whether it holds."""
    found = [(identical == of, f"{one.name}: float32 writes the same tokens as PyTorch for {identical} of {of} inputs")]
    for name, least in AGREEMENT.items():
        allowed, difference = LOSS[one.metric.name], compared[name].difference
        found.append(
            (
                difference.value >= -allowed,
                f"{one.name}: {name} {difference.value:+.2f} {one.metric.name} [{difference.low:.2f}, "
                f"{difference.high:.2f}], p = {compared[name].p:.2f} ({compared[name].test}); at most {allowed} lost",
            )
        )
        for what, held in agreements[name].items():
            found.append(
                (held.same >= least, f"{one.name}: {name} agrees on {held.same:.4f} of the {what}; at least {least}")
            )
    return found


def difference_json(found: Comparison) -> dict[str, Any]:
    low, high = float(found.difference.low), float(found.difference.high)
    return {"value": float(found.difference.value), "low": low, "high": high, "p": float(found.p), "test": found.test}


def scores_table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model, task | metric | n | as PyTorch | float32 | bfloat16 | int8 | CTranslate2 int8 |", "|" + " --- |" * 8
    ]  # fmt: skip
    for one in found:
        cell = partial(score_cell, one)
        lines.append(
            f"| {one['model']} | {one['metric']} | {one['n']:,} | {one['identical']} of {one['of']} | "
            f"{cell('float32')} | {cell('bfloat16')} | {cell('int8')} | {cell('ctranslate2 int8')} |"
        )
    return "\n".join(lines)


def score_cell(one: dict[str, Any], name: str) -> str:
    if name not in one["scores"]:
        return "-"
    score, change = one["scores"][name], one["differences"].get(name)
    return f"{score:.2f}" + (f" ({change['value']:+.2f}, p = {change['p']:.2f})" if change else "")


def agreement_table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model, task | engine | teacher-forced on | positions | same argmax | logit error | regret |",
        "|" + " --- |" * 7,
    ]
    for one in found:
        for name, of in one["agreement"].items():
            for what, held in of.items():
                error, regret = ("-" if held[key] is None else f"{held[key]:.4f}" for key in ("error", "regret"))
                lines.append(
                    f"| {one['model']} | {name} | {what} | {held['positions']:,} | {held['same']:.4f} | "
                    f"{error} | {regret} |"
                )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where converted models and results go")
    parser.add_argument(
        "--judge", nargs=3, action="append", required=True, metavar=("MODEL", "TASK", "DATA"),
        help="or MODEL FOLDER SPLIT",
    )  # fmt: skip
    parser.add_argument("--items", type=int, default=1000, help="most held-out items of a task")
    parser.add_argument("--forced", type=int, default=500, help="most items that are teacher-forced")
    parser.add_argument("--ctranslate2", action=argparse.BooleanOptionalAction, default=True)
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    return asked


if __name__ == "__main__":
    main()
