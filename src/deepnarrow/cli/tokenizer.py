"""`deepnarrow tokenizer`: train a vocabulary, encode, decode, show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Train a vocabulary, encode, decode.

    \b
    Example:
      deepnarrow tokenizer train books/ --vocab 8192 --out vocabulary
      deepnarrow tokenizer encode vocabulary "Thank you <extra_id_0> me" --pieces
      deepnarrow tokenizer decode vocabulary 100 19 8191 140
      deepnarrow tokenizer show vocabulary
    """,
)

Name = Annotated[
    str, typer.Argument(metavar="TOKENIZER", help="spiece.model, tokenizer.json, a folder with one, or `bytes`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, every field.")]


@app.command("train")
def train_tokenizer(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Text, JSONL or Parquet files (.gz, .zst too), folders, builtin:python, hub:NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    vocab: Annotated[int, typer.Option(metavar="N", help="All ids, sentinels included; T5 has 32100.")] = 32100,
    sentinels: Annotated[int, typer.Option(metavar="N", help="How many of them are <extra_id_n>.")] = 100,
    byte_fallback: Annotated[
        bool, typer.Option("--byte-fallback", help="Spend 256 ids on bytes, so that no character is lost.")
    ] = False,
    coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the text's characters that must have a piece.")
    ] = 0.9995,
    field: Annotated[str, typer.Option(help="The field that holds a record's text.")] = "text",
    as_json: Json = False,
) -> None:
    """Train a SentencePiece unigram vocabulary in T5's layout.

    Padding is 0, end 1, unknown 2, the sentinels come last. The folder holds spiece.model and the same as
    tokenizer.json, which transformers loads. The same text and options give the same file on any machine; the first
    300 MB of text are used.

    \b
    Example:
      deepnarrow tokenizer train wiki.jsonl.gz books/ --vocab 32100 --out vocabulary
      deepnarrow tokenizer train builtin:python --vocab 4096 --out vocabulary
    """
    from deepnarrow.progress import Bar, progress
    from deepnarrow.text.sources import documents
    from deepnarrow.text.tokenizer import train

    def texts(bar: Bar) -> Iterator[str]:
        for source in sources:
            for document in documents(source, field=field):
                bar.advance(len(document.text))
                yield document.text

    with progress("characters read", None) as bar:
        train(
            texts(bar),
            vocab=vocab,
            sentinels=sentinels,
            out=out,
            byte_fallback=byte_fallback,
            character_coverage=coverage,
        )
    show(str(out), as_json)


@app.command("encode")
def encode_text(
    tokenizer: Name,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    pieces: Annotated[bool, typer.Option("--pieces", help="Print the pieces instead of their ids.")] = False,
    as_json: Json = False,
) -> None:
    """The ids of a text, without the end id (EOS).

    \b
    Example:
      deepnarrow tokenizer encode t5/spiece.model "Thank you <extra_id_0> me"
      deepnarrow tokenizer encode t5/spiece.model "Thank you" --pieces
      deepnarrow tokenizer encode bytes - --json < notes.txt
    """
    import sys

    from deepnarrow.text.tokenizer import load

    opened = load(tokenizer)
    ids = opened.encode(sys.stdin.read() if text == "-" else text)
    if as_json:
        print_json({"ids": ids, "pieces": [opened.piece(index) for index in ids], "fingerprint": opened.fingerprint})
    else:
        print(*[opened.piece(index) for index in ids] if pieces else ids)


@app.command("decode")
def decode_ids(
    tokenizer: Name,
    ids: Annotated[list[str], typer.Argument(metavar="IDS...", help="Ids, as numbers or as a list such as [3, 9, 1].")],
    as_json: Json = False,
) -> None:
    """The text of ids: padding and end dropped, sentinels written out.

    \b
    Example:
      deepnarrow tokenizer decode t5/spiece.model 1562 25 32099 140 1
      deepnarrow tokenizer decode t5/spiece.model "[1562, 25, 1]" --json
    """
    from deepnarrow.text.tokenizer import load

    text = load(tokenizer).decode(read_ids(" ".join(ids)))
    print_json({"text": text}) if as_json else print(text)


@app.command("show")
def show_tokenizer(tokenizer: Name, as_json: Json = False) -> None:
    """Size, sentinels and fingerprint of a tokenizer.

    \b
    Example:
      deepnarrow tokenizer show t5/
      deepnarrow tokenizer show bytes --json
    """
    show(tokenizer, as_json)


def show(name: str, as_json: bool) -> None:
    from deepnarrow.text.tokenizer import load

    opened = load(name)
    facts: dict[str, object] = {
        "tokenizer": name,
        "kind": opened.kind,
        "size": opened.size,
        "rows": -(-opened.size // 128) * 128,
        "sentinels": opened.sentinels,
        "first_sentinel": opened.sentinel(0) if opened.sentinels else None,
        "last_sentinel": opened.sentinel(opened.sentinels - 1) if opened.sentinels else None,
        "pad": opened.pad,
        "eos": opened.eos,
        "unk": opened.unk,
        "fingerprint": opened.fingerprint,
    }
    if as_json:
        print_json(facts)
        return
    span = f"{facts['first_sentinel']} down to {facts['last_sentinel']}" if opened.sentinels else "none"
    lines = {
        "kind": opened.kind,
        "size": f"{opened.size:,} ids; a model gives it {facts['rows']:,} rows (a multiple of 128)",
        "special": f"padding {opened.pad}, end {opened.eos}, unknown {opened.unk}",
        "sentinels": f"{opened.sentinels}: {span}",
        "fingerprint": opened.fingerprint,
    }
    print(name)
    for label, value in lines.items():
        print(f"  {label:<12} {value}")


def read_ids(text: str) -> list[int]:
    """The numbers in "3 9 1" or "[3, 9, 1]"."""
    from deepnarrow.errors import UserError

    words = text.strip("[]() ").replace(",", " ").split()
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"ids are whole numbers, as in 3 9 1 or [3, 9, 1] ({error})") from None


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False))
