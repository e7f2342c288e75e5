"""Where a model is: a folder of its own, a run, the hub. Nothing of it is read here, so torch is not needed.

A name is one of
    RUN/run.json, checkpoints.json        a run: its best checkpoint if one is marked, else its last
    FOLDER/config.json + weights          a Hugging Face folder; every checkpoint of a run is one
    FOLDER/adapter_config.json + weights  an adapter over another model (adapters.py), PEFT's or of a run
    FOLDER/model.dn                       a converted model (runtime/folder.py)
    owner/name, owner/name@revision       the hub, by way of its cache
"""

from pathlib import Path
from typing import NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.files import read_json
from deepnarrow.model import hub_files


class Found(NamedTuple):
    folder: Path
    origin: str


def find(name: str | Path, revision: str | None = None) -> Found:
    """The folder a name stands for: itself, a run's checkpoint, or a place in the hub's cache."""
    path = Path(name).expanduser()
    if path.is_dir():
        folder = checkpoint(path) if (path / "run.json").is_file() else path
        return Found(folder, str(folder))
    if path.exists():
        raise UserError(f"{path} is a file; a model is a folder with config.json and weights, or a hub name")
    text = str(name)
    if text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text:
        raise UserError(f"no folder {text}")
    if "/" not in text and is_shape(text):
        from deepnarrow.shapes import parse, published

        known = [entry.id for entry in published(parse(text))][:3]
        raise UserError(
            f"{text} is a shape, which has no weights of its own, and there is no folder of that name; "
            + (f"published with weights: {', '.join(known)}" if known else f"deepnarrow pretrain --shape {text} ...")
        )
    fetched = hub_files.fetch(text, revision)
    return Found(fetched.folder, fetched.origin)


def checkpoint(run: Path) -> Path:
    """The folder of a run's best checkpoint if one is marked, else of its last."""
    path = run / "checkpoints.json"
    marked = read_json(path) if path.is_file() else {}
    name = (marked.get("best") or marked.get("last")) if isinstance(marked, dict) else None
    if not isinstance(name, str):
        raise UserError(f"the run {run} has no checkpoint yet; let it train on to its first")
    folder = run / "checkpoints" / name
    if Path(name).name != name or not folder.is_dir():
        raise UserError(f"{path} names the checkpoint {name!r}, but {run / 'checkpoints'} does not hold it")
    return folder


def is_shape(text: str) -> bool:
    from deepnarrow.shapes import parse

    try:
        parse(text)
    except UserError:
        return False
    return True
