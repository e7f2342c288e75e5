"""`deepnarrow corpus`: documents to token shards, and a look at them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepnarrow.text.corpus import Corpus

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Turn documents into token shards, and look at them.

    \b
    Example:
      deepnarrow corpus build wiki.jsonl.gz --tokenizer t5/spiece.model --out wiki --held-out 0.01
      deepnarrow corpus show wiki
      deepnarrow corpus sample wiki --n 2
    """,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A corpus made by `corpus build`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, every field.")]


@app.command("build")
def build_corpus(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Text, JSONL or Parquet files (.gz, .zst too), folders, builtin:python, hub:NAME."
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(metavar="T", help="spiece.model, tokenizer.json, a folder with one, or `bytes`.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The corpus folder to write.")],
    field: Annotated[str, typer.Option(help="The field that holds a record's text.")] = "text",
    held_out: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of documents kept out of training, 0 to 0.5.")
    ] = 0.0,
    shard_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per shard file.")] = 2**24,
    as_json: Json = False,
) -> None:
    """Tokenise documents into a memory-mapped corpus.

    Stop it whenever you like: the same command goes on where it was, and the result is the same to the byte. Which
    documents are held out is decided by a hash of their text.

    \b
    Example:
      deepnarrow corpus build wiki.jsonl.gz books/ --tokenizer t5/spiece.model --out corpus --held-out 0.01
      deepnarrow corpus build builtin:python --tokenizer bytes --out prose
    """
    from deepnarrow.text.building import build
    from deepnarrow.text.tokenizer import load

    corpus = build(sources, load(tokenizer), out, field=field, shard_tokens=shard_tokens, held_out=held_out)
    show(corpus, as_json)


@app.command("show")
def show_corpus(folder: Folder, as_json: Json = False) -> None:
    """What a corpus holds and what it was built from.

    \b
    Example:
      deepnarrow corpus show wiki
      deepnarrow corpus show wiki --json
    """
    from deepnarrow.text.corpus import open_corpus

    show(open_corpus(folder), as_json)


@app.command("verify")
def verify_corpus(folder: Folder) -> None:
    """Read every file of a corpus and compare it with its hash.

    \b
    Example:
      deepnarrow corpus verify wiki
    """
    from deepnarrow.text.corpus import open_corpus

    corpus = open_corpus(folder)
    corpus.verify()
    print(f"{folder} is whole: {len(corpus.shards)} shard(s), {corpus.tokens:,} tokens")


@app.command("sample")
def sample_corpus(
    folder: Folder,
    n: Annotated[int, typer.Option("--n", min=1, help="How many examples.")] = 3,
    objective: Annotated[str, typer.Option(help="What is hidden, and how.")] = "span",
    input_length: Annotated[int, typer.Option(min=3, help="Tokens the model reads; pretraining uses 512.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed shows other examples.")] = 0,
    as_json: Json = False,
) -> None:
    """Show training examples as text: what the model reads, and what it must answer.

    \b
    Example:
      deepnarrow corpus sample wiki --n 2 --objective span
    """
    from deepnarrow.text.batches import CorpusBatches
    from deepnarrow.text.corpus import open_corpus

    corpus = open_corpus(folder)
    batches = CorpusBatches(corpus=corpus, seed=seed, batch=n, input_length=input_length, objective=objective)
    batch, tokenizer = batches(0), corpus.tokenizer()
    examples = [
        {
            "first_token": origin.start,
            "documents": list(origin.documents),
            "source": name(corpus.source_of(origin.documents[0])),
            "inputs": tokenizer.decode(inputs[inputs != 0].tolist()),
            "targets": tokenizer.decode(targets[targets != 0].tolist()),
        }
        for origin, inputs, targets in zip(batches.origins(0), batch.inputs, batch.targets, strict=True)
    ]
    if as_json:
        import json

        print(json.dumps(examples, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(
        f"Up to {input_length} tokens of inputs and {batches.longest_target} of targets, end of sequence included; "
        f"{batches.size:,} examples in an epoch."
    )
    for example in examples:
        documents = example["documents"]
        which = f"document {documents[0]:,}" + (f" to {documents[-1]:,}" if len(documents) > 1 else "")
        console.print(f"\n[bold]token {example['first_token']:,}[/] [dim]{which}, from {example['source']}[/]")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold cyan")
        grid.add_column(overflow="fold")
        for side in ("inputs", "targets"):
            text = Text(example[side])
            text.highlight_regex(r"<extra_id_\d+>", "bold magenta")
            grid.add_row(side, text)
        console.print(grid)


def show(corpus: "Corpus", as_json: bool) -> None:
    held_out = corpus.held_out()
    if as_json:
        import json

        print(json.dumps({**record(corpus), "held_out": record(held_out) if held_out else None}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"\n[bold cyan]{escape(str(corpus.folder))}[/]")
    parts = [corpus, *([held_out] if held_out else [])]
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False)
    for label in ("", "training", "held out")[: len(parts) + 1]:
        grid.add_column(label, justify="left" if not label else "right", no_wrap=True)
    for label, cells in (
        ("tokens", [f"{part.tokens:,}" for part in parts]),
        ("documents", [f"{part.documents:,}" for part in parts]),
        ("bytes of text", [f"{part.text_bytes:,}" for part in parts]),
        ("bytes per token", [f"{part.text_bytes / part.tokens:.2f}" for part in parts]),
        ("rows of 568 (512 inputs)", [f"{part.rows(568):,}" for part in parts]),
        ("shards", [f"{len(part.shards):,}" for part in parts]),
    ):
        grid.add_row(label, *cells)
    console.print(grid)
    console.print(f"tokenizer {corpus.fingerprint[:12]}, {corpus.vocab:,} ids, stored as {corpus.dtype.name}")
    for source in corpus.sources[:10]:
        size = "" if source.bytes is None else f", {source.bytes:,} bytes, sha256 {str(source.sha256)[:12]}"
        console.print(f"[dim]from {escape(name(source))}: {source.documents:,} documents{size}[/]", soft_wrap=True)
    if len(corpus.sources) > 10:
        console.print(f"[dim]and {len(corpus.sources) - 10:,} more sources (--json lists them)[/]")


def record(corpus: "Corpus") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": str(corpus.folder),
        "tokens": corpus.tokens,
        "documents": corpus.documents,
        "text_bytes": corpus.text_bytes,
        "vocab": corpus.vocab,
        "tokenizer": corpus.fingerprint,
        "dtype": corpus.dtype.name,
        "shards": [shard._asdict() for shard in corpus.shards],
        "sources": [asdict(source) for source in corpus.sources],
        "deepnarrow": corpus.built_with,
    }


def name(source: Any) -> str:
    return str(source.file or source.source)
