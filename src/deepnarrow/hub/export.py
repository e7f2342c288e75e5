"""Write a model in another program's format. One function a format; each reads back what it wrote."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import whole_folder
from deepnarrow.hub import heads, native
from deepnarrow.model import adapters
from deepnarrow.model.folder import Opened, check_replaceable, find, open_model, read_model, resolve_dtype, save_model
from deepnarrow.model.heads import OpenedHead, as_vectors, is_head, open_head
from deepnarrow.runtime.layout import PRECISIONS
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


def export(
    name: str | Path, out: Path, *, dtype: str = "float32", to: str = "hf", precision: str | None = None
) -> Exported:
    """Write the model `name` (run folder, Hugging Face folder or hub name) to the folder `out` in the format `to`.

    `precision` is that of "native" weights, where `dtype` has no say. A model folder already there is replaced; a
    folder with anything else in it is a `UserError`.
    """
    known = [*FORMATS, NATIVE, *(one for one in heads.FORMATS if one not in FORMATS)]
    if to not in known:
        raise UserError(f"unknown format {to!r}; {nearest(to, known)}")
    if to == NATIVE:
        return export_native(name, out, precision or "float32", dtype)
    if precision is not None:
        raise UserError(f"--precision is that of --to {NATIVE}; the weights of {to} are as --dtype says")
    if is_head(find(name).folder):
        return exported(heads.write(open_head(name, dtype=resolve_dtype(dtype)), out, to), out, dtype)
    opened = open_model(name, dtype=resolve_dtype(dtype))
    if to not in FORMATS:
        return exported(heads.write(as_vectors(opened), out, to), out, dtype)
    if to == "peft" and dtype != "float32":
        raise UserError(f"adapters are small and kept in float32; leave out --dtype {dtype}")
    FORMATS[to](opened, out)
    return exported(opened, out, dtype)


def export_native(name: str | Path, out: Path, precision: str, dtype: str) -> Exported:
    if dtype != "float32":
        raise UserError(f"the precision of --to {NATIVE} is said by --precision {' or '.join(PRECISIONS)}, not --dtype")
    native.check_precision(precision)
    found = find(name)
    native.refuse_head(found.folder, found.origin)
    opened = open_model(name)
    native.to_native(opened, out, precision=precision)
    return exported(opened, out, precision)


def exported(opened: Opened | OpenedHead, out: Path, dtype: str) -> Exported:
    return Exported(
        folder=out,
        origin=opened.origin,
        shape=opened.shape,
        parameters=sum(weight.numel() for weight in opened.model.parameters()),
        dtype=dtype,
        files={path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()},
        has_tokenizer=opened.tokenizer is not None,
    )


def to_hugging_face(opened: Opened, out: Path) -> None:
    """A folder for transformers' T5ForConditionalGeneration (T5EncoderModel for an encoder alone)."""
    if opened.model.prompt is not None:
        raise UserError(
            f"{opened.origin} is a soft prompt over a model that stays as it is, which transformers has no folder for; "
            "use --to peft"
        )
    save_model(opened.model, opened.tokenizer, out)
    again = read_model(out, dtype=opened.model.embedding.weight.dtype).state_dict()
    for name, tensor in opened.model.state_dict().items():
        if not torch.equal(again[name], tensor.cpu()):
            raise OSError(f"{out} does not hold what was written to it ({name} differs); check the disk")


def to_peft(opened: Opened, out: Path) -> None:
    """A folder for PEFT's PeftModel.from_pretrained: the adapter alone, which names its base."""
    if opened.adapter is None:
        raise UserError(f"{opened.origin} is a whole model and no adapter, so there is nothing for PEFT; use --to hf")
    files = [
        opened.adapter / name for name in (*adapters.FILES, adapters.OLD_WEIGHTS) if (opened.adapter / name).is_file()
    ]
    check_replaceable(out, (*adapters.FILES, adapters.OLD_WEIGHTS))
    with whole_folder(out) as temporary:
        for file in files:
            shutil.copyfile(file, temporary / file.name)
    again, held = adapters.read_adapter(out).tensors, adapters.read_adapter(opened.adapter).tensors
    if again.keys() != held.keys() or not all(torch.equal(again[name], held[name]) for name in held):
        raise OSError(f"{out} does not hold what was written to it; check the disk")


NATIVE = "native"
FORMATS: dict[str, Callable[[Opened, Path], None]] = {"hf": to_hugging_face, "peft": to_peft}
