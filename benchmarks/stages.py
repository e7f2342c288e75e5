"""From raw text to a closed-book model in three stages: span corruption, prefix-LM adaptation, salient span masking.

    python benchmarks/stages.py --data ../shared/data/pretrain --out OUT
    python benchmarks/stages.py --data DATA --out OUT --minutes 3 1 1 --shape tiny-nl2-v8192

Everything goes through the command line, in the order a user would: tokenizer, corpora, three runs of `pretrain`, the
second and third from the first one's weights, and `evaluate` on WikiText-2's validation part before and after each.
The first stage has T5's flat rate and is stopped by an interrupt when its minutes are over; the others fall linearly to
zero over as many steps as the first one's speed gives them minutes for. Stopped, it goes on where it was.
Writes OUT/stages.svg and OUT/stages.json, prints a table, and ends with a line of JSON.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

TEXTS = ("wikipedia_articles", "gutenberg", "scifi_stories", "web_c4_like")
TRAINED_ON = ("wikipedia_articles", "gutenberg", "web_c4_like")  # the tokenizer
HELD_OUT = "wikitext2_valid"
COMMON = "--batch 8 --dtype float32 --log-every 10 --eval-examples 64"
FALLING = "--schedule linear --learning-rate 0.01 --warmup 0"
STAGES = {  # its corpus, where its weights start, its flags
    "span": ("corpus", None, "--recipe t5_efficient --steps 100000 --save-every 100 --eval-every 100"),
    "lm_adapt": ("corpus", "span", f"--recipe t5_efficient --objective prefix_lm --batching packed {FALLING}"),
    "salient": ("salient_corpus", "span", f"--recipe t5_efficient --objective salient --batching packed {FALLING}"),
}
# What is asked of the models: an objective, and the form of the text it reads.
QUESTIONS = {"span": "wikitext", "prefix_lm": "wikitext", "salient": "wikitext_salient"}
SALIENT_BATCH = 96  # sentences are short; so many fill about as many tokens as the eight of the others


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    prepare(asked)
    for number, stage in enumerate(STAGES):
        train(asked, stage, asked.minutes[number])
    scores = {stage: judge(asked, stage) for stage in ("start", *STAGES)}
    report(asked, scores)


def prepare(asked: argparse.Namespace) -> None:
    """Tokenizer and corpora; each verb goes on with, or leaves alone, what is there."""
    texts, trained_on = ([str(asked.data / f"{name}.jsonl.gz") for name in names] for names in (TEXTS, TRAINED_ON))
    held_out = str(asked.data / f"{HELD_OUT}.jsonl.gz")
    vocabulary = str(asked.out / "vocabulary")
    if not (asked.out / "vocabulary").exists():
        verb(asked, "tokenizer", "train", *trained_on, "--vocab", "8192", "--out", vocabulary)
    builds = {
        "corpus": (texts, ["--held-out", "0.02"]),
        "salient_corpus": (texts[:1], ["--held-out", "0.02", "--salient", "nem"]),
        "wikitext": ([held_out], []),
        "wikitext_salient": ([held_out], ["--salient", "nem"]),
    }
    for name, (sources, flags) in builds.items():
        if not (asked.out / name / "manifest.json").exists():
            verb(asked, "corpus", "build", *sources, "--tokenizer", vocabulary, "--out", str(asked.out / name), *flags)


def train(asked: argparse.Namespace, stage: str, minutes: float) -> None:
    corpus, start, flags = STAGES[stage]
    out = asked.out / stage
    if (out / "done").exists():
        return
    words = ["pretrain", "--corpus", str(asked.out / corpus), "--out", str(out), *shlex.split(f"{COMMON} {flags}")]
    if start is None:
        verb(asked, *words, "--shape", asked.shape, seconds=minutes * 60)
    else:
        first = last_row(asked.out / start)
        steps = max(20, int(minutes * 60 / (first["seconds"] / first["step"])))
        every = str(max(1, steps // 4))
        words += ["--init-from", str(asked.out / start), "--steps", str(steps), "--save-every", every]
        words += ["--eval-every", every]
        if stage == "salient":
            words[words.index("--batch") + 1] = str(SALIENT_BATCH)
        verb(asked, *words)
    (out / "done").touch()


def judge(asked: argparse.Namespace, stage: str) -> dict[str, dict]:
    """Bits per byte of every question. "start" is what the first stage began with: nothing learned."""
    if stage == "start" and not (asked.out / stage).exists():
        untrained(asked, asked.out / stage)
    file = asked.out / f"{stage}.scores.json"
    if not file.exists():
        found = {}
        for objective, corpus in QUESTIONS.items():
            printed = verb(
                asked, "evaluate", str(asked.out / stage), "--corpus", str(asked.out / corpus), "--objective",
                objective, "--limit", str(asked.limit), "--json", capture=True,
            )  # fmt: skip
            found[objective] = json.loads(printed)
        file.write_text(json.dumps(found, indent=1))
    return json.loads(file.read_text())


def untrained(asked: argparse.Namespace, folder: Path) -> None:
    from deepnarrow.model.folder import save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse
    from deepnarrow.text.tokenizer import load

    model = T5(parse(asked.shape))
    initialise(model, 0)
    save_model(model, load(asked.out / "vocabulary"), folder)


def verb(asked: argparse.Namespace, *words: str, seconds: float | None = None, capture: bool = False) -> str:
    """One call of the command line; after `seconds` it gets an interrupt, which saves and ends it."""
    print(f"$ deepnarrow {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "deepnarrow", *words], stdout=subprocess.PIPE if capture else None, text=True
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate()
    if process.returncode not in (0, 130):
        sys.exit(f"deepnarrow {words[0]} ended with code {process.returncode}")
    return printed or ""


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def last_row(run: Path) -> dict:
    return next(row for row in reversed(rows_of(run)) if "seconds" in row)


def report(asked: argparse.Namespace, scores: dict[str, dict[str, dict]]) -> None:
    from deepnarrow import machine

    print(f"\nbits per byte on {HELD_OUT}, at most {asked.limit} examples, 95 % intervals")
    print(f"{'after':<12}{'steps':>7}{'minutes':>9}" + "".join(f"{name:>25}" for name in QUESTIONS))
    for stage in ("start", *STAGES):
        row = last_row(asked.out / stage) if stage in STAGES else {"step": 0, "seconds": 0.0}
        cells = "".join(
            f"{found['bits_per_byte']:>10.3f} [{found['low']:.3f}, {found['high']:.3f}]".rjust(25)
            for found in scores[stage].values()
        )
        print(f"{stage:<12}{row['step']:>7}{row['seconds'] / 60:>9.1f}{cells}")
    draw(asked)
    summary = {
        "shape": asked.shape, "scores": scores,
        "runs": {name: last_row(asked.out / name) for name in STAGES}, "threads": os.environ.get("OMP_NUM_THREADS"),
        "machine": machine.describe(), "commit": machine.commit(),
    }  # fmt: skip
    (asked.out / "stages.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary))


def draw(asked: argparse.Namespace) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (stage, (_, start, _)) in zip(figure.subplots(1, len(STAGES)), STAGES.items(), strict=True):
        rows = rows_of(asked.out / stage)
        for key, style in (("loss", "-"), ("held_out_loss", "o--")):
            points = [(row["step"], row[key]) for row in rows if key in row and row["step"] > 1]
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=key.replace("_", "-", 1).replace("_", " "))
        minutes = last_row(asked.out / stage)["seconds"] / 60
        axes.set_title(f"{stage.replace('_', ' ')}{'' if start is None else f', from {start}'}: {minutes:.0f} min")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("nats per target token")
    FigureCanvasAgg(figure)
    for kind in ("svg", "png"):
        figure.savefig(asked.out / f"stages.{kind}", dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.jsonl.gz with a field `text`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="tiny-v8192")
    parser.add_argument("--minutes", type=float, nargs=3, default=[30, 10, 10], help="of the three stages")
    parser.add_argument("--limit", type=int, default=256, help="most examples of an evaluation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
