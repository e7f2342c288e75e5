"""A trained pair: a model that corrects typing mistakes, and a shallow sibling of it that drafts for it.

    python benchmarks/pair.py --model runs/base --out OUT                    about half an hour for each on one core
    python benchmarks/pair.py --model runs/base --out OUT --steps 40         a quick look

What the quality gate and speculative decoding are measured on: a task with exact answers that a small model really
learns. Texts are joined from runs of common words in the prose of Python's own library, split by where they stand; one
or two words of each lose, double or swap letters, and half of the texts lose their capitals. The target model is
fine-tuned on them; the sibling starts from the target's own outer layers (same vocabulary and width) and is fine-tuned
on the target's answers to the same inputs: sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947).
Everything goes through the command line as a user would type it. Stopped, it goes on where it was.

OUT/data/{train,validation,test}.jsonl, OUT/target and OUT/draft are the task's data and the two runs; the last line of
what is printed is JSON.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deepnarrow.files import write_json
from deepnarrow.text import builtin

WORD = re.compile(r"[A-Za-z]+[.,]?")
COMMON = 600  # words that texts are made of: few enough to be learned within the half hour
RUN, LEAST, MOST = 4, 5, 14  # words of a run at least; of a text
SIZES = {"train": 60_000, "validation": 1_000, "test": 1_000}
SHORTEST = 4  # letters of a word that is mistyped


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = make_data(asked.out / "data")
    finetune(asked, asked.model, "target", data, asked.steps)
    start = asked.out / "sibling"
    if not start.exists():
        sibling(asked.out / "target", start, encoder=asked.encoder_layers, decoder=asked.decoder_layers)
    finetune(asked, start, "draft", answers(asked, data), asked.draft_steps)
    found = {name: evaluate(asked, name, data) for name in ("target", "draft")}
    for name, scores in found.items():
        print(f"{name}: exact match {scores['exact_match']['value']:.1f}")
    print(json.dumps(found))


def make_data(folder: Path) -> Path:
    """The three splits as `finetune --task` reads them, written once."""
    folder.mkdir(exist_ok=True)
    windows = texts()
    for split, size in SIZES.items():
        path, chosen = folder / f"{split}.jsonl", random.Random(f"{split} 0")
        if path.exists():
            continue
        seen, rows = set(), []
        while len(rows) < size:
            target = joined(windows[split], chosen)
            source = mistyped(target, chosen)
            if split == "train" or target not in seen:
                seen.add(target)
                rows.append(json.dumps({"input": source, "target": target}))
        path.write_text("\n".join(rows) + "\n")
    return folder


def texts() -> dict[str, list[list[str]]]:
    """Runs of common words, by split; a document falls to one split whole."""
    documents = [
        (builtin.split_of(name), line.split()) for text, name in builtin.documents() for line in text.split("\n")
    ]
    counts = Counter(word.strip(".,").lower() for _, words in documents for word in words if WORD.fullmatch(word))
    common = {word for word, _ in counts.most_common(COMMON)}
    found: dict[str, list[list[str]]] = {split: [] for split in SIZES}
    for split, words in documents:
        found[split] += [run for run in runs(words, common) if len(run) >= RUN]
    return found


def runs(words: list[str], common: set[str]) -> Iterator[list[str]]:
    """The longest stretches of words that are all common.

    >>> list(runs("Return the __hash__ of the value".split(), {"return", "the", "of", "value"}))
    [['Return', 'the'], ['of', 'the', 'value']]
    """
    run: list[str] = []
    for word in words:
        if WORD.fullmatch(word) and word.strip(".,").lower() in common:
            run.append(word)
            continue
        if run:
            yield run
        run = []
    if run:
        yield run


def joined(found: list[list[str]], chosen: random.Random) -> str:
    """Runs one behind the other, cut to a length that is drawn."""
    length, words = chosen.randint(LEAST, MOST), list[str]()
    while len(words) < length:
        words += chosen.choice(found)
    begin = chosen.randint(0, len(words) - length)
    return " ".join(words[begin : begin + length])


def mistyped(text: str, chosen: random.Random) -> str:
    """One or two words with a mistake each, and half of the time no capitals.

    >>> mistyped("Return the value of this option.", random.Random(1))
    'retrn the value of this option.'
    """
    words = text.split()
    long = [at for at, word in enumerate(words) if len(word.strip(".,")) >= SHORTEST]
    for at in chosen.sample(long, min(len(long), chosen.randint(1, 2))):
        words[at] = slip(words[at], chosen)
    spoiled = " ".join(words)
    return spoiled.lower() if chosen.random() < 0.5 else spoiled


def slip(word: str, chosen: random.Random) -> str:
    """A letter lost, doubled, or swapped with the next; the first stays where it is."""
    at = chosen.randint(1, len(word.strip(".,")) - 2)
    kind = chosen.choice(("lost", "doubled", "swapped"))
    if kind == "lost":
        return word[:at] + word[at + 1 :]
    if kind == "doubled":
        return word[:at] + word[at] + word[at:]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def sibling(run: Path, folder: Path, *, encoder: int, decoder: int) -> None:
    """A model folder with the first and the last layers of another, its embedding and its tokenizer."""
    from dataclasses import replace

    from deepnarrow.model.folder import open_model, save_model
    from deepnarrow.model.t5 import T5

    opened = open_model(run)
    shape = replace(opened.shape, encoder_layers=encoder, decoder_layers=decoder)
    state = opened.model.state_dict()
    kept = {
        "encoder": outer(opened.shape.encoder_layers, encoder),
        "decoder": outer(opened.shape.decoder_layers, decoder),
    }
    model = T5(shape)
    model.load_state_dict({name: state[taken_from(name, kept)] for name in model.state_dict()})
    save_model(model, opened.tokenizer, folder)


def outer(layers: int, keep: int) -> list[int]:
    """Which layers a shallow sibling keeps: evenly spread, the last one always.

    >>> outer(4, 2), outer(4, 1), outer(6, 3)
    ([0, 3], [3], [0, 2, 5])
    """
    if keep == 1:
        return [layers - 1]
    return [at * (layers - 1) // (keep - 1) for at in range(keep)]


def taken_from(name: str, kept: dict[str, list[int]]) -> str:
    """The deep model's name for a tensor of the sibling.

    >>> taken_from("decoder.blocks.0.self_norm.weight", {"decoder": [3]})
    'decoder.blocks.3.self_norm.weight'
    """
    words = name.split(".")
    if words[1] == "blocks":
        words[2] = str(kept[words[0]][int(words[2])])
    return ".".join(words)


def answers(asked: argparse.Namespace, data: Path) -> Path:
    """What the target answers to some of the training inputs, as data for the draft."""
    folder = asked.out / "answers"
    if (folder / "train.jsonl").exists():
        return folder
    folder.mkdir(exist_ok=True)
    lines = (data / "train.jsonl").read_text().splitlines()[: asked.answers]
    inputs = folder / "inputs.txt"
    inputs.write_text("".join(json.loads(line)["input"] + "\n" for line in lines))
    words = ("--file", str(inputs), "--max-tokens", "32", "--batch", "64", "--json")
    found = [
        json.loads(line) for line in verb("generate", str(asked.out / "target"), *words, capture=True).splitlines()
    ]
    rows = [json.dumps({"input": one["input"], "target": one["outputs"][0]["text"]}) for one in found]
    (folder / "validation.jsonl").write_text((data / "validation.jsonl").read_text())
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def finetune(asked: argparse.Namespace, model: Path, name: str, data: Path, steps: int) -> None:
    """One run; nothing where it is done already."""
    done = asked.out / f"{name}.done"
    if done.exists():
        return
    every = str(max(1, steps // 8))
    verb(
        "finetune", str(model), "--task", str(data), "--out", str(asked.out / name), "--steps", str(steps),
        "--batch", str(asked.batch), "--learning-rate", str(asked.learning_rate), "--dropout", "0",
        "--schedule", "linear", "--warmup", str(steps // 20), "--optimizer", "adafactor",
        "--input-length", "48", "--target-length", "32", "--dtype", "float32", "--eval-every", every,
        "--eval-examples", "128", "--save-every", every, "--log-every", str(max(1, steps // 100)),
        "--no-tensorboard",
    )  # fmt: skip
    write_json(done, {"steps": steps})


def evaluate(asked: argparse.Namespace, name: str, data: Path) -> dict:
    words = ("evaluate", str(asked.out / name), "--task", str(data), "--json")
    return json.loads(verb(*words, capture=True))["scores"]


def verb(*words: str, capture: bool = False) -> str:
    print(f"$ deepnarrow {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "deepnarrow", *words], stdout=subprocess.PIPE if capture else None, text=True
    )
    if done.returncode:
        sys.exit(f"deepnarrow {words[0]} ended with code {done.returncode}")
    return done.stdout or ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a pretrained run or folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="of the target")
    parser.add_argument("--draft-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.015)
    parser.add_argument("--encoder-layers", type=int, default=2, help="of the draft")
    parser.add_argument("--decoder-layers", type=int, default=1, help="of the draft")
    parser.add_argument("--answers", type=int, default=16_000, help="inputs that the target answers for the draft")
    asked = parser.parse_args()
    asked.model, asked.out = asked.model.resolve(), asked.out.resolve()
    return asked


if __name__ == "__main__":
    main()
