"""Fine-tune one pretrained model on the family's tasks, and say how good each is: the table of docs/results/tasks.md.

    python benchmarks/tasks.py --model runs/base --data ../shared/data --out OUT
    python benchmarks/tasks.py --model runs/base --data ../shared/data --out OUT --scale 0.05      a quick look

Everything goes through the command line as a user would type it: `finetune`, `evaluate`, `compare`. Eight tasks, each
by itself, three seeds for two of them; LoRA and a soft prompt beside full fine-tuning for one; a mixture of seven tasks
in one run; a table of somebody's own, without code. Stopped, it goes on where it was. Prints a table and the verdicts,
writes OUT/tasks.json and OUT/tasks.md, and ends with a line of JSON.
"""

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Plan(NamedTuple):
    train: str  # within DATA
    validation: str
    steps: int
    seeds: int = 1


TASKS = {
    "sst2": Plan("sst2/train.jsonl", "sst2/validation.jsonl", 300, 3),
    "rte": Plan("rte/train.jsonl", "rte/validation.jsonl", 120, 3),
    "boolq": Plan("boolq/train_proxy.jsonl.gz", "boolq/validation.jsonl.gz", 100),
    "ag_news": Plan("ag_news/train.jsonl.gz", "ag_news/validation.jsonl.gz", 200),
    "squad": Plan("squad/squad_train_sample.jsonl.gz", "squad/squad_dev.jsonl", 150),
    "nq_open": Plan("nq_open/nq_open_train_proxy.jsonl", "nq_open/nq_open_dev.jsonl", 300),
    "scitldr": Plan("scitldr/train.jsonl.gz", "scitldr/validation.jsonl.gz", 80),
    "samsum": Plan("samsum/train_proxy.jsonl.gz", "samsum/validation.jsonl.gz", 80),
}
MIXTURE = ("sst2", "rte", "boolq", "ag_news", "squad", "nq_open", "samsum")
MIXTURE_STEPS = 250
LIGHT = {  # other ways to adapt to the first task, beside full fine-tuning
    "lora": ("sst2", "--recipe", "lora"),
    "prompt": ("sst2", "--recipe", "prompt_tuning"),
}
OWN = ("cola/train.jsonl", "text", "label", 200)  # as if it were somebody's own table: a file, two columns, steps
COMMON = ("--batch", "16", "--dtype", "float32", "--no-tensorboard", "--eval-examples", "128")
# Ten times T5's rate, for models that learned in an hour and are tuned in minutes; recipes of other kinds keep theirs.
FULL = ("--learning-rate", "0.01")


def main() -> None:
    asked = arguments()
    (asked.out / "runs").mkdir(parents=True, exist_ok=True)
    prepare(asked)
    for name, plan in TASKS.items():
        finetune(asked, name, "--task", name, *data_of(asked, name), *many(plan.seeds), *FULL, steps=plan.steps)
    for kind, (name, *flags) in LIGHT.items():
        finetune(asked, kind, "--task", name, *data_of(asked, name), *flags, steps=TASKS[name].steps)
    together = ("--task", ",".join(MIXTURE), "--data", str(asked.out / "data"), "--mixture", "size,limit=3000")
    finetune(asked, "mixture", *together, *FULL, steps=MIXTURE_STEPS)
    file, source, target, steps = OWN
    words = (
        "--task",
        str(asked.data / file),
        "--input-template",
        f"{{{source}}}",
        "--target-template",
        f"{{{target}}}",
    )
    finetune(asked, "own", *words, *FULL, steps=steps)
    report(asked)


def prepare(asked: argparse.Namespace) -> None:
    """OUT/data/TASK/train.jsonl and validation.jsonl, as links or unpacked copies of what DATA holds."""
    for name, plan in TASKS.items():
        folder = asked.out / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, source in (("train", plan.train), ("validation", plan.validation)):
            path, target = (asked.data / source).resolve(), folder / f"{split}.jsonl"
            if target.exists():
                continue
            if path.suffix == ".gz":
                target.write_bytes(gzip.decompress(path.read_bytes()))
            else:
                target.symlink_to(path)


def data_of(asked: argparse.Namespace, task: str) -> tuple[str, str]:
    return "--data", str(asked.out / "data" / task)


def many(seeds: int) -> tuple[str, ...]:
    return ("--seeds", str(seeds)) if seeds > 1 else ("--seed", "0")


