"""From nothing to the first token: a whole process, this package beside CTranslate2, on the same weights and text.

    python benchmarks/cold_start.py --out OUT --spiece spiece.model
    python benchmarks/cold_start.py --out OUT --spiece spiece.model --shapes small --rounds 5

A process starts, imports its libraries, opens the model and the tokenizer, reads one text, writes the first token and
ends; what is reported is its time from start to end by the clock. Ours is `deepnarrow generate FOLDER TEXT --max-tokens
1`, CTranslate2's a script that does no more than it must, with sentencepiece for its tokenizer, as its documentation
shows. Files are in the system's cache; all take turns, and medians of the rounds are reported, with the least beside
them. `python` alone and `import numpy`, which both libraries need, show what no program can do without. Weights are
random, drawn as published T5s were. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from deepnarrow import machine

SHAPES = ("small", "base")
PRECISIONS = ("int8", "float32")
TEXT = (
    "summarize: The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest in Paris."
)
GOAL = {"small": 0.35}  # seconds, for int8 and float32 alike

CTRANSLATE2 = """
import sys
import ctranslate2, sentencepiece
folder, spiece, precision, threads, text = sys.argv[1:]
pieces = sentencepiece.SentencePieceProcessor(model_file=spiece)
model = ctranslate2.Translator(folder, device="cpu", compute_type=precision, intra_threads=int(threads))
[found] = model.translate_batch([pieces.encode(text, out_type=str) + ["</s>"]], beam_size=1, max_decoding_length=1)
print("".join(found.hypotheses[0]))
"""


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for shape in asked.shapes:
        commands = floor() | ours(asked, shape) | theirs(asked, shape)
        rows += rounds(shape, commands, asked.rounds)
    print(markdown(rows))
    summary = {
        "rows": rows, "verdicts": verdicts(rows), "text": TEXT, "rounds": asked.rounds, "threads": asked.threads,
        "machine": machine.describe(), "versions": machine.versions() | {"ctranslate2": peer_version()},
        "commit": machine.commit(), "date": machine.today(),
    }  # fmt: skip
    print(json.dumps(summary))


def floor() -> dict[str, list[str]]:
    """What every program here starts with."""
    return {"python": [sys.executable, "-c", "pass"], "python, numpy": [sys.executable, "-c", "import numpy"]}


def ours(asked: argparse.Namespace, shape: str) -> dict[str, list[str]]:
    from deepnarrow.hub.native import to_native
    from deepnarrow.model.folder import open_model

    commands = {}
    for precision in PRECISIONS:
        folder = asked.out / f"{shape}-native-{precision}"
        if not folder.exists():
            to_native(open_model(published(asked, shape)), folder, precision=precision)
        commands[f"deepnarrow {precision}"] = [
            sys.executable, "-m", "deepnarrow", "generate", str(folder), TEXT, "--max-tokens", "1",
        ]  # fmt: skip
    return commands


def theirs(asked: argparse.Namespace, shape: str) -> dict[str, list[str]]:
    from ctranslate2.converters import TransformersConverter

    script = asked.out / "ctranslate2_cold.py"
    script.write_text(CTRANSLATE2)
    commands = {}
    for precision in PRECISIONS:
        folder = asked.out / f"{shape}-ctranslate2-{precision}"
        if not folder.exists():
            TransformersConverter(str(published(asked, shape))).convert(str(folder), quantization=precision)
        for threads in asked.threads:
            commands[f"CTranslate2 {precision} {threads}T"] = [
                sys.executable, str(script), str(folder), str(asked.spiece), precision, str(threads), TEXT,
            ]  # fmt: skip
    return commands


def published(asked: argparse.Namespace, shape: str) -> Path:
    """A Hugging Face folder of random weights with T5's tokenizer, written once."""
    from deepnarrow.model.folder import save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse
    from deepnarrow.text.tokenizer import load

    folder: Path = asked.out / shape
    if not folder.exists():
        model = T5(parse(shape))
        initialise(model, 0)
        save_model(model, load(asked.spiece), folder)
    return folder


def rounds(shape: str, commands: dict[str, list[str]], number: int) -> list[dict[str, Any]]:
    """Each in turn, after a first time that fills caches and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(number + 1):
        for name, command in commands.items():
            seconds = whole(command)
            if turn:
                times[name].append(seconds)
    rows = [
        {
            "shape": shape, "what": name, "seconds": round(median(found), 4), "least": round(min(found), 4),
            "all": [round(one, 4) for one in found],
        }
        for name, found in times.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{shape:<8}{row['what']:<26}{row['seconds']:8.3f} s   least {row['least']:.3f} s", flush=True)
    return rows


def whole(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")
    return seconds


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against the quickest of CTranslate2's in the same precision, by medians."""
    found = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        for precision in PRECISIONS:
            here = {row["what"]: row["seconds"] for row in rows if row["shape"] == shape and precision in row["what"]}
            us = here[f"deepnarrow {precision}"]
            them = min(seconds for name, seconds in here.items() if name.startswith("CTranslate2"))
            goal = GOAL.get(shape)
            found.append(
                {
                    "shape": shape, "precision": precision, "seconds": us, "ctranslate2": them,
                    "as_quick": us <= them, "goal": goal, "reached": None if goal is None else us <= goal,
                }
            )  # fmt: skip
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["", "| shape | process | seconds, median | least |", "|---|---|---:|---:|"]
    lines += [f"| {row['shape']} | {row['what']} | {row['seconds']:.3f} | {row['least']:.3f} |" for row in rows]
    return "\n".join(lines)


def peer_version() -> str:
    from importlib.metadata import version

    return version("ctranslate2")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="models are kept here from run to run")
    parser.add_argument("--spiece", type=Path, required=True, help="T5's spiece.model")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
