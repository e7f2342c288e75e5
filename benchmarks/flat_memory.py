"""That a corpus of any size opens at once and is read in constant memory.

    python benchmarks/flat_memory.py --gigabytes 50 --batches 5000

Makes a corpus whose shards are sparse files, one of them full of real tokens and linked under every other number, so
that 50 GB take no disk to speak of; then opens it and reads rows at random, counting. RssAnon is memory that the
process holds; RssFile is the page cache seen through its maps, which the system takes back when it wants. Last line:
JSON. Exits with 1 if it opens slower than in a second or if RssAnon grows by more than 16 MB after the first tenth.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deepnarrow.machine import describe
from deepnarrow.text.building import build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.corpus import open_corpus
from deepnarrow.text.shards import START, shard_name
from deepnarrow.text.sources import Memory

SHARD_TOKENS = 2**24
DOCUMENT = 600  # tokens


def simulate(folder: Path, size: int) -> None:
    """A corpus of `size` bytes of tokens: every even shard is one file of tokens, every odd one a sparse file."""
    build([Memory("seed", ["a few words to begin with"])], ByteTokenizer(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = size // (2 * SHARD_TOKENS)
    full, empty = folder / shard_name(0), folder / shard_name(1)
    full.unlink()
    np.random.default_rng(0).integers(3, 259, SHARD_TOKENS, np.uint16).tofile(full)
    with empty.open("wb") as file:
        file.truncate(2 * SHARD_TOKENS)
    for number in range(2, shards):
        os.link((full, empty)[number % 2], folder / shard_name(number))
    tokens = shards * SHARD_TOKENS
    documents = tokens // DOCUMENT
    with (folder / "documents.bin").open("wb") as file:  # real starts, eight bytes each
        for first in range(0, documents, 2**20):
            (np.arange(first, min(first + 2**20, documents), dtype=START) * DOCUMENT).astype(START).tofile(file)
    digest = hashlib.sha256(b"").hexdigest()  # nothing here verifies
    manifest["tokens"], manifest["documents"] = tokens, documents
    manifest["source_documents"] = [documents]
    manifest["plan"]["shard_tokens"] = SHARD_TOKENS
    manifest["shards"] = [{"file": shard_name(n), "tokens": SHARD_TOKENS, "sha256": digest} for n in range(shards)]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def memory() -> dict[str, int]:
    """Resident memory in kB, by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) for line in lines if line[0] in ("VmRSS:", "RssAnon:", "RssFile:")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=50)
    parser.add_argument("--batches", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=568)
    parser.add_argument("--folder", type=Path, help="where to make it; by default a temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        simulate(folder / "corpus", int(arguments.gigabytes * 1e9))
        began = time.perf_counter()
        corpus = open_corpus(folder / "corpus")
        opened = time.perf_counter() - began
        began = time.perf_counter()
        corpus.row(corpus.rows(arguments.length) - 1, arguments.length)
        first = time.perf_counter() - began
        print(f"{corpus.tokens * 2 / 1e9:.1f} GB in {len(corpus.shards)} shards, {corpus.documents:,} documents")
        print(f"opened in {opened * 1000:.0f} ms, the last row read in {first * 1000:.1f} ms")
        generator = np.random.default_rng(1)
        seen = []
        began = time.perf_counter()
        print("batches      RssAnon MB   RssFile MB   VmRSS MB")
        for done in range(1, arguments.batches + 1):
            rows = generator.integers(0, corpus.rows(arguments.length), arguments.batch)
            corpus.read(rows, arguments.length)
            corpus.document_at(int(rows[0]) * arguments.length)
            if done % max(1, arguments.batches // 10) == 0:
                seen.append({"batches": done, **memory()})
                kinds = (seen[-1][key] / 1024 for key in ("RssAnon", "RssFile", "VmRSS"))
                print(f"{done:<12,} " + "   ".join(f"{kind:10.1f}" for kind in kinds))
        per_second = arguments.batches * arguments.batch / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder)
    growth = (seen[-1]["RssAnon"] - seen[0]["RssAnon"]) / 1024
    print(f"RssAnon grew by {growth:.1f} MB between the first tenth and the end; {per_second:,.0f} rows a second")
    result = {"gigabytes": corpus.tokens * 2 / 1e9, "opened_s": opened, "rss_anon_growth_mb": growth, "seen": seen}
    print(json.dumps({**result, "rows_per_second": per_second, "machine": describe()}))
    sys.exit(opened > 1 or growth > 16)


if __name__ == "__main__":
    main()
