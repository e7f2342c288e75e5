"""How fast documents become a corpus on one core: MB of UTF-8 text a second.

    python benchmarks/tokenise.py TEXT.jsonl.gz... --tokenizer t5/spiece.model --tokenizer small/spiece.model

For each tokenizer, in turns, so that a busy machine slows all alike: the library's own loop over documents in memory
(`sentencepiece`, or `tokenizers` for a tokenizer.json, one thread); our `encode_batch`, cleaning of ids and joining
included; and a whole `corpus build`, from compressed file to synced shards. The best of the rounds counts. The last
line is JSON.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, before any library counts them

from rich.console import Console
from rich.table import Table

from deepnarrow.machine import describe
from deepnarrow.text import building
from deepnarrow.text.sentencepiece_tokenizer import SentencePieceTokenizer
from deepnarrow.text.shards import token_dtype
from deepnarrow.text.sources import documents
from deepnarrow.text.tokenizer import Tokenizer, load


def library_loop(tokenizer: Tokenizer, texts: list[str]) -> None:
    if isinstance(tokenizer, SentencePieceTokenizer):
        for text in texts:
            tokenizer.engine.encode(text)
    else:
        for text in texts:
            tokenizer.encode(text)


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> None:
    encode = building._encoder(tokenizer, None)
    for _ in building._pieces(texts, encode, token_dtype(tokenizer.size), None):
        pass


def build(tokenizer: Tokenizer, sources: list[str]) -> None:
    folder = tempfile.mkdtemp()
    try:
        building.build(sources, tokenizer, Path(folder) / "corpus")
    finally:
        shutil.rmtree(folder)


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Wall clock, and time of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--tokenizer", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = [document.text for source in arguments.sources for document in documents(source)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for _ in range(arguments.rounds):
        for name in arguments.tokenizer:
            tokenizer = load(name)  # anew, so that no cache of words is warm
            for what, run in (
                ("library loop", lambda t=tokenizer: library_loop(t, texts)),
                ("tokenise", lambda t=load(name): tokenise(t, texts)),
                ("corpus build", lambda t=load(name): build(t, arguments.sources)),
            ):
                found = seconds(run)
                before = best.get((name, what), found)
                best[name, what] = (min(found[0], before[0]), min(found[1], before[1]))
    table = Table("tokenizer", "what", "MB/s wall", "MB/s processor", title=f"{size:.1f} MB of text, one core")
    for (name, what), (wall, processor) in best.items():
        table.add_row(name, what, f"{size / wall:.1f}", f"{size / processor:.1f}")
    Console().print(table)
    rows = [
        {"tokenizer": name, "what": what, "mb_per_s_wall": size / wall, "mb_per_s_processor": size / processor}
        for (name, what), (wall, processor) in best.items()
    ]
    print(json.dumps({"megabytes": size, "rounds": arguments.rounds, "rows": rows, "machine": describe()}))


if __name__ == "__main__":
    main()
