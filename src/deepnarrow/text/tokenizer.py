"""Tokenizers by name: "bytes", a SentencePiece model, a tokenizer.json, or a folder that holds one.

Which one counts where several are at hand: tokenizer.json is the reference, since it is what transformers and the
published models use. SentencePiece gives the same ids but for three rare cases (see sentencepiece_tokenizer.py) and is
the fastest on many cores.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import UserError
from deepnarrow.files import read_json
from deepnarrow.text.vocabulary import Tokenizer

if TYPE_CHECKING:
    from deepnarrow.text.byte_tokenizer import ByteTokenizer
    from deepnarrow.text.sentencepiece_tokenizer import SentencePieceTokenizer
    from deepnarrow.text.tokenizer_json import JsonTokenizer
    from deepnarrow.text.train_tokenizer import train

__all__ = ["ByteTokenizer", "JsonTokenizer", "SentencePieceTokenizer", "Tokenizer", "load", "train"]

LATE = {  # each kind brings a library of its own, which is imported when it is needed
    "ByteTokenizer": "byte_tokenizer",
    "JsonTokenizer": "tokenizer_json",
    "SentencePieceTokenizer": "sentencepiece_tokenizer",
    "train": "train_tokenizer",
}
MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.model")


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(import_module(f"deepnarrow.text.{LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(where: str | Path) -> Tokenizer:
    """Open a tokenizer: "bytes", a *.model file, a tokenizer.json, or a folder with one of these.

    >>> load("bytes").size
    384
    """
    if str(where) == "bytes":
        from deepnarrow.text.byte_tokenizer import ByteTokenizer

        return ByteTokenizer()
    path = Path(where)
    if path.is_dir():
        return load_folder(path)
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {where}: give a folder with tokenizer.json or spiece.model, one of these, or `bytes`"
        )
    data = path.read_bytes()
    if path.suffix == ".json":
        from deepnarrow.text.tokenizer_json import JsonTokenizer

        return JsonTokenizer(data, path)
    from deepnarrow.text.sentencepiece_tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer(data, sentinels=sentinels_beside(path.parent), origin=path)


def load_if_any(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder, or None where there is none."""
    named = any((folder / name).is_file() for name in ("tokenizer.json", *MODELS))
    bytes_only = not named and settings_in(folder).get("tokenizer_class") == "ByT5Tokenizer"
    return load(folder) if named or bytes_only else None


def load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return load(folder / "tokenizer.json")
    for name in MODELS:
        if (folder / name).is_file():
            return load(folder / name)
    settings = settings_in(folder)
    if settings.get("tokenizer_class") == "ByT5Tokenizer":
        from deepnarrow.text.byte_tokenizer import ByteTokenizer

        return ByteTokenizer(sentinels=settings.get("extra_ids") or len(settings.get("additional_special_tokens", [])))
    found = sorted(entry.name for entry in folder.iterdir())
    raise UserError(
        f"no tokenizer in {folder}: expected tokenizer.json, {', '.join(MODELS)} or a ByT5 tokenizer_config.json, "
        f"found {', '.join(found[:8]) + (', ...' if len(found) > 8 else '') or 'nothing'}"
    )


def settings_in(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    return settings if isinstance(settings, dict) else {}


def sentinels_beside(folder: Path) -> int:
    """How many sentinels to set on top of a bare spiece.model: what tokenizer_config.json says, else T5's 100."""
    extra = settings_in(folder).get("extra_ids")
    return extra if isinstance(extra, int) else 100
