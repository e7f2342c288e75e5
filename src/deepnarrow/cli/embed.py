"""`deepnarrow embed`: a vector for each text, by any T5's encoder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepnarrow.cli.generating import read_texts
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.cli.embedding import Embedding

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

FIRSTS, SECONDS = ("input", "sentence1", "text1"), ("target", "sentence2", "text2")
SCORES = ("score", "label", "similarity")


@app.command()
def embed(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a converted or Hugging Face folder, a hub name.")
    ],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text to embed.")] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="Texts, one a line; - is standard input.")] = None,
    similarity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead: Spearman's correlation over rows of two texts and a score."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Write float32 [texts, width] here.")] = None,
    normalise: Annotated[
        bool | None,
        typer.Option("--normalise/--no-normalise", help="Vectors of length 1. Default: as the head was trained."),
    ] = None,
    input_length: Annotated[
        int | None, typer.Option(metavar="N", help="Cut texts to N tokens. Default: the head's, else 512.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, or int8 (native).  [default: float32, or as converted]")
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto (native on a CPU, where it was built), native or torch.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Embed texts: the mean of the encoder's output over the tokens, in the order of the texts.

    Without --out each vector is a line of JSON. A plain model's vectors were not trained to be compared; `finetune
    --head embed` trains them on pairs of texts that belong together. On a CPU the native runtime computes them, with
    the same numbers; a MODEL that is not converted is, when it is first used, and kept.

    \b
    Example:
      deepnarrow embed runs/vectors "who wrote hamlet?"
      deepnarrow embed runs/vectors --file titles.txt --out titles.npy
      deepnarrow embed runs/vectors --similarity stsb.jsonl
      deepnarrow embed runs/vectors --file titles.txt --out titles.npy --dtype bfloat16
    """
    if similarity is not None and (text is not None or file is not None or out is not None):
        raise UserError("--similarity reads rows of its own; give it without TEXT, --file and --out")
    if out is not None and out.suffix != ".npy":
        raise UserError(f"vectors are written as NumPy's .npy; name --out {out.with_suffix('.npy')}")
    if input_length is not None and input_length < 2:
        raise UserError(f"--input-length must be at least 2, not {input_length}")
    texts = read_texts(text, file) if similarity is None else []

    from deepnarrow.cli.embedding import ready

    opened = ready(model, runtime=runtime, device=device, dtype=dtype)
    if similarity is not None:
        on_rows(opened, similarity, as_json=as_json)
        return
    vectors = opened.vectors(texts, normalise=normalise, input_tokens=input_length, progress=len(texts) > 1)
    if out is None:
        for row in vectors.tolist():
            print(json.dumps([round(number, 7) for number in row]))
        return
    import io

    import numpy as np

    from deepnarrow.files import write_bytes

    buffer = io.BytesIO()
    np.save(buffer, vectors)
    write_bytes(out, buffer.getvalue())
    said = {"out": str(out), "texts": len(vectors), "width": vectors.shape[1], "model": opened.origin}
    print(json.dumps(said) if as_json else f"{out}: {len(vectors):,} vectors of {vectors.shape[1]}, by {opened.origin}")


def on_rows(opened: "Embedding", path: Path, *, as_json: bool) -> None:
    """How the angles between two texts' vectors follow the scores that people gave."""
    from deepnarrow.measure.likeness import similarity
    from deepnarrow.tasks import column, text
    from deepnarrow.text import sources

    rows = []
    for number, row in enumerate(sources.rows(path), start=1):
        try:
            rows.append((text(row, *FIRSTS), text(row, *SECONDS), float(column(row, *SCORES))))
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{path}, row {number}: two texts and a number as `score` are needed ({error})") from None
    if len(rows) < 3:
        raise UserError(f"{path} holds {len(rows)} rows; a correlation needs three or more")
    firsts, seconds, scores = zip(*rows, strict=True)
    left, right = (opened.vectors(side, normalise=True, progress=True) for side in (firsts, seconds))
    found = similarity(left, right, scores)
    if as_json:
        print(json.dumps({"model": opened.origin, "data": path.name, "spearman": found._asdict()}))
        return
    bounds = f"[{found.low:.2f}, {found.high:.2f}]"
    print(f"{opened.origin} on {path.name}: Spearman {found.value:.2f} {bounds}, {found.n:,} rows")