def finetune(asked: argparse.Namespace, name: str, *words: str, steps: int) -> None:
    out = asked.out / "runs" / name
    if (done := out.with_suffix(".done")).exists():
        return
    steps = max(4, int(steps * asked.scale))
    every = str(max(1, steps // 4))
    began = time.perf_counter()
    verb(
        asked, "finetune", str(asked.model), *words, "--out", name, "--steps", str(steps), "--eval-every", every,
        "--save-every", every, "--log-every", str(max(1, steps // 25)), *COMMON,
    )  # fmt: skip
    done.write_text(json.dumps({"steps": steps, "seconds": time.perf_counter() - began}))


def report(asked: argparse.Namespace) -> None:
    from deepnarrow import machine

    # one system by itself: its score over items and seeds, beside its baseline
    scores = {name: compare(asked, name, name) for name in TASKS}
    light = list(LIGHT)
    verdicts = {
        f"{name} by {' and '.join(['all weights', *light])}": compare(asked, name, name, *light) for name in ("sst2",)
    }
    verdicts |= {f"{name} alone and in the mixture": compare(asked, name, name, "mixture") for name in MIXTURE}
    own = json.loads(verb(asked, "evaluate", "own", "--json", capture=True))
    runs = {path.stem: json.loads(path.read_text()) for path in sorted((asked.out / "runs").glob("*.done"))}
    summary = {
        "model": str(asked.model), "pretrained": pretrained(asked.model), "scores": scores, "verdicts": verdicts,
        "own": own, "runs": runs, "threads": os.environ.get("OMP_NUM_THREADS"), "machine": machine.describe(),
        "commit": machine.commit(),
    }  # fmt: skip
    (asked.out / "tasks.json").write_text(json.dumps(summary, indent=1))
    page = markdown(summary)
    (asked.out / "tasks.md").write_text(page)
    print(page)
    print(json.dumps(summary))


def pretrained(model: Path) -> dict[str, Any]:
    """How much the model had learned before: the last line of its own run."""
    if not (model / "log.jsonl").exists():
        return {}
    rows = [json.loads(line) for line in (model / "log.jsonl").read_text().splitlines()]
    shape = json.loads((model / "run.json").read_text())["shape"]
    return {"shape": shape, **next(row for row in reversed(rows) if "tokens" in row)}


def compare(asked: argparse.Namespace, task: str, *runs: str) -> dict[str, Any]:
    return json.loads(verb(asked, "compare", *runs, "--task", task, *data_of(asked, task), "--json", capture=True))


def markdown(summary: dict[str, Any]) -> str:
    """The table, and the verdicts below it."""
    head = ["task", "metric", "score [95 %]", "n", "seeds", "without learning", "steps", "minutes"]
    lines = [cells(head), cells(["---", "---", *["---:"] * 6])]
    for name, found in summary["scores"].items():
        lines.append(cells(row(name, found, found["systems"][0], summary["runs"][name])))
    for table in summary["verdicts"].values():
        for system in table["systems"][1:]:
            run = summary["runs"][system["name"]]
            lines.append(cells(row(f"{table['task']}, {system['name']}", table, system, run)))
    lines += ["", *(f"- {one['sentence']}" for table in summary["verdicts"].values() for one in table["comparisons"])]
    return "\n".join(lines) + "\n"


def row(name: str, table: dict[str, Any], system: dict[str, Any], run: dict[str, Any]) -> list[str]:
    base = table["baseline"]
    return [
        name, table["metric"], f"{system['value']:.1f} [{system['low']:.1f}, {system['high']:.1f}]", f"{system['n']:,}",
        str(system["seeds"]), f"{base['value']:.1f} ({base['name']})", f"{run['steps']:,}",
        f"{run['seconds'] / 60 / system['seeds']:.1f}",
    ]  # fmt: skip


def cells(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def verb(asked: argparse.Namespace, *words: str, capture: bool = False) -> str:
    """One call of the command line, in the folder of the runs."""
    print(f"$ deepnarrow {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "deepnarrow", *words], cwd=asked.out / "runs",
        stdout=subprocess.PIPE if capture else None, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"deepnarrow {words[0]} ended with code {done.returncode}")
    return done.stdout or ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a pretrained run or folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/train.jsonl and the like")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps")
    asked = parser.parse_args()
    asked.model, asked.data, asked.out = (path.resolve() for path in (asked.model, asked.data, asked.out))
    return asked


if __name__ == "__main__":
    main()
