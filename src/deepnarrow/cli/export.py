"""`deepnarrow export`: a model as a folder for another program, or for the native runtime."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a Hugging Face folder or a hub name.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write; a model folder there is replaced.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, which halves the file.")] = "float32",
    to: Annotated[
        str, typer.Option(help="The format: hf, native, peft (an adapter alone), sentence-transformers.")
    ] = "hf",
    precision: Annotated[
        str | None, typer.Option(help="Of --to native: float32, bfloat16 or int8.  [default: float32]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a run as a folder that transformers or the native runtime loads: its best checkpoint, else its last.

    What transformers has no word for (tied keys and values, fewer key/value heads, shared stacks) is written out as
    equal tensors: it computes the same, in more memory, and this program reads the compact model back. A LoRA run is
    written merged, or with --to peft as PEFT's adapter over its base, as a soft prompt always is. Of a run with a head,
    one that tags becomes a T5ForTokenClassification, one that embeds a sentence-transformers folder if so asked.

    --to native converts for this program's own library, which `generate` and `serve` run without torch: float32
    answers as PyTorch does, int8 is the fastest. A soft prompt goes with its model, in front of every input.

    \b
    Example:
      deepnarrow export runs/squad --out squad-small
      deepnarrow export runs/squad --out squad-int8 --to native --precision int8
      deepnarrow export runs/sst2-lora --out sst2-lora --to peft
      deepnarrow export runs/vectors --out vectors --to sentence-transformers
      deepnarrow export google/t5-efficient-tiny --out tiny-bf16 --dtype bfloat16
    """
    from deepnarrow.hub.export import export as write

    written = write(model, out, dtype=dtype, to=to, precision=precision)
    if as_json:
        import json

        record = written._asdict() | {"folder": str(written.folder), "shape": str(written.shape)}
        print(json.dumps(record, indent=2))
        return
    print(f"{written.folder}: {written.shape}, {written.parameters:,} parameters, {written.dtype}")
    print(f"from {written.origin}")
    for name, size in written.files.items():
        print(f"  {name:<24} {size:>13,} bytes")
    if not written.has_tokenizer and to in ("hf", "native"):
        print("The source has no tokenizer, so this folder has none either.")
