"""`deepnarrow corpus`: documents to token shards, and a look at them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepnarrow.text.corpus import Corpus
    from deepnarrow.text.overlap import Item, Overlap
    from deepnarrow.text.sources import Document

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
      deepnarrow corpus overlap wiki --task squad --data squad/dev.jsonl
    """,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A corpus made by `corpus build`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, every field.")]


@app.command("build")
def build_corpus(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Text, JSONL, Parquet or WARC files (.gz, .zst too), folders, builtin:python, hub:NAME.",
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
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Clean the text first: c4, or none for the steps below alone.")
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="With --pipeline: the language to keep, or any.")
    ] = "en",
    dedup: Annotated[
        str, typer.Option(metavar="KIND", help="With --pipeline: sentences, lines, exact, minhash or none.")
    ] = "sentences",
    bad_words: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --pipeline: drop pages with one of these words (a word a line)."),
    ] = None,
    executor: Annotated[str, typer.Option(help="With --pipeline: local, ray or slurm.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --pipeline: tasks at once; by default the cores here.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="With --pipeline: how many tasks; by default one per 64 MB of sources.")
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of sbatch, such as partition=cpu.")
    ] = None,
    salient: Annotated[
        str | None, typer.Option(metavar="FORM", help="Store examples of salient span masking: nem or sentinel.")
    ] = None,
    tagger: Annotated[
        str, typer.Option(metavar="NAME", help="With --salient: builtin, spacy:PIPELINE or transformers:MODEL.")
    ] = "builtin",
    as_json: Json = False,
) -> None:
    """Tokenise documents into a memory-mapped corpus, cleaned first where a pipeline is named.

    Stop it whenever you like: the same command goes on where it was, and the result is the same to the byte. Which
    documents are held out is decided by a hash of their text.

    \b
    Example:
      deepnarrow corpus build wiki.jsonl.gz books/ --tokenizer t5/spiece.model --out corpus --held-out 0.01
      deepnarrow corpus build builtin:python --tokenizer bytes --out prose
      deepnarrow corpus build crawl/ --tokenizer t5/spiece.model --out c4 --pipeline c4 --bad-words en.txt
      deepnarrow corpus build wiki.jsonl.gz --tokenizer t5/spiece.model --out salient --salient nem
    """
    from deepnarrow.text.building import Salient, build
    from deepnarrow.text.cleaning import Settings, read_words
    from deepnarrow.text.pipeline import Execution
    from deepnarrow.text.tokenizer import load
    from deepnarrow.text.vocabulary import cores

    cleaning = None
    if pipeline:
        cleaning = Settings(
            pipeline=pipeline,
            language=None if language == "any" else language,
            bad_words=read_words(bad_words),
            dedup=dedup,
        )
    corpus = build(
        sources,
        load(tokenizer),
        out,
        field=field,
        shard_tokens=shard_tokens,
        held_out=held_out,
        salient=Salient(salient, tagger) if salient else None,
        cleaning=cleaning,
        execution=Execution(executor, workers or cores(), slurm_options(slurm or [])),
        tasks=tasks,
    )
    show(corpus, as_json)


