"""Write a model in another program's format. One function a format; each reads back what it wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from deepnarrow.errors import UserError, nearest
from deepnarrow.model.folder import Opened, open_model, read_model, resolve_dtype, save_model
from deepnarrow.shapes import Shape


class Exported(NamedTuple):
    """What was written, and from what."""

    folder: Path
    origin: str
    shape: Shape
    parameters: int  # of the model, each shared tensor counted once
    dtype: str
    files: dict[str, int]  # name -> bytes
    has_tokenizer: bool


def export(name: str | Path, out: Path, *, dtype: str = "float32", to: str = "hf") -> Exported:
    """Write the model `name` (run folder, Hugging Face folder or hub name) to the folder `out` in the format `to`.

    A model folder already there is replaced; a folder with anything else in it is a `UserError`.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r}; {nearest(to, FORMATS)}")
    opened = open_model(name, dtype=resolve_dtype(dtype))
    FORMATS[to](opened, out)
    return Exported(
        folder=out,
        origin=opened.origin,
        shape=opened.shape,
        parameters=sum(weight.numel() for weight in opened.model.parameters()),
        dtype=dtype,
        files={path.name: path.stat().st_size for path in sorted(out.iterdir())},
        has_tokenizer=opened.tokenizer is not None,
    )


def to_hugging_face(opened: Opened, out: Path) -> None:
    """A folder for transformers' T5ForConditionalGeneration (T5EncoderModel for an encoder alone)."""
    save_model(opened.model, opened.tokenizer, out)
    again = read_model(out, dtype=opened.model.embedding.weight.dtype).state_dict()
    for name, tensor in opened.model.state_dict().items():
        if not torch.equal(again[name], tensor.cpu()):
            raise OSError(f"{out} does not hold what was written to it ({name} differs); check the disk")


FORMATS: dict[str, Callable[[Opened, Path], None]] = {"hf": to_hugging_face}