def slurm_options(pairs: list[str]) -> dict[str, str]:
    """
    >>> slurm_options(["partition=cpu", "time=2:00:00"])
    {'partition': 'cpu', 'time': '2:00:00'}
    """
    from deepnarrow.errors import UserError

    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserError(f"cannot read --slurm {pair}; write KEY=VALUE, for example --slurm partition=cpu")
    return dict(pair.split("=", 1) for pair in pairs)


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
    examples: list[dict[str, Any]] = [
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


@app.command("overlap")
def overlap_corpus(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="A corpus made by `corpus build`, or what one is built from.")
    ],
    task: Annotated[str, typer.Option(metavar="NAME", help="The task whose items are looked for.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="The split of it.")] = "validation",
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A file, or a folder with SPLIT.jsonl (.csv, .parquet) in it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first so many items.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Words of a run that both must hold.")] = 13,
    show_worst: Annotated[int, typer.Option("--show", min=0, metavar="N", help="How many items to show.")] = 10,
    field: Annotated[str, typer.Option(help="With sources: the field that holds a record's text.")] = "text",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the items' numbers, for `evaluate --without FILE`; a .json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which items of a test set stand in a corpus: those that share a run of N words with one of its documents.

    Inputs and answers are looked for. A built corpus is read as its tokenizer gives it back, so words outside its
    vocabulary are not found; its held-out part is not read.

    \b
    Example:
      deepnarrow corpus overlap wiki --task squad --data squad/dev.jsonl --out dirty.json
      deepnarrow evaluate runs/squad --data squad/dev.jsonl --without dirty.json
      deepnarrow corpus overlap crawl.jsonl.gz --task boolq --n 8
    """
    from deepnarrow import tasks
    from deepnarrow.errors import UserError
    from deepnarrow.measure.judging.items import fingerprint, write_numbers
    from deepnarrow.text.overlap import Item, overlap

    if out is not None and out.suffix != ".json":
        raise UserError(f"{out} should end in .json: it says which items it is of, beside their numbers")
    chosen = tasks.get(task)
    loaded = tasks.load(chosen, split, data=data, limit=limit)
    items = [Item(pair.inputs, pair.accepted) for pair in loaded.pairs]
    found = overlap(items, streamed(corpus, field), n=n)
    if out is not None:
        numbers = [one.number for one in found.dirty]
        write_numbers(
            out, numbers, items=fingerprint(loaded.pairs), task=task, split=split, data=loaded.origin,
            corpus=corpus, n=n,
        )  # fmt: skip
    if as_json:
        import json

        about = {"corpus": corpus, "task": task, "split": split, "data": loaded.origin}
        print(json.dumps(about | found.to_json(), indent=2, ensure_ascii=False))
        return
    show_overlap(found, items, f"{task}, {split}", corpus, show_worst)
    if out is not None:
        print(f"item numbers: {out}")


def streamed(corpus: str, field: str) -> "Iterator[Document]":
    """The documents of a built corpus or of a source, with progress."""
    from deepnarrow.progress import progress
    from deepnarrow.text.corpus import MANIFEST, open_corpus
    from deepnarrow.text.overlap import corpus_documents
    from deepnarrow.text.sources import documents

    built = open_corpus(Path(corpus)) if (Path(corpus) / MANIFEST).is_file() else None
    with progress("read", built.documents if built else None) as bar:
        for document in corpus_documents(built) if built else documents(corpus, field=field):
            yield document
            bar.advance()


def show_overlap(found: "Overlap", items: "list[Item]", what: str, corpus: str, most: int) -> None:
    from rich.markup import escape

    from deepnarrow.cli.judging import console, one_line

    screen = console()
    dirty, whole = found.dirty, len(found.items)
    share = f"{100 * len(dirty) / whole:.1f} %"
    screen.print(f"\n[bold]{escape(what)}[/] in {escape(corpus)}, runs of {found.n} words", soft_wrap=True)
    screen.print(
        f"{len(dirty):,} of {whole:,} items ({share}) share a run: {sum(one.in_inputs for one in dirty):,} in the "
        f"input, {sum(one.in_answers for one in dirty):,} in an answer; {found.documents:,} documents read"
    )
    if found.too_short:
        screen.print(f"{found.too_short:,} items have fewer than {found.n} words in a row: nothing is known of them")
    for one in dirty[:most]:
        screen.print(
            f"\n[bold]item {one.number}[/]  {one.shared:,} of its {one.runs:,} runs ({100 * one.share:.0f} %), "
            f"[cyan]{escape(one.document or '')}[/]"
        )
        screen.print(f"[dim]{escape(one_line(items[one.number].inputs, 200))}[/]")
    if len(dirty) > most > 0:
        screen.print(f"\n[dim]and {len(dirty) - most:,} more (--json lists them)[/]")


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
    what = "examples" if corpus.salient else "documents"
    rows = [
        ("tokens", [f"{part.tokens:,}" for part in parts]),
        (what, [f"{part.documents:,}" for part in parts]),
        ("bytes of text", [f"{part.text_bytes:,}" for part in parts]),
        ("shards", [f"{len(part.shards):,}" for part in parts]),
    ]
    if not corpus.salient:  # whose tokens are not the text's, nor ever cut into rows
        rows[3:3] = [
            ("bytes per token", [f"{part.text_bytes / part.tokens:.2f}" for part in parts]),
            ("rows of 568 (512 inputs)", [f"{part.rows(568):,}" for part in parts]),
        ]
    for label, cells in rows:
        grid.add_row(label, *cells)
    console.print(grid)
    if corpus.cleaning:
        console.print(cleaned(corpus))
        if corpus.pipeline and corpus.pipeline["bad_words"] is None:
            console.print("[dim]no page was dropped for bad words: no list was given (--bad-words)[/]")
    if corpus.salient:
        form, tagger = corpus.salient["form"], corpus.salient["tagger"]
        console.print(f"salient: examples of inputs and targets, form {form}, tagger {escape(tagger)}")
    console.print(f"tokenizer {corpus.fingerprint[:12]}, {corpus.vocab:,} ids, stored as {corpus.dtype.name}")
    for source in corpus.sources[:10]:
        size = "" if source.bytes is None else f", {source.bytes:,} bytes, sha256 {str(source.sha256)[:12]}"
        console.print(f"[dim]from {escape(name(source))}: {source.documents:,} {what}{size}[/]", soft_wrap=True)
    if len(corpus.sources) > 10:
        console.print(f"[dim]and {len(corpus.sources) - 10:,} more sources (--json lists them)[/]")


def cleaned(corpus: "Corpus") -> Any:
    """What each rule of the pipeline dropped, as a table."""
    from rich import box
    from rich.table import Table

    assert corpus.pipeline is not None
    assert corpus.cleaning is not None
    read, kept = corpus.cleaning["read"], corpus.cleaning["kept"]
    title = (
        f"pipeline {corpus.pipeline['name']}: {kept.get('documents', 0):,} of {read.get('documents', 0):,} documents"
    )
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, title=title, title_justify="left")
    grid.add_column("dropped by", no_wrap=True)
    for label in ("documents", "lines", "changed", "characters"):
        grid.add_column(label, justify="right", no_wrap=True)
    for rule in corpus.cleaning["rules"]:
        cells = (rule.get(key) for key in ("documents", "lines", "changed", "characters"))
        grid.add_row(rule["rule"], *("" if cell is None else f"{cell:,}" for cell in cells))
    return grid


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
        "kind": corpus.kind,
        "salient": corpus.salient,
        "pipeline": corpus.pipeline,
        "cleaning": corpus.cleaning,
        "deepnarrow": corpus.built_with,
    }


def name(source: Any) -> str:
    return str(source.file or source.source)
